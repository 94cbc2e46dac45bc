"""Handlers at work: many keys at a time, each key in order, and nobody waits for a key that is being retried.

Workers are tasks that live as long as the subscription. A handler that never suspends is run through without a turn
of the event loop; a key keeps others of the same key waiting only while its handler is suspended or to be retried.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from kmp_core.deadlines import detached
from kmp_core.errors import DeadlineExceeded
from kmp_messaging.embedded.failures import Failures
from kmp_messaging.embedded.items import Batch, Item, Raw, Route
from kmp_messaging.envelope import Decoder
from kmp_messaging.errors import HandlerKilled, UndeliverableEvent
from kmp_messaging.models import Event
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
        self.handled = 0
        self.broken: BaseException | None = None
        self._decoder = decoder
        self._failures = failures
        self._hungry = hungry
        self._low = low
        self._resumed: deque[Item | Batch] = deque()
        self._busy: dict[str, deque[Item] | None] = {}
        self._routes: dict[type[Event], Route | None] = {}
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
            turns = 0
            while not self._stopping:
                if self._resumed:
                    await self._resume(self._resumed.popleft(), number)
                elif self.ready and time.monotonic() < self.lease_ends:
                    await self._next(number)
                else:
                    await self._rest()
                turns += 1
                if turns % _TURN == 0:
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

    async def _next(self, number: int) -> None:
        batch = self._declared[0].size if self._declared else None
        if batch is None:
            item = await self._take()
            if item is not None:
                await self._handle(item, number)
        else:
            await self._handle_batch(await self._take_many(batch), number)

    async def _take(self) -> Item | None:
        """The next event whose key is free, with its key made busy; None where there was nothing to hand out."""
        ready = self.ready
        raw = ready.popleft()
        if len(ready) == self._low:
            self._hungry()
        partition, position, content = raw
        if not partition.active:
            return None
        try:
            event, envelope = self._decoder.decode(content)
        except UndeliverableEvent as error:
            await self._bury(raw, error, error.attributes, 1)
            return None
        route = None if event is None else self._route(type(event))
        if event is None or route is None:
            partition.finish(position)
            return None
        key = envelope.get("partitionkey")
        item = Item(partition, position, content, event, envelope, key, route)
        if key is not None:
            if key in self._busy:
                waiting = self._busy[key]
                if waiting is None:
                    waiting = self._busy[key] = deque()
                waiting.append(item)
                return None
            self._busy[key] = None
        return item

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
            if not partition.active and not partition.running:
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
            self._done(item)
        else:
            await self._retry_or_give_up(item, error)

    async def _call(self, call: Any, traceparent: str | None, number: int) -> BaseException | None:
        """Run a handler; returns what it raised."""
        token = None if traceparent is None else attach(traceparent)
        self._began[number] = time.monotonic()
        try:
            await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if number in self._overdue and task is not None:
                task.uncancel()
                return DeadlineExceeded(f"the handler took longer than {self.handler_timeout:.3g} s")
            if task is not None and task.cancelling():
                raise
            return RuntimeError("the handler awaited something that was cancelled")
        except Exception as error:
            return error
        finally:
            self._began[number] = 0.0
            self._overdue.discard(number)
            if token is not None:
                detach(token)
        return None

    def _done(self, item: Item) -> None:
        item.partition.finish(item.position)
        self.handled += 1
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
        raw = (item.partition, item.position, item.content)
        await self._bury(raw, error, item.envelope, item.attempts)
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
        elif isinstance(waiting, Batch):
            await self._retry_batch(waiting, number)
        elif waiting.partition.active:
            await self._handle(waiting, number)
        else:
            self._free(waiting.key)

    def _route(self, cls: type[Event]) -> Route | None:
        try:
            return self._routes[cls]
        except KeyError:
            routes = {route.event: route for route in self._declared}
            found = next((routes[base] for base in cls.__mro__ if base in routes), None)
            self._routes[cls] = found
            return found

    # -- batches

    async def _take_many(self, size: int) -> list[Item]:
        items: list[Item] = []
        held: set[str] = set()
        while self.ready and len(items) < size:
            item = await self._take()
            if item is None:
                continue
            if item.position <= item.partition.suspect:
                # Alone. The batch holds none of its key: all of a slot that is under suspicion comes first.
                self._resumed.append(item)
                break
            items.append(item)
            if item.key is not None:
                # Others of the same key may be in the same batch: they are handled in order, together.
                del self._busy[item.key]
                held.add(item.key)
        for key in held:
            self._busy.setdefault(key, None)
        return items

    async def _handle_batch(self, items: list[Item], number: int) -> None:
        if items:
            await self._retry_batch(Batch(items, items[0].route), number)

    async def _retry_batch(self, batch: Batch, number: int) -> None:
        items = [item for item in batch.items if item.partition.active]
        self._free_all(item for item in batch.items if not item.partition.active)
        if not items:
            return
        for item in items:
            item.partition.running += 1
        try:
            events = [item.event for item in items]
            error = await self._call(batch.route.handler(events), items[0].envelope.get("traceparent"), number)
            if error is None:
                for item in items:
                    item.partition.finish(item.position)
                self.handled += len(items)
                self._free_all(items)
            else:
                await self._batch_failed(Batch(items, batch.route, batch.failures + 1))
        finally:
            for item in items:
                item.partition.running -= 1

    async def _batch_failed(self, batch: Batch) -> None:
        await self._failures.count(list(batch.items))
        if batch.failures <= min(1, batch.route.retries - 1):
            asyncio.get_running_loop().call_later(self._failures.delay(batch.failures), self._again, batch)
            return
        # One by one, each key in order: the first of a key goes on, the others wait before what came later.
        later: dict[str, deque[Item]] = {}
        for item in batch.items:
            if item.key is None:
                self._resumed.append(item)
            elif item.key in later:
                later[item.key].append(item)
            else:
                later[item.key] = deque()
                self._resumed.append(item)
        for key, waiting in later.items():
            waiting.extend(self._busy[key] or ())
            self._busy[key] = waiting or None

    def _free_all(self, items: Iterable[Item]) -> None:
        for key in {item.key for item in items if item.key is not None}:
            self._free(key)
