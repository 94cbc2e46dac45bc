"""An object is read in one way only, whichever way of reading is the quick one for it."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kmp_core.tokens.strict_json import MAX_DEPTH, parse_object

names = st.sampled_from(["a", "b", "iss", ":", ",", "{", "[", "é", '"', "\\", "a b", ""])
flat = st.one_of(
    names, st.integers(-5, 10**20), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False, width=16)
)
values = st.one_of(flat, st.lists(flat, max_size=2), st.dictionaries(names, flat, max_size=2))
spaces = st.sampled_from(["", " ", "\n", " \t"])


@given(st.lists(st.tuples(names, values), max_size=5), spaces, spaces, st.booleans())
@example([("a", 1), ("a", 2)], " ", "", False)
@example([("a", "x"), ("a", "x")], "", "", False)
@example([("a", "a"), ("b", 1), ("a", "b")], "", " ", False)
def test_a_member_given_twice_is_refused_and_all_else_is_what_it_says(pairs, before, after, ascii_only):
    members = ",".join(f"{before}{json.dumps(k, ensure_ascii=ascii_only)}{before}:{json.dumps(v)}" for k, v in pairs)
    content = f"{{{members}{after}}}{after}".encode()
    if len(dict(pairs)) == len(pairs):
        assert parse_object(content) == dict(pairs)
    else:
        with pytest.raises(ValueError, match="twice"):
            parse_object(content)


@pytest.mark.parametrize(
    "text", ['{"a":NaN}', '{"a":Infinity}', '{"a":-Infinity}', '{"a":1}x', '{"a":1,}', "{a:1}", '{"a"']
)
@pytest.mark.parametrize("around", ["%s", " %s", '{"b":[%s]}'])
def test_what_is_not_json_is_refused(text, around):
    with pytest.raises(ValueError):
        parse_object((around % text).encode())


@pytest.mark.parametrize(
    "content", [b"[]", b"1", b'"a"', b"null", b"", b" ", '{"a":1}'.encode("utf-16"), b'\xef\xbb\xbf{"a":1}']
)
def test_what_is_no_object_in_utf_8_is_refused(content):
    with pytest.raises(ValueError):
        parse_object(content)


@pytest.mark.parametrize(
    "deep", ['{"a":' * MAX_DEPTH + "{}" + "}" * MAX_DEPTH, '{"a":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}"]
)
def test_depth_is_bounded_and_brackets_in_texts_are_none(deep):
    with pytest.raises(ValueError, match="deep"):
        parse_object(deep.encode())
    assert parse_object(json.dumps({"a": "[" * 1000 + "{" * 1000}).encode()) == {"a": "[" * 1000 + "{" * 1000}
