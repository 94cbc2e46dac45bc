"""How settings speak: a value as it may be shown, the bounds of a field, and what is wrong with a value.

Pydantic's own messages are written for programmers, and some quote a part of the value. So each kind of error has
words of ours, and one that has none is named by its kind alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from typing import Any, get_args

from pydantic import ByteSize, SecretBytes, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from pydantic_core.core_schema import ErrorType

from kmp_core.deadlines import Duration
from kmp_core.settings.url import ConnectionUrl, redact_url

__all__ = ["MASK", "NOT_SET", "bounds", "is_written_by_hand", "shown", "words"]

MASK = "**********"
NOT_SET = "(not set)"

_DURATION = TypeAdapter(Duration)
_LIMITS = (("ge", "from"), ("gt", "more than"), ("le", "to"), ("lt", "less than"))
_WORDS: Mapping[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_type": "must be text",
    "bytes_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number, and not as large",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "byte_size": "must be a size in bytes, or with a unit such as KiB, MB or GiB",
    "byte_size_unit": "must be a size in bytes, or with a unit such as KiB, MB or GiB",
    "path_type": "must be a path",
    "time_delta_type": "must be a duration",
    "time_delta_parsing": "must be a duration",
    "list_type": "must be a list, `a,b` or JSON",
    "tuple_type": "must be a list, `a,b` or JSON",
    "set_type": "must be a list, `a,b` or JSON",
    "frozen_set_type": "must be a list, `a,b` or JSON",
    "dict_type": "must be a table, or an object in JSON",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "greater_than_equal": "must be {bounds}",
    "greater_than": "must be {bounds}",
    "less_than_equal": "must be {bounds}",
    "less_than": "must be {bounds}",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
}
_BY_HAND = ("value_error", "assertion_error")
_BUILT_IN = frozenset(get_args(ErrorType)) - {*_BY_HAND}


def is_written_by_hand(detail: ErrorDetails) -> bool:
    """Whether the message was written by a validator, which may quote what it likes."""
    return detail["type"] in _BY_HAND


def words(detail: ErrorDetails, field: FieldInfo | None) -> str:
    """What is wrong, without the value."""
    kind = detail["type"]
    text = _WORDS.get(kind)
    if text is not None:
        limits = bounds(field) if field is not None and len(detail["loc"]) == 1 else ""
        problem = text.format_map({"bounds": limits or "within the bounds", **detail.get("ctx", {})})
        return _place(detail) + problem
    if kind in _BUILT_IN:
        return f"{_place(detail)}is not accepted ({kind})"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message.partition("; for example ")[0]


def _place(detail: ErrorDetails) -> str:
    entries = [f"entry {part + 1} " for part in detail["loc"][1:] if isinstance(part, int)]
    return "".join(entries)


def bounds(field: FieldInfo) -> str:
    """The limits of a number, a size or a duration: `from 1 to 1000`; empty where there are none."""
    sizes = any(_is(kind, ByteSize) for kind in (field.annotation, *get_args(field.annotation)))
    limits = [
        f"{word} {shown(ByteSize(limit) if sizes else limit, secret=False)}"
        for attribute, word in _LIMITS
        for constraint in field.metadata
        if (limit := getattr(constraint, attribute, None)) is not None
    ]
    return " and ".join(limits).replace(" and to ", " to ")


def shown(value: Any, *, secret: bool) -> str:
    """The value as it may be shown: masked where it is a secret, and without the credentials of a URL."""
    if value is None or value is PydanticUndefined:
        return NOT_SET
    if isinstance(value, ConnectionUrl):
        return str(value)
    if secret or isinstance(value, SecretStr | SecretBytes):
        return MASK
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(shown(item, secret=False) for item in value)
    return _plain(value.value if isinstance(value, Enum) else value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return str(_DURATION.dump_python(value, mode="json"))
    if isinstance(value, ByteSize):
        return _bytes(value)
    text = str(value)
    return redact_url(text) if "://" in text or "@" in text else text


def _bytes(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return f"{size}B"


def _is(kind: Any, wanted: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, wanted)
