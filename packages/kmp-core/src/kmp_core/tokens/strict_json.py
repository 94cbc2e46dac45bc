"""Read JSON and base64url that a stranger sent, so that two readers can never understand it differently.

The standard library's readers are generous: a member given twice wins silently, NaN is a number, padding and foreign
characters in base64 are skipped, and deep nesting ends in `RecursionError`. Each of those lets one text mean two
things. Here they are `ValueError`, and so is all else that the RFCs leave to chance (RFC 8259, sections 4, 7 and 8.1;
RFC 7515, section 2 and appendix C).
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, cast

__all__ = ["decode_base64url", "encode_base64url", "parse_object"]

MAX_DEPTH = 16

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)

# '-' and '_' become '+' and '/'; those two and '=' become a character that base64 does not have.
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/!!!")
_PADDING = (b"", b"", b"==", b"=")
# The last character of a group of two or three carries four or two bits that must be zero (RFC 4648, section 3.5).
_LAST = (b"", b"", b"AQgw", b"AEIMQUYcgkosw048")
_decode_base64 = binascii.a2b_base64


def decode_base64url(segment: bytes) -> bytes:
    """The bytes of an unpadded base64url text.

    Raises `ValueError` for any text but the one that encoding them gives.
    """
    rest = len(segment) & 3
    if rest == 0:
        return _decode_base64(segment.translate(_TO_STANDARD), strict_mode=True)
    if rest == 1:
        raise ValueError("not base64url: impossible length")
    if segment[-1] not in _LAST[rest]:
        raise ValueError("not base64url: trailing bits are not zero")
    return _decode_base64(segment.translate(_TO_STANDARD) + _PADDING[rest], strict_mode=True)


def encode_base64url(content: bytes) -> bytes:
    """Base64url without padding, as JOSE writes it."""
    return binascii.b2a_base64(content, newline=False).translate(bytes.maketrans(b"+/", b"-_")).rstrip(b"=")


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object in `content`, which the caller has bounded in size.

    Raises `ValueError` unless it is one object in UTF-8 without a byte order mark, nested at most 16 deep, with no
    member twice, no NaN or infinity, and no NUL or half a surrogate pair in any text.
    """
    text = content.decode("utf-8")
    if "\\" not in text and "[" not in text and text.count("{") == 1:
        flat = _parse_flat(text)
        if flat is not None:
            return flat
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(content)
    value: Any = None
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        end = -1
    if end != len(text):  # white space around it, or not JSON: the slower way, which tells them apart
        value = _decode(text)
    if type(value) is not dict:
        raise ValueError("not a JSON object")
    if "\\u" in text:
        _check_escapes(value)
    return cast("dict[str, Any]", value)


def _parse_flat(text: str) -> dict[str, Any] | None:
    """Most headers and claims: one object of texts and numbers. None for what the slower way has to tell apart.

    Without a backslash each quotation mark begins or ends a text, and each text is a name or a value: one too many is
    the name of a member that another one of the same name replaced.
    """
    try:
        value, end = _scan_flat(text, 0)
    except StopIteration:
        return None
    if end != len(text) or type(value) is not dict:
        return None
    found = cast("dict[str, Any]", value)
    if text.count('"') != 2 * (len(found) + list(map(type, found.values())).count(str)):
        raise ValueError("a member is given twice")
    return found


def _check_depth(content: bytes) -> None:
    depth = 0
    for byte in _STRING.sub(b"", content):
        if byte in b"{[":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError("nested too deep")
        elif byte in b"}]":
            depth -= 1


def _check_escapes(value: object) -> None:
    # Only an escape can bring a NUL or a lone surrogate: the raw forms are refused by the parser and by UTF-8.
    if isinstance(value, str):
        value.encode("utf-8")  # a lone surrogate has no encoding: UnicodeEncodeError is a ValueError
        if "\0" in value:
            raise ValueError("contains NUL")
    elif isinstance(value, dict):
        for name, member in value.items():
            _check_escapes(name)
            _check_escapes(member)
    elif isinstance(value, list):
        for member in value:
            _check_escapes(member)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is given twice")
    return members


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
_decode = _DECODER.decode
# An attribute of every decoder, which the type stubs leave out: `raw_decode` without the wrapping.
_scan: Callable[[str, int], tuple[Any, int]] = vars(_DECODER)["scan_once"]
_scan_flat: Callable[[str, int], tuple[Any, int]] = vars(json.JSONDecoder(parse_constant=_refuse))["scan_once"]
