"""Handlers at work: many keys at a time, each key in order, and nobody waits for a key that is being retried.

Workers are tasks that live as long as the subscription. A handler that never suspends is run through without a turn
of the event loop; a key keeps others of the same key waiting only while its handler is suspended or to be retried.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from kmp_core.deadlines import detached
from kmp_core.errors import DeadlineExceeded
from kmp_messaging.embedded.failures import Failures
from kmp_messaging.embedded.items import Batch, Item, Raw, Route
from kmp_messaging.envelope import Decoder
from kmp_messaging.errors import HandlerKilled, UndeliverableEvent
from kmp_messaging.tracing import attach, detach

__all__ = ["Workers"]

_TURN = 64
_OVER = 0.0


class Workers:
    """The workers of one group in one topic. `hungry` is called when there is room for more events."""

    def __init__(self, decoder: Decoder, failures: Failures, *, hungry: Callable[[], None], low: int) -> None:
        self.ready: deque[Raw] = deque()
        self.lease_ends = _OVER
        self.handler_timeout = 300.0
        self.broken: BaseException | None = None
        self._decoder = decoder
        self._failures = failures
        self._hungry = hungry
        self._low = low
        self._resumed: deque[Item | Batch] = deque()
        self._busy: dict[str, deque[Item] | None] = {}
        self._routes: dict[type[Any], Route | None] = {}
        self._declared: list[Route] = []
        self._idle: deque[asyncio.Future[None]] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._began: list[float] = []
        self._overdue: set[int] = set()
        self._careful = asyncio.Lock()
        self._stopping = False

    # -- what others ask of them

    def set_routes(self, routes: list[Route]) -> None:
        """Handle the classes of these routes; the most derived class wins."""
        self._declared = routes
        self._routes = {}

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

    # -- the work

    async def _work(self, number: int) -> None:
        try:
            while not self._stopping:
                if self._resumed:
                    await self._resume(self._resumed.popleft(), number)
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

    async def _advance(self, number: int) -> None:  # noqa: PLR0912 - inner calls would cost more than the work
        """Hand out a run of events, in one loop that is gone through for every event."""
        ready, busy, began, decode = self.ready, self._busy, self._began, self._decoder.decode
        for _ in range(_TURN):
            now = time.monotonic()
            if not ready or self._resumed or now >= self.lease_ends or self._stopping:
                return
            raw = ready.popleft()
            if len(ready) == self._low:
                self._hungry()
            partition, position, content = raw
            if not partition.active:
                continue
            try:
                event, envelope = decode(content)
            except UndeliverableEvent as error:
                await self._bury(raw, error, error.attributes, 1)
                continue
            route = self._routes.get(type(event)) or self._route(type(event))
            if route is None:
                partition.finish(position)
                continue
            key = envelope.get("partitionkey")
            if key is not None:
                if key in busy:
                    self._defer(Item(*raw, event, envelope, key, route))
                    continue
                busy[key] = None
            if partition.attempts or position <= partition.suspect or "traceparent" in envelope:
                await self._handle(Item(*raw, event, envelope, key, route), number)
                continue
            partition.running += 1
            began[number] = now
            try:
                await route.handler(event)
            except BaseException as error:
                failure = self._outcome(error, number)
                await self._failed(Item(*raw, event, envelope, key, route), failure)
            else:
                partition.finish(position)
                if key is not None:
                    if busy[key] is None:
                        del busy[key]
                    else:
                        self._free(key)
            finally:
                began[number] = 0.0
                partition.running -= 1
                if partition.gone():
                    self._hungry()

    def _defer(self, item: Item) -> None:
        assert item.key is not None
        waiting = self._busy[item.key]
        if waiting is None:
            waiting = self._busy[item.key] = deque()
        waiting.append(item)

    async def _handle(self, item: Item, number: int) -> None:
        partition = item.partition
        partition.running += 1
        try:
            if item.position <= partition.suspect:
                await self._handle_carefully(item, number)
                return
            if item.position in partition.attempts:
                item.envelope["attempt"] = item.attempts + 1
            error = await self._call(item.route.call(item.event), item.envelope.get("traceparent"), number)
            if error is None:
                self._done(item)
            else:
                await self._failed(item, error)
        finally:
            partition.running -= 1
            if partition.gone():
                self._hungry()

    async def _handle_carefully(self, item: Item, number: int) -> None:
        # A process was killed while it had this event: counted before the handler, one event at a time, so that an
        # event that kills its process is given up in the end, and takes no innocent one with it.
        async with self._careful:
            if item.attempts > item.route.retries:
                killed = HandlerKilled("The process ended while it handled this event")
                await self._give_up(item, killed)
                return
            if not await self._failures.count([item]):
                self._free(item.key)
                return
            item.envelope["attempt"] = item.attempts
            error = await self._call(item.route.call(item.event), item.envelope.get("traceparent"), number)
            if error is None:
                await self._failures.forget(item)
        if error is None:
            self._done(item)
        else:
            await self._retry_or_give_up(item, error)

    async def _call(self, call: Any, traceparent: str | None, number: int) -> BaseException | None:
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

    def _done(self, item: Item) -> None:
        item.partition.finish(item.position)
        if item.key is not None:
            self._free(item.key)

    async def _failed(self, item: Item, error: BaseException) -> None:
        if await self._failures.count([item]):
            await self._retry_or_give_up(item, error)
        else:
            self._free(item.key)

    async def _retry_or_give_up(self, item: Item, error: BaseException) -> None:
        if item.attempts > item.route.retries:
            await self._give_up(item, error)
        else:
            delay = self._failures.delay(item.attempts)
            asyncio.get_running_loop().call_later(delay, self._again, item)

    async def _give_up(self, item: Item, error: BaseException) -> None:
        await self._bury(item.raw, error, item.envelope, item.attempts)
        self._free(item.key)

    async def _bury(self, raw: Raw, error: BaseException, envelope: Any, attempts: int) -> None:
        partition, position, _ = raw
        partition.running += 1
        try:
            if await self._failures.bury(raw, error, envelope, attempts):
                partition.finish(position)
        finally:
            partition.running -= 1

    def _again(self, waiting: Item | Batch) -> None:
        if not self._stopping:
            self._resumed.append(waiting)
            self.wake()

    def _free(self, key: str | None) -> None:
        """The key's next event may be handled."""
        if key is None:
            return
        waiting = self._busy[key]
        while waiting:
            item = waiting.popleft()
            if item.partition.active:
                self._resumed.append(item)
                return
        del self._busy[key]

    async def _resume(self, waiting: Item | Batch, number: int) -> None:
        if time.monotonic() >= self.lease_ends:
            self._resumed.append(waiting)
            await self._rest()
            return
        assert isinstance(waiting, Item)
        if waiting.partition.active:
            await self._handle(waiting, number)
        else:
            self._free(waiting.key)

    def _route(self, cls: type[Any]) -> Route | None:
        try:
            return self._routes[cls]
        except KeyError:
            routes = {route.event: route for route in self._declared}
            found = next((routes[base] for base in cls.__mro__ if base in routes), None)
            self._routes[cls] = found  # None for a class that nobody handles here, and for no event at all
            return found
