"""Handlers at work: many keys at a time, each key in order, and nobody waits for a key that is being retried.

A key keeps others of the same key waiting only while its handler is suspended or to be retried.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from kmp_messaging.embedded.crew import Crew
from kmp_messaging.embedded.failures import Failures
from kmp_messaging.embedded.items import Batch, Item, Raw, Route
from kmp_messaging.embedded.measures import ProcessingTime
from kmp_messaging.envelope import Decoder
from kmp_messaging.errors import HandlerKilled, UndeliverableEvent

__all__ = ["Workers"]

_TURN = 64


class Workers(Crew):
    """Workers that hand out single events."""

    def __init__(
        self, decoder: Decoder, failures: Failures, measure: ProcessingTime, *, hungry: Callable[[], None], low: int
    ) -> None:
        super().__init__(hungry=hungry)
        self._decoder = decoder
        self._failures = failures
        self._measure = measure
        self._low = low
        self._busy: dict[str, deque[Item] | None] = {}
        self._routes: dict[type[Any], Route | None] = {}
        self._declared: list[Route] = []
        self._careful = asyncio.Lock()

    def set_routes(self, routes: list[Route]) -> None:
        """Handle the classes of these routes; the most derived class wins."""
        self._declared = routes
        self._routes = {}

    def _route(self, cls: type[Any]) -> Route | None:
        try:
            return self._routes[cls]
        except KeyError:
            routes = {route.event: route for route in self._declared}
            found = next((routes[base] for base in cls.__mro__ if base in routes), None)
            self._routes[cls] = found  # None for a class that nobody handles here, and for no event at all
            return found

    # -- handing out

    async def _advance(self, number: int) -> None:
        began = time.monotonic()
        await self._hand_out(number)
        self._measure.record(began)

    async def _resume(self, waiting: Item | Batch, number: int) -> None:
        assert isinstance(waiting, Item)
        if waiting.partition.active:
            began = time.monotonic()
            self._measure.record(began, await self._handle(waiting, number))
        else:
            self._free(waiting.key)

    async def _hand_out(self, number: int) -> None:  # noqa: PLR0912 - inner calls would cost more than the work
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

    # -- one event

    async def _handle(self, item: Item, number: int) -> Exception | None:
        """Call the handler, and see to what follows; returns what it raised."""
        partition = item.partition
        partition.running += 1
        try:
            if item.position <= partition.suspect:
                return await self._handle_carefully(item, number)
            if item.position in partition.attempts:
                item.envelope["attempt"] = item.attempts + 1
            error = await self._call(item.route.call(item.event), item.envelope.get("traceparent"), number)
            if error is None:
                self._done(item)
            else:
                await self._failed(item, error)
            return error
        finally:
            partition.running -= 1
            if partition.gone():
                self._hungry()

    async def _handle_carefully(self, item: Item, number: int) -> Exception | None:
        # Two processes in a row were killed while they had this event: noted before the handler, one event at a time,
        # so that an event that kills its process is given up in the end, and takes no innocent one with it.
        async with self._careful:
            if item.deaths >= max(1, item.route.retries):
                killed = HandlerKilled("The process ended while it handled this event")
                await self._give_up(item, killed)
                return killed
            if not await self._failures.note_death(item):
                self._free(item.key)
                return None
            item.envelope["attempt"] = item.attempts + item.deaths
            error = await self._call(item.route.call(item.event), item.envelope.get("traceparent"), number)
            await self._failures.forget_death(item)
        if error is None:
            self._done(item)
        else:
            await self._failed(item, error)
        return error

    def _done(self, item: Item) -> None:
        item.partition.finish(item.position)
        self._free(item.key)

    async def _failed(self, item: Item, error: BaseException) -> None:
        if not await self._failures.count([item]):
            self._free(item.key)
        elif item.attempts > item.route.retries:
            await self._give_up(item, error)
        else:
            delay = self._failures.delay(item.attempts)
            asyncio.get_running_loop().call_later(delay, self._again, item)

    async def _give_up(self, item: Item, error: BaseException) -> None:
        await self._bury(item.raw, error, item.envelope, item.attempts + item.deaths)
        self._free(item.key)

    async def _bury(self, raw: Raw, error: BaseException, envelope: Any, attempts: int) -> None:
        partition, position, _ = raw
        partition.running += 1
        try:
            if await self._failures.bury(raw, error, envelope, attempts):
                partition.finish(position)
        finally:
            partition.running -= 1

    # -- keys

    def _defer(self, item: Item) -> None:
        assert item.key is not None
        waiting = self._busy[item.key]
        if waiting is None:
            waiting = self._busy[item.key] = deque()
        waiting.append(item)

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
