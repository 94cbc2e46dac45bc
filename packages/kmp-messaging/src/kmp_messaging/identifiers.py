"""Identifiers that sort by the time they were made: UUID version 7 (RFC 9562, section 5.7)."""

from __future__ import annotations

import random
import time

__all__ = ["new_id"]

_LAST = (1 << 48) - 1
_now = time.time_ns


class _Clock:
    """The last millisecond, the text that all its identifiers share, and a counter behind it (RFC 9562, method 1)."""

    millisecond = 0
    prefix = ""
    counter = 0


def new_id() -> str:
    """An identifier that is greater than every earlier one of this process, and shared with no other process."""
    clock = _Clock
    millisecond = _now() // 1_000_000
    if millisecond > clock.millisecond or clock.counter >= _LAST:
        _begin(max(millisecond, clock.millisecond + 1))
    clock.counter = counter = clock.counter + 1
    return "%s%012x" % (clock.prefix, counter)  # noqa: UP031 - half the time of any other way, once for each event


def _begin(millisecond: int) -> None:
    # `random` is seeded by the system, and again in a forked child; nothing here is a secret.
    bits = random.getrandbits(26)
    text = f"{millisecond:012x}"
    _Clock.millisecond = millisecond
    _Clock.prefix = f"{text[:8]}-{text[8:]}-7{bits >> 14:03x}-{0x8000 | (bits & 0x3FFF):04x}-"
    _Clock.counter = random.getrandbits(47)
