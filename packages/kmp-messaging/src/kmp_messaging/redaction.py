"""Words about a failure that may be stored and shown: the error's class, and its message without what may be secret."""

from __future__ import annotations

import re

from pydantic import ValidationError

__all__ = ["cause_of", "detail_of"]

_LONGEST = 500
_PATTERNS = (
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]+", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"\beyJ[\w-]*\.[\w-]+\.[\w-]*"), "***"),
    (re.compile(r"(?<=://)[^\s/@]+@"), "***@"),
    (
        re.compile(
            r"([\w-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|credential|authorization)[\w-]*['\"]?\s*[=:]\s*)"
            r"(?:'[^']*'|\"[^\"]*\"|[^\s,;&)}\]]+)",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)


def cause_of(error: BaseException) -> str:
    """The class, with its module unless it is Python's own."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def detail_of(error: BaseException) -> str:
    """The message, bounded, without tokens, passwords and the values that pydantic would quote."""
    if isinstance(error, ValidationError):
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        text = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults[:10])
    else:
        text = str(error)
    text = text[: 4 * _LONGEST]
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text[:_LONGEST]
