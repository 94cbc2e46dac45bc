"""Handlers of batches: many events in one call, tried again together once, and then looked through by halves.

So the one bad event of a batch is found in about log2 n calls and becomes a dead letter, and the others do not. While
a batch waits to be tried again, batches of other keys go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from kmp_messaging.embedded.items import Batch, Item, Route
from kmp_messaging.embedded.partition import Partition
from kmp_messaging.embedded.workers import Workers
from kmp_messaging.errors import UndeliverableEvent

__all__ = ["BatchWorkers"]

_Taken = tuple[Partition, int, bytes, Any, dict[str, Any], str | None]


class BatchWorkers(Workers):
    """One worker that hands out batches."""

    async def _advance(self, number: int) -> None:
        route = self._declared[0]
        taken = await self._take_many(route.size or 1)
        if taken:
            await self._first_try(taken, route, number)

    async def _resume(self, waiting: Item | Batch, number: int) -> None:
        if isinstance(waiting, Item):
            await super()._resume(waiting, number)
            return
        lost = [item for item in waiting.items if not item.partition.active]
        if lost:
            waiting.items = [item for item in waiting.items if item.partition.active]
            self._free_all(lost)
        if not waiting.items:
            return
        if waiting.part and len(waiting.items) == 1:
            await super()._resume(waiting.items[0], number)
        elif waiting.bad:
            self._halve(waiting)
        else:
            await self._try_again(waiting, number)

    async def _take_many(self, size: int) -> list[_Taken]:
        """Events whose keys are free. None is made busy: nobody else hands out while the one worker is at it."""
        ready, busy, decode, routes = self.ready, self._busy, self._decoder.decode, self._routes
        taken: list[_Taken] = []
        while ready and len(taken) < size:
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
            cls = event.__class__
            route = routes.get(cls) or self._route(cls)
            if route is None:
                partition.finish(position)
                continue
            key = envelope.get("partitionkey")
            if busy and key in busy:
                self._defer(Item(*raw, event, envelope, key, route))
            elif position <= partition.suspect:
                # Alone. The batch holds none of its key: all of a slot that is under suspicion comes first.
                if key is not None:
                    busy[key] = None
                self._resumed.append(Item(*raw, event, envelope, key, route))
                break
            else:
                taken.append((partition, position, content, event, envelope, key))
        return taken

    async def _first_try(self, taken: list[_Taken], route: Route, number: int) -> None:
        partitions = {found[0] for found in taken}
        for partition in partitions:
            partition.running += 1
            if partition.attempts:
                _tell_attempts(Item(*found, route) for found in taken if found[0] is partition)
        try:
            error = await self._call_batch(route, [found[3] for found in taken], taken[0][4], number)
            if error is None:
                for found in taken:
                    found[0].finish(found[1])
                return
            items = [Item(*found, route) for found in taken]
            for item in items:
                if item.key is not None:
                    self._busy[item.key] = None
            await self._batch_failed(Batch(items, route))
        finally:
            for partition in partitions:
                partition.running -= 1
            if any(partition.gone() for partition in partitions):
                self._hungry()

    async def _try_again(self, batch: Batch, number: int) -> None:
        partitions = {item.partition for item in batch.items}
        for partition in partitions:
            partition.running += 1
        _tell_attempts(batch.items)
        try:
            events = [item.event for item in batch.items]
            error = await self._call_batch(batch.route, events, batch.items[0].envelope, number)
            if error is not None:
                await self._batch_failed(batch)
                return
            for item in batch.items:
                item.partition.finish(item.position)
            if batch.rest is not None:
                batch.rest.bad = True
            self._free_all(batch.items)
        finally:
            for partition in partitions:
                partition.running -= 1
            if any(partition.gone() for partition in partitions):
                self._hungry()

    async def _call_batch(
        self, route: Route, events: list[Any], envelope: dict[str, Any], number: int
    ) -> Exception | None:
        began = time.monotonic()
        error = await self._call(route.handler(events), envelope.get("traceparent"), number)
        self._measure.record(began, error)
        return error

    # -- failures

    async def _batch_failed(self, batch: Batch) -> None:
        if batch.part:
            self._halve(batch)  # what is only looked through has been counted before
            return
        batch.failures += 1
        retries = batch.route.retries
        # Where a slot is lost, the events find out when it is their turn.
        await self._failures.count(batch.items)
        if batch.failures > min(1, retries - 1) or any(item.attempts > retries for item in batch.items):
            self._halve(batch)
            return
        self._hold_back({item.key for item in batch.items})
        asyncio.get_running_loop().call_later(self._failures.delay(batch.failures), self._again, batch)

    def _halve(self, batch: Batch) -> None:
        # Before all else that waits, the first half first: so each key keeps its order.
        middle = len(batch.items) // 2
        last = Batch(batch.items[middle:], batch.route, part=True)
        self._resumed.appendleft(last)
        if middle:
            self._resumed.appendleft(Batch(batch.items[:middle], batch.route, part=True, rest=last))

    async def _failed(self, item: Item, error: BaseException) -> None:
        self._hold_back({item.key})
        await super()._failed(item, error)

    def _hold_back(self, keys: set[str | None]) -> None:
        """Have what comes later of these keys wait until they are free."""
        held: dict[str, list[Item]] = {}
        for waiting in self._resumed:
            if isinstance(waiting, Batch) and any(item.key in keys for item in waiting.items):
                for item in waiting.items:
                    if item.key is not None and item.key in keys:
                        held.setdefault(item.key, []).append(item)
                waiting.items = [item for item in waiting.items if item.key is None or item.key not in keys]
        for key, items in held.items():
            self._busy[key] = deque([*items, *(self._busy[key] or ())])

    # -- keys

    def _free(self, key: str | None) -> None:
        self._free_keys({key})

    def _free_all(self, items: Iterable[Item]) -> None:
        self._free_keys({item.key for item in items})

    def _free_keys(self, keys: set[str | None]) -> None:
        """What waits of these keys may be handled: together, as one batch."""
        later = {item.key for waiting in self._resumed if isinstance(waiting, Batch) for item in waiting.items}
        together: list[Item] = []
        for key in keys - later:
            if key is None:
                continue
            waiting = deque(item for item in self._busy[key] or () if item.partition.active)
            if not waiting:
                del self._busy[key]
            elif waiting[0].position <= waiting[0].partition.suspect:
                self._resumed.append(waiting.popleft())
                self._busy[key] = waiting or None
            else:
                together.extend(waiting)
                self._busy[key] = None
        route = self._declared[0] if self._declared else None
        if together and route is not None:
            size = route.size or 1
            self._resumed.extend(
                Batch(together[start : start + size], route) for start in range(0, len(together), size)
            )


def _tell_attempts(items: Iterable[Item]) -> None:
    """Have each event say which attempt this is."""
    for item in items:
        if item.attempts:
            item.envelope["attempt"] = item.attempts + 1
