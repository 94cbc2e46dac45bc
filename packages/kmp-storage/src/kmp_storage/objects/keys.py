"""What a bucket takes as a key, a content type, metadata: nothing that a store or proxy could read as a way out."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import unquote

from kmp_core.deadlines import Timeout, duration
from kmp_core.errors import InvalidInput

__all__ = ["after_prefix", "check_content_type", "check_expires", "check_key", "check_metadata", "check_prefix"]

_EXAMPLE = '"reports/2013/january.html"'
_LONGEST_KEY_BYTES = 1024
_METADATA_BYTES = 2048
_METADATA_NAME = re.compile(r"[a-z0-9_-]+", re.ASCII)
_FORBIDDEN = {"Cc": "a control character", "Cs": "a lone surrogate, which is no text"}


def check_key(key: object, field: str = "key") -> None:
    """Raise `InvalidInput` unless the key is 1 to 1024 bytes of UTF-8 in plain, non-empty segments.

    Percent-encoded separators and dots count as what they stand for, however often they are encoded, because a proxy
    in front of a store may decode them.
    """
    problem = _problem(key)
    if problem is not None:
        raise InvalidInput(field, problem, example=_EXAMPLE)


def check_prefix(prefix: object) -> None:
    """Raise `InvalidInput` for a prefix that no key can begin with."""
    if prefix != "":
        # What follows a prefix completes its last segment, which may be empty (`reports/`) or look odd (`..`).
        check_key(f"{prefix}x" if isinstance(prefix, str) else prefix, "prefix")


def after_prefix(prefix: bytes) -> bytes:
    """The first byte string after all that begin with this one; UTF-8 never holds the byte 255."""
    return prefix[:-1] + bytes((prefix[-1] + 1,)) if prefix else b"\xff"


def check_content_type(content_type: object) -> None:
    """Raise `InvalidInput` for what would break a header."""
    if content_type is None:
        return
    plain = isinstance(content_type, str) and content_type.isascii() and content_type.isprintable()
    if not plain or not 3 <= len(str(content_type)) <= 255 or "/" not in str(content_type):
        raise InvalidInput("content_type", "is not a media type", example='"text/html; charset=utf-8"')


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """A copy, or `InvalidInput`: names of a-z 0-9 - _, printable values, 2 KiB in all (the limit of S3)."""
    checked = dict(metadata or {})
    problem = next((problem for item in checked.items() if (problem := _item_problem(*item))), None)
    if problem is None and sum(len(name) + len(value.encode()) for name, value in checked.items()) > _METADATA_BYTES:
        problem = f"has more than {_METADATA_BYTES} bytes"
    if problem is not None:
        raise InvalidInput("metadata", problem, example='{"origin": "JFK"}')
    return checked


def check_expires(expires: Timeout, key: str) -> timedelta | None:
    """How long an object is kept, or None. Raises `InvalidInput` for a time that is none."""
    if expires is None:
        return None
    span = duration(expires, field="expires")
    if not span:
        raise InvalidInput("expires", "must be more than nothing", example='"30d"', key=key)
    return span


def _item_problem(name: object, value: object) -> str | None:
    if not isinstance(name, str) or _METADATA_NAME.fullmatch(name) is None:
        return "has a name that is not made of a-z 0-9 - _"
    if not isinstance(value, str) or not value.isprintable():
        return f"has a value under {name!r} that is no printable text"
    return None


def _problem(key: object) -> str | None:
    if not isinstance(key, str):
        return f"must be text, not {type(key).__name__}"
    foreign = next((_FORBIDDEN[c] for c in map(unicodedata.category, key) if c in _FORBIDDEN), None)
    if foreign is not None:
        return f"contains {foreign}"
    size = len(key.encode())
    if not 1 <= size <= _LONGEST_KEY_BYTES:
        return f"must have 1 to {_LONGEST_KEY_BYTES} bytes, not {size}"
    return _path_problem(key)


def _path_problem(key: str) -> str | None:
    separators = key.count("/")
    while True:
        if "\\" in key:
            return "contains a backslash"
        if any(segment in ("", ".", "..") for segment in key.split("/")):
            return "has an empty segment, '.' or '..', or begins or ends with '/'"
        decoded = unquote(key)
        if decoded == key:
            return None
        if decoded.count("/") != separators or any(ord(c) < 32 for c in decoded):
            return "contains an encoded '/' or control character"
        key = decoded
