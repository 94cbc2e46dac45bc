"""Handlers of batches: many events in one call, tried again together once, and then one by one.

So the one bad event of a batch becomes a dead letter, and the others do not. While a batch waits to be tried again,
batches of other keys go on.
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
        if isinstance(waiting, Batch) and time.monotonic() < self.lease_ends:
            await self._retry_batch(waiting, number)
        else:
            await super()._resume(waiting, number)

    async def _take_many(self, size: int) -> list[_Taken]:
        """Events whose keys are free. None is made busy: nobody else hands out while the one worker is at it."""
        ready, busy, decode = self.ready, self._busy, self._decoder.decode
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
            route = self._routes.get(type(event)) or self._route(type(event))
            if route is None:
                partition.finish(position)
                continue
            key = envelope.get("partitionkey")
            if key in busy:
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
        try:
            events = [found[3] for found in taken]
            error = await self._call(route.handler(events), taken[0][4].get("traceparent"), number)
            if error is None:
                for found in taken:
                    found[0].finish(found[1])
                return
            items = [Item(*found, route) for found in taken]
            for item in items:
                if item.key is not None:
                    self._busy[item.key] = None
            await self._batch_failed(Batch(items, route, 1))
        finally:
            for partition in partitions:
                partition.running -= 1
            if any(partition.gone() for partition in partitions):
                self._hungry()

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
                self._free_all(items)
            else:
                await self._batch_failed(Batch(items, batch.route, batch.failures + 1))
        finally:
            for item in items:
                item.partition.running -= 1
            if any(item.partition.gone() for item in items):
                self._hungry()

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
