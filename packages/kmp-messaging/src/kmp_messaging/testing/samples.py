"""The events that the suites publish, and a way to wait for what they cause."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from kmp_messaging.models import Event
from kmp_messaging.values import DeadLetter

__all__ = ["Noted", "caught_up", "letters_of", "until"]


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


async def letters_of(bus: Any, group: str | None = None) -> list[DeadLetter]:
    """The dead letters; skips the test where the provider keeps none."""
    if "dead_letters" not in bus.abilities:
        pytest.skip("the provider declares no dead letters")
    return [letter async for letter in bus.dead_letters(group=group)]
