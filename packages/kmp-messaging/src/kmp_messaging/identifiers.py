"""Identifiers that sort by the time they were made: UUID version 7 (RFC 9562, section 5.7)."""

from __future__ import annotations

import random
import time

__all__ = ["new_id"]

_SPAN = 1 << 47


class _Clock:
    """The last millisecond, the text that all its identifiers share, and a counter behind it (RFC 9562, method 1)."""

    millisecond = 0
    prefix = ""
    counter = 0


def new_id() -> str:
    """An identifier that is greater than every earlier one of this process, and shared with no other process."""
    millisecond = time.time_ns() // 1_000_000
    if millisecond > _Clock.millisecond or _Clock.counter >= 2 * _SPAN - 1:
        _begin(max(millisecond, _Clock.millisecond + 1))
    _Clock.counter += 1
    return f"{_Clock.prefix}{_Clock.counter:012x}"


def _begin(millisecond: int) -> None:
    # `random` is seeded by the system, and again in a forked child; nothing here is a secret.
    bits = random.getrandbits(26)
    text = f"{millisecond:012x}"
    _Clock.millisecond = millisecond
    _Clock.prefix = f"{text[:8]}-{text[8:]}-7{bits >> 14:03x}-{0x8000 | (bits & 0x3FFF):04x}-"
    _Clock.counter = random.getrandbits(47)
