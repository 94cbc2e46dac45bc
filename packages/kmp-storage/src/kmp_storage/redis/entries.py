"""What a cache's keys and values are called and look like in Redis.

| key | holds |
|---|---|
| `<project>:v:{.<key>}` | a value, or the digits of a counter |
| `<project>:l:{.<key>}` | who loads that key (a lease), or `-` where a loader found nothing and that is remembered |
| `<project>:k:{.<name>}` | who holds that lock |
| `<project>:t:{.<name>}` | the last fencing token of that lock |
| `<project>:r:{.<name>}` | a rate limit's window |

What belongs together has one hash tag, so that a transaction over it works on a Redis Cluster too. The project's
channel `<project>:changed` carries the keys that were written.

A value begins with a byte that says how it is kept: 1, the value follows; 2, eight bytes follow, the milliseconds that
it has left when it is due for refreshing, then the value. A whole number stands as its digits, which INCRBY can count.
Whatever begins otherwise was written by a later version and counts as missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kmp_core.errors import InvalidInput
from kmp_core.project import Project, backend_name
from kmp_storage.cache import check_value

__all__ = ["NOTHING", "Found", "Keys", "decode", "encode", "is_number"]

NOTHING = b"-"
"""Stands where a lease would, after a loader found nothing."""

_PLAIN, _DUE = b"\x01", b"\x02"
_NUMBER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_INT64 = 1 << 63


@dataclass(frozen=True, slots=True)
class Found:
    """A live value; times in seconds. `left` is None where it has no end, `due` where it is not refreshed early."""

    value: bytes
    left: float | None = None
    due: float | None = None

    @property
    def is_due(self) -> bool:
        """Whether the time has come to refresh it."""
        return self.due is not None and self.left is not None and self.left <= self.due


class Keys:
    """The names in Redis of what one project keeps."""

    __slots__ = ("_lease", "_limit", "_lock", "_token", "_value", "channel", "tracked")

    def __init__(self, project: Project) -> None:
        name = backend_name(project, "redis")
        self.channel = f"{name}:changed"
        self._value, self._lease, self._lock, self._token, self._limit = (f"{name}:{kind}:{{." for kind in "vlktr")
        self.tracked = ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._value)

    def value(self, key: str) -> bytes:
        """Where a value is."""
        return f"{self._value}{key}}}".encode()

    def key_of(self, name: bytes) -> str | None:
        """The key of a value's name in Redis; None for another name."""
        text = name.decode(errors="replace")
        return text[len(self._value) : -1] if text.startswith(self._value) else None

    def lease(self, key: str) -> bytes:
        """Where it stands who loads it."""
        return f"{self._lease}{key}}}".encode()

    def lock(self, name: str) -> bytes:
        """Where it stands who holds a lock."""
        return f"{self._lock}{name}}}".encode()

    def token(self, name: str) -> bytes:
        """Where a lock's last fencing token is."""
        return f"{self._token}{name}}}".encode()

    def limit(self, name: str) -> bytes:
        """Where a rate limit's window is."""
        return f"{self._limit}{name}}}".encode()


def is_number(content: bytes) -> bool:
    """Whether INCRBY can count on from here: digits as Redis writes them, within 64 bits."""
    return _NUMBER.fullmatch(content) is not None and -_INT64 <= int(content) < _INT64


def encode(value: bytes, key: str, *, most: int, due: float | None = None) -> bytes:
    """A value as it is stored. Raises `InvalidInput` for what is not bytes, or more of them than `most`."""
    check_value(value, key)
    if len(value) > most:
        problem = f"has {len(value)} bytes, more than the {most} that one entry may have"
        raise InvalidInput("value", problem, example="KMP_STORAGE_REDIS_MAX_VALUE_BYTES", key=key)
    if is_number(value):
        return value
    if due is None:
        return _PLAIN + value
    return _DUE + int(due * 1000).to_bytes(8, "big") + value


def decode(content: bytes | None, left_ms: int = -1) -> Found | None:
    """What was stored, with the milliseconds that it has left (as PTTL tells); None where it counts as missing."""
    if content is None:
        return None
    left = left_ms / 1000 if left_ms >= 0 else None
    kind = content[:1]
    if kind == _PLAIN:
        return Found(content[1:], left)
    if kind == _DUE and len(content) >= 9:
        return Found(content[9:], left, int.from_bytes(content[1:9], "big") / 1000)
    return Found(content, left) if is_number(content) else None
