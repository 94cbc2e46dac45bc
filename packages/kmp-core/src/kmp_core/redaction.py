"""Keep secrets out of what people read: by type, by the name they are kept under, and by what they look like.

>>> redact({"user": "ada", "password": "hunter2", "dsn": "see redis://app:hunter2@cache/0"})
{'user': 'ada', 'password': '***', 'dsn': '***'}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

__all__ = ["MASK", "names_secret", "redact", "redact_text"]

MASK = "***"
_DEEPEST = 8
_PLAIN = (bool, int, float, type(None))
_SECRETS = (SecretStr, SecretBytes, Secret)

_WORDS = frozenset(
    re.findall(
        r"\w+",
        "auth authorization bearer cookie cookies credential credentials dsn jwt passphrase passwd password passwords "
        "pwd secret secrets signature token tokens",
    )
)
_RUN_TOGETHER = ("accesskey", "apikey", "passphrase", "passwd", "password", "privatekey", "secret", "signingkey")
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_USERINFO = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s\"'<>]*@")
_TOKEN = re.compile(r"\beyJ[\w-]*\.[\w-]+(?:\.[\w-]*){1,3}")
_SCHEME = re.compile(r"\b(Bearer|Basic|Digest|ApiKey)\s+[^\s\"',;]{4,}", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"(?i)\b([\w.-]*(?:passwd|password|passphrase|pwd|secret|api[_-]?key|access[_-]?key|private[_-]?key|token))"
    r"([\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&\"')}\]]+)"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def names_secret(key: str) -> bool:
    """Whether what is kept under this name is taken for a secret: `password`, `accessToken`, `X-Api-Key`, ..."""
    parts = [part.lower() for part in _PARTS.findall(key)]
    joined = "".join(parts)
    return not _WORDS.isdisjoint(parts) or any(word in joined for word in _RUN_TOGETHER)


def redact_text(text: str) -> str:
    """The text without what looks like a secret: credentials in URLs, tokens, assignments, private keys."""
    if "://" in text and "@" in text:
        text = _USERINFO.sub(rf"\1{MASK}@", text)
    if "eyJ" in text:
        text = _TOKEN.sub(MASK, text)
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(MASK, text)
    text = _SCHEME.sub(rf"\1 {MASK}", text)
    return _ASSIGNED.sub(rf"\1\2{MASK}", text)


def redact(value: Any, *, depth: int = 0) -> Any:
    """The value without its secrets, as plain types; what is nested too deeply becomes `…`."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, _SECRETS) or type(value).__name__ == "Secret":
        return MASK
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return "…" if depth >= _DEEPEST else _redact_inside(value, depth + 1)
    return redact_text(value if isinstance(value, str) else _text(value))


def _redact_inside(value: Any, depth: int) -> Any:
    if not isinstance(value, Mapping):
        return [redact(item, depth=depth) for item in value]
    return {
        str(key): MASK if names_secret(str(key)) and item is not None else redact(item, depth=depth)
        for key, item in value.items()
    }


def _text(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    try:
        return str(value) if isinstance(value, BaseException) else repr(value)
    except Exception as error:  # a broken repr must not lose the line
        return f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
