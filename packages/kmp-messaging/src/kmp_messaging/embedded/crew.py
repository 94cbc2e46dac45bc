"""Tasks that call handlers: woken when there is work, bounded in time, and ended in order.

They live as long as the subscription. A handler that never suspends is run through without a turn of the event loop.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from kmp_core.deadlines import detached
from kmp_core.errors import DeadlineExceeded
from kmp_messaging.embedded.items import Batch, Item, Raw
from kmp_messaging.tracing import attach, detach

__all__ = ["Crew"]

_OVER = 0.0


class Crew(ABC):
    """The workers of one group in one topic. `hungry` is called when there is room for more events."""

    def __init__(self, *, hungry: Callable[[], None]) -> None:
        self.ready: deque[Raw] = deque()
        self.lease_ends = _OVER
        self.handler_timeout = 300.0
        self.broken: BaseException | None = None
        self._hungry = hungry
        self._resumed: deque[Item | Batch] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._began: list[float] = []
        self._overdue: set[int] = set()
        self._stopping = False

    @abstractmethod
    async def _advance(self, number: int) -> None:
        """Handle some of what is ready."""

    @abstractmethod
    async def _resume(self, waiting: Item | Batch, number: int) -> None:
        """Handle what had to wait."""

    def start(self, count: int) -> None:
        """Have at least so many workers."""
        while len(self._tasks) < count:
            self._began.append(0.0)
            work = self._work(len(self._tasks))
            self._tasks.append(asyncio.create_task(work, name="kmp-bus-worker", context=detached()))

    def wake(self) -> None:
        """There is something to do."""
        while self._idle:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)

    def cancel_overdue(self) -> None:
        """End handlers that take longer than they may."""
        limit = time.monotonic() - self.handler_timeout
        for number, began in enumerate(self._began):
            if 0 < began < limit and number not in self._overdue:
                self._overdue.add(number)
                self._tasks[number].cancel()

    async def stop(self, seconds: float) -> None:
        """Begin nothing new, let handlers end for so long, cancel the rest."""
        self._stopping = True
        self.ready.clear()
        self._resumed.clear()
        self.wake()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, seconds))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, number: int) -> None:
        try:
            while not self._stopping:
                if self._resumed:
                    if time.monotonic() < self.lease_ends:
                        await self._resume(self._resumed.popleft(), number)
                    else:
                        await self._rest()
                elif self.ready and time.monotonic() < self.lease_ends:
                    await self._advance(number)
                else:
                    await self._rest()
                if self.ready or self._resumed:
                    await asyncio.sleep(0)
        except Exception as error:
            # Nothing of ours should come here; it must not look like an idle subscription.
            self.broken = error
            self._hungry()

    async def _rest(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._idle.append(waiting)
        self._hungry()
        await waiting

    async def _call(self, call: Any, traceparent: str | None, number: int) -> Exception | None:
        """Run a handler; returns what it raised."""
        token = None if traceparent is None else attach(traceparent)
        self._began[number] = time.monotonic()
        try:
            await call
        except BaseException as error:
            return self._outcome(error, number)
        finally:
            self._began[number] = 0.0
            if token is not None:
                detach(token)
        return None

    def _outcome(self, error: BaseException, number: int) -> Exception:
        """What a handler's exception counts as; one that is meant for the worker itself is raised."""
        if isinstance(error, Exception):
            return error
        task = asyncio.current_task()
        if not isinstance(error, asyncio.CancelledError) or task is None:
            raise error
        if number in self._overdue:
            self._overdue.discard(number)
            task.uncancel()
            return DeadlineExceeded(f"the handler took longer than {self.handler_timeout:.3g} s")
        if task.cancelling():
            raise error
        return RuntimeError("the handler awaited something that was cancelled")

    def _again(self, waiting: Item | Batch) -> None:
        if not self._stopping:
            self._resumed.append(waiting)
            self.wake()
