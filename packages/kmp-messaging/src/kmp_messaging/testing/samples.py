"""The events that the suites publish, and a way to wait for what they cause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from kmp_messaging.models import Event

__all__ = ["Noted", "caught_up", "until"]


class Noted(Event, topic="contract.noted", key="who"):
    """Somebody noted a number."""

    who: str | None
    number: int = 0


async def until(condition: Callable[[], bool], *, within: float = 20.0, what: str = "the condition") -> None:
    """Wait until it holds; it is the assertion, so it fails with words when the time is over."""
    ends = time.monotonic() + within
    while not condition():
        assert time.monotonic() < ends, f"{what} did not come true within {within:g} s"
        await asyncio.sleep(0.005)


async def caught_up(bus: Any, group: str, *, within: float = 20.0) -> None:
    """Wait until the group has committed everything."""
    ends = time.monotonic() + within
    while (lag := await bus.lag(Noted, group=group)).events:
        assert time.monotonic() < ends, f"the group {group} is still behind by {lag.events} events"
        await asyncio.sleep(0.005)
