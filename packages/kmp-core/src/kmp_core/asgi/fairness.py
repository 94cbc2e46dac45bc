"""Share a fixed number of places between callers, so that none of them can starve the others."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from kmp_core.errors import InvalidInput, Overloaded

__all__ = ["FairQueue"]

_WEIGHT = 0.1  # of one more observation in the running mean of how long a place is held


class FairQueue:
    """Places for work and a bounded queue before them, one line for each caller.

    A free place goes to the caller in line that holds the fewest. A caller never holds more than `share` of the
    places. A newcomer to a full queue is refused, unless another caller's line is longer than its own by two or more:
    then the last in that line is refused instead. For one event loop.
    """

    def __init__(self, places: int, waiting: int, *, share: float = 1.0) -> None:
        if not 0 < share <= 1:
            raise InvalidInput("share", "must be more than 0 and at most 1", example="0.8")
        self.places = places
        self.running = 0
        self.waiting = 0
        self._bound = waiting
        self._each = max(1, math.floor(places * share)) if places else 0
        self._held: dict[str, int] = {}
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._mean = 0.0

    async def enter(self, caller: str, *, timeout: float, deadline: float | None = None) -> float:
        """Take a place, waiting `timeout` seconds at most, and return the moment, which `leave` wants.

        Raises `Overloaded` when there is none to be had in time, and at once when the `deadline` (seconds from now)
        is likely to be over before there is one.
        """
        if self.running < self.places and self._held.get(caller, 0) < self._each:
            self._take(caller)
            return time.perf_counter()
        if deadline is not None and self._expected_wait(caller) > deadline:
            raise self._refusal(caller)
        self._make_room(caller)
        await self._wait_in_line(caller, timeout)
        return time.perf_counter()

    def leave(self, caller: str, began: float) -> None:
        """Give the place back; whoever is next gets it at once."""
        self._mean += _WEIGHT * (time.perf_counter() - began - self._mean)
        self._give_back(caller)

    def _give_back(self, caller: str) -> None:
        self.running -= 1
        held = self._held[caller] - 1
        if held:
            self._held[caller] = held
        else:
            del self._held[caller]
        self._admit()

    def _take(self, caller: str) -> None:
        self.running += 1
        self._held[caller] = self._held.get(caller, 0) + 1

    def _admit(self) -> None:
        while self.running < self.places:
            # A dict keeps the order in which callers began to wait: `min` takes the first among equals.
            ready = [caller for caller in self._lines if self._held.get(caller, 0) < self._each]
            if not ready:
                return
            caller = min(ready, key=lambda name: self._held.get(name, 0))
            future = self._lines[caller].popleft()
            line = self._lines.pop(caller)
            if line:
                self._lines[caller] = line  # behind the others
            self.waiting -= 1
            if not future.done():  # cancelled in this turn, and its task has not run yet
                self._take(caller)
                future.set_result(None)

    def _make_room(self, caller: str) -> None:
        if self.waiting < self._bound:
            return
        longest = max(self._lines, key=lambda name: len(self._lines[name]), default=None)
        own = len(self._lines.get(caller, ()))
        if longest is None or len(self._lines[longest]) < own + 2:
            raise self._refusal(caller)
        future = self._lines[longest][-1]
        self._drop(longest, future)
        if not future.done():
            future.set_exception(self._refusal(longest))

    async def _wait_in_line(self, caller: str, timeout: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(caller, deque()).append(future)
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout):
                await future
        except BaseException as error:
            # The place may have come in the same turn as the time-out or the cancellation: pass it on.
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give_back(caller)
            else:
                self._drop(caller, future)
            if isinstance(error, TimeoutError):
                raise self._refusal(caller) from None
            raise

    def _drop(self, caller: str, future: asyncio.Future[None]) -> None:
        line = self._lines.get(caller)
        if line is not None and future in line:
            line.remove(future)
            self.waiting -= 1
            if not line:
                del self._lines[caller]

    def _expected_wait(self, caller: str) -> float:
        # Each caller in line gets its turn in turn: before ours come as many of every other as we have ourselves.
        own = len(self._lines.get(caller, ())) + 1
        ahead = sum(min(len(line), own) for name, line in self._lines.items() if name != caller) + own
        return self._mean * ahead / max(1, self.places)

    def _refusal(self, caller: str) -> Overloaded:
        return Overloaded("The service has too much to do", retry_after=max(1.0, self._expected_wait(caller)))
