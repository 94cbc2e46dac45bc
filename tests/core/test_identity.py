"""SPIFFE IDs are read as the specification says, and everything near to one is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from kmp_core.errors import InvalidInput
from kmp_core.identity import SpiffeId
from kmp_core.project import Project, ServiceName

LONGEST_TRUST_DOMAIN = "a" * 255


@pytest.mark.parametrize(
    "text",
    [  # the examples of the specification, section 2.2, and its limits
        "spiffe://staging.example.com/payments/mysql",
        "spiffe://staging.example.com/payments/web-fe",
        "spiffe://k8s-west.example.com/ns/staging/sa/default",
        "spiffe://example.com/9eebccd2-12bf-40a6-b262-65fe0487d453",
        "spiffe://trust_domain_name.example.com",
        "spiffe://192.168.0.1/a",
        "spiffe://example.org/A.b_c-D",
        "spiffe://example.org/...",
        "spiffe://example.org/.a/..b",
        f"spiffe://{LONGEST_TRUST_DOMAIN}",
        "spiffe://example.org/" + "a" * (2048 - 21),
    ],
)
def test_a_legal_id_comes_out_as_it_went_in(text):
    assert str(SpiffeId.parse(text)) == text


def test_scheme_and_trust_domain_ignore_case_and_the_path_does_not():
    identity = SpiffeId.parse("SPIFFE://Example.ORG/Path")
    assert str(identity) == "spiffe://example.org/Path"
    assert identity != SpiffeId.parse("spiffe://example.org/path")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///ns/a/sa/b",
        "spiffe:/example.org/a",
        "spiffe:example.org/a",
        "192.168.2.2:6688",
        "http://example.org/a",
        "spiffe2://example.org/a",
        " spiffe://example.org/a",
        "spiffe://example.org/a\n",
        "spiffe://example.org/a\0",
        "spiffe://example.org/",
        "spiffe://example.org/a/",
        "spiffe://example.org//a",
        "spiffe://example.org/a//b",
        "spiffe://example.org/./a",
        "spiffe://example.org/a/..",
        "spiffe://example.org/ns/acme/sa/../acme2",
        "spiffe://example.org/a%2fb",
        "spiffe://example.org/%2e%2e/a",
        "spiffe://example%2eorg/a",
        "spiffe://example.org/a?query=1",
        "spiffe://example.org/a#fragment",
        "spiffe://example.org?q",
        "spiffe://example.org#f",
        "spiffe://example.org:443/a",
        "spiffe://example.org:/a",
        "spiffe://user:password@example.org/a",
        "spiffe://user@example.org/a",
        "spiffe://[::1]/a",
        "spiffe://example.org\\a",
        "spiffe://ex\u0430mple.org/a",
        "spiffe://example.org/sk\u0443line",
        "spiffe://\u212aexample.org/a",  # KELVIN SIGN, whose lower case is an ASCII k
        "spiffe://example.org/pa:th",
        "spiffe://example.org/pa@th",
        "spiffe://example.org/a*",
        "spiffe://example.org/a b",
        "spiffe://example.org/\ud800",
        f"spiffe://{LONGEST_TRUST_DOMAIN}a",
        "spiffe://example.org/" + "a" * (2048 - 20),
    ],
)
def test_what_breaks_a_rule_is_refused_and_not_repeated(text):
    with pytest.raises(InvalidInput) as caught:
        SpiffeId.parse(text)
    assert caught.value.field == "SPIFFE ID"
    assert len(str(caught.value)) < 300
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("path", ["//a", "/a/", "/a/./b", "/.."])
def test_an_empty_or_relative_segment_is_called_that(path):
    with pytest.raises(InvalidInput, match=r"empty, '\.' or '\.\.' segment"):
        SpiffeId.parse(f"spiffe://example.org{path}")


@pytest.mark.parametrize("value", [None, 7, b"spiffe://example.org/a", ["spiffe://example.org/a"]])
def test_something_else_than_text_is_refused(value):
    with pytest.raises(InvalidInput):
        SpiffeId.parse(value)


@pytest.mark.parametrize(
    ("trust_domain", "path"),
    [("Example.org", ""), ("", "/a"), ("a", "b"), ("a", "/"), ("a/b", ""), ("a", "/" + "b" * 2048)],
)
def test_the_constructor_checks_as_well(trust_domain, path):
    with pytest.raises(InvalidInput):
        SpiffeId(trust_domain, path)


@given(st.text(max_size=60))
def test_whatever_is_accepted_is_its_own_normal_form(tail):
    try:
        identity = SpiffeId.parse(f"spiffe://{tail}")
    except InvalidInput:
        return
    assert SpiffeId.parse(str(identity)) == identity
    assert str(identity).isascii()


def test_a_service_s_identity_tells_its_project_and_service():
    identity = SpiffeId.for_service("example.org", Project("skyline"), ServiceName("departures"))
    assert str(identity) == "spiffe://example.org/ns/skyline/sa/departures"
    assert (identity.project, identity.service) == ("skyline", "departures")
    assert SpiffeId.parse(str(identity)) == identity


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/ns/skyline",
        "/ns/skyline/sa",
        "/ns/skyline/sa/a/b",
        "/x/ns/skyline/sa/a",
        "/NS/skyline/sa/a",
        "/ns/Skyline/sa/a",
        "/ns/a_b/sa/c",
        "/ns/s/sa/a",
    ],
)
def test_a_path_of_another_form_has_no_project(path):
    identity = SpiffeId("example.org", path)
    assert identity.project is None
    assert identity.service is None


def test_a_service_s_identity_is_made_of_checked_names():
    with pytest.raises(InvalidInput):
        SpiffeId.for_service("example.org", "acme/sa/x", ServiceName("a"))  # type: ignore[arg-type]


def test_an_identity_is_a_field_of_a_model():
    class Caller(BaseModel):
        identity: SpiffeId

    caller = Caller.model_validate({"identity": "spiffe://example.org/ns/skyline/sa/a"})
    assert caller.model_dump_json() == '{"identity":"spiffe://example.org/ns/skyline/sa/a"}'
    with pytest.raises(ValidationError, match="must begin with spiffe://"):
        Caller.model_validate({"identity": "https://example.org/a"})
