"""A deadline that travels with the task: set it once, and every call below it ends in time.

    async with deadline("2s"):
        await store.append(row)          # has at most what is left of the two seconds
        await cache.get("x", timeout=1)  # has at most one second, and at most what is left

A call's own `timeout=` can only shorten what the caller above it allowed. Between services the remaining time travels
in the `grpc-timeout` header, in the notation of gRPC over HTTP/2 (its protocol document, "Timeout").
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from datetime import timedelta
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, PlainSerializer

from kmp_core.errors import DeadlineExceeded, InvalidInput

__all__ = [
    "Duration",
    "Timeout",
    "bounded",
    "deadline",
    "detached",
    "duration",
    "format_timeout",
    "parse_timeout",
    "remaining",
    "within",
]

T = TypeVar("T")

Timeout = float | timedelta | str | None
"""Seconds, a `timedelta`, or text such as `"250ms"`, `"2s"`, `"5m"`, `"1h"`, `"90d"`; None takes the default."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", re.ASCII)
_MAX_SECONDS = 100 * 366 * 86400.0

_deadline: ContextVar[float | None] = ContextVar("kmp_deadline", default=None)


def duration(value: float | timedelta | str, *, field: str = "duration") -> timedelta:
    """Read a duration the way every KMP call and setting does.

    Takes seconds, a `timedelta`, or a number with one of the units ms, s, m, h, d, w. Raises `InvalidInput` naming
    `field` for anything else, for a negative or an infinite one, and for one beyond a century.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        match = _TEXT.fullmatch(value)
        if match is None:
            raise InvalidInput(field, "is not a duration", example='"250ms", "30s", "5m", "1h" or "90d"')
        seconds = float(match[1]) * _UNITS[match[2]]
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(field, f"is not a duration but {type(value).__name__}", example='"30s"')
    else:
        seconds = float(value)
    if not math.isfinite(seconds) or not 0 <= seconds <= _MAX_SECONDS:
        raise InvalidInput(field, "must lie between zero and a hundred years", example='"30s"')
    return value if isinstance(value, timedelta) else timedelta(seconds=seconds)


def _validate(value: object) -> timedelta:
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII):
        value = float(value)
    try:
        return duration(value)  # type: ignore[arg-type]
    except InvalidInput as error:
        raise ValueError(f"{error.problem}; for example {error.example}") from None


def _serialize(value: timedelta) -> str:
    seconds = value.total_seconds()
    for unit in ("w", "d", "h", "m", "s"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{int(seconds // _UNITS[unit])}{unit}"
    return f"{seconds:g}s"


Duration = Annotated[timedelta, BeforeValidator(_validate), PlainSerializer(_serialize, when_used="json")]
"""A settings or model field that takes `"90d"`, seconds or a `timedelta`, and holds a `timedelta`."""


def remaining() -> float | None:
    """Seconds left for this task, zero when the time is over, or None where nobody set a deadline."""
    at = _deadline.get()
    return None if at is None else max(0.0, at - time.monotonic())


def within(timeout: Timeout, default: Timeout = None) -> float | None:
    """Seconds that a call may take: its `timeout`, else `default`, and never more than what is left of the task's."""
    chosen = default if timeout is None else timeout
    own = None if chosen is None else duration(chosen, field="timeout").total_seconds()
    left = remaining()
    if own is None or left is None:
        return left if own is None else own
    return min(own, left)


@asynccontextmanager
async def deadline(
    timeout: Timeout,
    *,
    what: str = "the call",
    backend: str | None = None,
    fresh: bool = False,
    outcome_unknown: bool = True,
) -> AsyncIterator[None]:
    """Give everything inside the block this much time, or what is left of an outer deadline where that is less.

    Raises `DeadlineExceeded` when the time is over; around what only reads, say that no outcome is unknown. A
    cancellation from outside passes through as it is. With `fresh` the outer deadline does not count: letting go needs
    its own time, most of all when the time was over.
    """
    outer = _deadline.set(None) if fresh else None
    try:
        seconds = within(timeout)
    finally:
        if outer is not None:
            _deadline.reset(outer)
    if seconds is None:
        yield
        return
    token = _deadline.set(time.monotonic() + seconds)
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            yield
    except TimeoutError as error:
        if isinstance(error, DeadlineExceeded) or not scope.expired():
            raise
        # Nobody here knows how far a block came that changes something.
        message = f"{what} took longer than the {seconds:.3g} s it was allowed"
        raise DeadlineExceeded(message, backend=backend, outcome_unknown=outcome_unknown) from error
    finally:
        _deadline.reset(token)


async def bounded(
    awaitable: Awaitable[T],
    timeout: Timeout,
    *,
    what: str,
    backend: str | None = None,
    outcome_unknown: bool = True,
) -> T:
    """Await with a deadline; a short form of `deadline` for one awaitable."""
    async with deadline(timeout, what=what, backend=backend, outcome_unknown=outcome_unknown):
        return await awaitable


def detached() -> Context:
    """A copy of this task's context without its deadline, for a task that outlives the call that starts it."""
    context = copy_context()
    context.run(_deadline.set, None)
    return context


_GRPC_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_GRPC = re.compile(r"(\d{1,8})([HMSmun])", re.ASCII)


def format_timeout(seconds: float) -> str:
    """The value of a `grpc-timeout` header: at most eight digits and a unit, rounded down so that nobody gains time."""
    for unit in ("u", "m", "S", "M", "H"):
        count = int(seconds / _GRPC_UNITS[unit])
        if count < 100_000_000:
            return f"{count}{unit}"
    return "99999999H"


def parse_timeout(value: str) -> float | None:
    """Seconds in a `grpc-timeout` header, or None where the header is not one (a stranger's header is no error)."""
    match = _GRPC.fullmatch(value)
    return None if match is None else int(match[1]) * _GRPC_UNITS[match[2]]
