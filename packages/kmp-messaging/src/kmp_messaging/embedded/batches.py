"""Handlers of batches: many events in one call, tried again together once, and then one by one.

So the one bad event of a batch becomes a dead letter, and the others do not. While a batch waits to be tried again,
batches of other keys go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable

from kmp_messaging.embedded.items import Batch, Item, Poison
from kmp_messaging.embedded.workers import Workers

__all__ = ["BatchWorkers"]


class BatchWorkers(Workers):
    """One worker that hands out batches."""

    async def _advance(self, number: int) -> None:
        items = await self._take_many(self._declared[0].size or 1)
        if items:
            await self._retry_batch(Batch(items, items[0].route), number)

    async def _resume(self, waiting: Item | Batch, number: int) -> None:
        if isinstance(waiting, Batch) and time.monotonic() < self.lease_ends:
            await self._retry_batch(waiting, number)
        else:
            await super()._resume(waiting, number)

    async def _take_many(self, size: int) -> list[Item]:
        items: list[Item] = []
        held: set[str] = set()
        while self.ready and len(items) < size:
            item = self._take()
            if item is None:
                continue
            if isinstance(item, Poison):
                await self._bury(item.raw, item.error, item.error.attributes, 1)
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
