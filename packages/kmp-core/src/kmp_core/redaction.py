"""Keep secrets out of what people read: by type, by the name they are kept under, and by what they look like.

>>> redact({"user": "ada", "password": "hunter2", "dsn": "see redis://app:hunter2@cache/0"})
{'user': 'ada', 'password': '***', 'dsn': '***'}
"""

from __future__ import annotations

import dataclasses
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

_NAME = (
    r"(?:(?:passwd|password|passphrase|pwd|secret|credential)s?|signature|token|(?<=[?&])sig"
    r"|(?:api|access|private|signing)[_-]?key)"
)
_QUOTED = r"""b?(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
# Each pattern begins at a place that no earlier attempt can have run across, so that a long line costs linear time.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)([^\s\"'<>]*)")
_TOKEN = re.compile(r"(?<![\w-])eyJ[\w-]*\.[\w-]+(?:\.[\w-]*){1,3}")
_SCHEME = re.compile(r"\b(Bearer|Basic|Digest|ApiKey)\s+[^\s\"',;]{4,}", re.IGNORECASE)
_HEADER = re.compile(r"(?i)((?:authorization|cookie)s?\\*[\"']?\s*[=:]\s*)\\*(?:b?[\"'])?[^\r\n\"']+")
_ASSIGNED = re.compile(rf"(?i)({_NAME}\\*[\"']?\s*[=:]\s*)({_QUOTED}|(?:\\*[\"'])?[^\s,;&\"')}}\]]+)")
_PAIR = re.compile(rf"(?i)((?:{_NAME}|authorization|cookie)[\"'],\s*)({_QUOTED})")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def names_secret(key: str) -> bool:
    """Whether what is kept under this name is taken for a secret: `password`, `accessToken`, `X-Api-Key`, ..."""
    parts = [part.lower() for part in _PARTS.findall(key)]
    joined = "".join(parts)
    return not _WORDS.isdisjoint(parts) or any(word in joined for word in _RUN_TOGETHER)


def redact_text(text: str) -> str:
    """The text without what looks like a secret: credentials in URLs, tokens, assignments, private keys."""
    if "://" in text and "@" in text:
        text = _ADDRESS.sub(_without_userinfo, text)
    if "eyJ" in text:
        text = _TOKEN.sub(MASK, text)
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(MASK, text)
    text = _SCHEME.sub(rf"\1 {MASK}", text)
    for pattern in (_HEADER, _ASSIGNED, _PAIR):
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def _without_userinfo(match: re.Match[str]) -> str:
    _, at, rest = match[2].rpartition("@")  # the last one: a password may hold others
    return f"{match[1]}{MASK}@{rest}" if at else match[0]


def redact(value: Any, *, depth: int = 0) -> Any:
    """The value without its secrets, as plain types; what is nested too deeply becomes `…`."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, _SECRETS) or type(value).__name__ == "Secret":
        return MASK
    value = _opened(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return "…" if depth >= _DEEPEST else _redact_inside(value, depth + 1)
    return redact_text(value if isinstance(value, str) else _text(value))


def _opened(value: Any) -> Any:
    """What has named fields, as a mapping: their names tell which of them are secret."""
    if isinstance(value, BaseModel):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value) if field.repr}
    # The parts of an address show its password where the whole is known by its looks.
    for name in ("geturl", "_asdict") if isinstance(value, tuple) else ():
        whole = getattr(value, name, None)
        if callable(whole):
            return whole()
    return value


def _redact_inside(value: Any, depth: int) -> Any:
    if not isinstance(value, Mapping):
        if _is_pair(value):  # one of a list of headers
            return [_text(value[0]), MASK]
        return [redact(item, depth=depth) for item in value]
    return {
        redact_text(str(key)): MASK if names_secret(str(key)) and item is not None else redact(item, depth=depth)
        for key, item in value.items()
    }


def _is_pair(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2 or not isinstance(value[1], str | bytes):
        return False
    return isinstance(value[0], str | bytes) and len(value[0]) <= 100 and names_secret(str(value[0]))


def _text(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    try:
        return str(value) if isinstance(value, BaseException) else repr(value)
    except Exception as error:  # a broken repr must not lose the line
        return f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
