"""Publishing: calls that come while a transaction runs share the next one, so many small ones go as fast as one."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from kmp_core.deadlines import Timeout, detached, within
from kmp_core.errors import DeadlineExceeded, Overloaded
from kmp_messaging.embedded.log import append, backlog, trim
from kmp_messaging.embedded.store import Store
from kmp_messaging.settings import BusSettings

__all__ = ["Content", "Publisher"]

Content = dict[str, list[tuple[str | None, bytes]]]
"""Encoded events with their keys, by topic, in the order of publication."""

_LARGEST_TRANSACTION = 8 * 1024**2
_PAUSE = 0.02


@dataclass(slots=True)
class _Batch:
    """Encoded events by slot, in order."""

    slots: dict[int, list[bytes]] = field(default_factory=dict)
    topics: dict[int, tuple[int, ...]] = field(default_factory=dict)
    size: int = 0

    def add(self, other: _Batch) -> None:
        for slot, contents in other.slots.items():
            self.slots.setdefault(slot, []).extend(contents)
        self.topics.update(other.topics)
        self.size += other.size


@dataclass(slots=True, eq=False)
class _Call:
    """A call that waits for its turn; once it is `sent`, it shares the fate of a transaction."""

    batch: _Batch
    ends: float | None
    done: asyncio.Future[None]
    sent: bool = False


class Publisher:
    """Writes encoded events; `wake` is called with the topics after each commit."""

    def __init__(self, store: Store, settings: BusSettings, wake: Callable[[Container[int]], None]) -> None:
        self._store = store
        self._settings = settings
        self._wake = wake
        self._queue: deque[_Call] = deque()
        self._busy = False
        self._flushing: asyncio.Task[None] | None = None

    async def publish(self, content: Content, timeout: Timeout) -> None:
        """Return once all is committed. On `DeadlineExceeded`, `outcome_unknown` tells whether it may be yet.

        Raises `Overloaded` where the backlog was full and handlers made no room in time.
        """
        seconds = within(timeout, self._settings.publish_timeout)
        ends = None if seconds is None else time.monotonic() + seconds
        batch = await self._batch(content, seconds)
        full: Overloaded | None = None
        while True:
            try:
                await self._submit(batch, ends)
            except Overloaded as error:
                if ends is not None and time.monotonic() + _PAUSE >= ends:
                    raise
                full = error
                await asyncio.sleep(_PAUSE)  # until handlers have made room
            except DeadlineExceeded as error:
                if full is None or error.outcome_unknown:
                    raise
                raise full from error  # the last look had no time left; why there was none is what the caller may know
            else:
                return

    async def _batch(self, content: Content, seconds: float | None) -> _Batch:
        batch = _Batch()
        for name, events in content.items():
            topic = await self._store.topic(name, timeout=seconds)
            batch.topics[topic.id] = topic.slots
            topic.next_turn()
            known, slots = topic.keys, batch.slots
            for key, encoded in events:
                slot = known.get(key) or topic.slot_of(key)  # type: ignore[arg-type]
                found = slots.get(slot)
                if found is None:
                    slots[slot] = [encoded]
                else:
                    found.append(encoded)
            batch.size += sum(len(encoded) for _, encoded in events)
        return batch

    async def _submit(self, batch: _Batch, ends: float | None) -> None:
        if self._busy and self._store.path is not None:
            await self._wait(_Call(batch, ends, asyncio.get_running_loop().create_future()))
            return
        self._busy = True
        try:
            await self._write(batch, ends)
        finally:
            self._busy = False
            if self._queue:
                self._start_flushing()

    async def _wait(self, call: _Call) -> None:
        self._queue.append(call)
        left = None if call.ends is None else max(0.0, call.ends - time.monotonic())
        try:
            done, _ = await asyncio.wait((call.done,), timeout=left)
        except asyncio.CancelledError:
            self._withdraw(call)
            raise
        if not done:
            if self._withdraw(call):
                raise DeadlineExceeded("no turn came in time; nothing was written", backend="sqlite")
            message = "the time is over while the transaction is under way"
            raise DeadlineExceeded(message, backend="sqlite", outcome_unknown=True)
        call.done.result()

    def _withdraw(self, call: _Call) -> bool:
        call.done.cancel()
        if call.sent:
            return False
        self._queue.remove(call)
        return True

    def _start_flushing(self) -> None:
        self._busy = True
        self._flushing = asyncio.create_task(self._flush(), name="kmp-bus-publish", context=detached())

    async def _flush(self) -> None:
        try:
            while self._queue:
                await self._flush_some()
        finally:
            self._busy = False

    async def _flush_some(self) -> None:
        calls: list[_Call] = []
        batch = _Batch()
        while self._queue and batch.size < _LARGEST_TRANSACTION:
            call = self._queue.popleft()
            call.sent = True
            calls.append(call)
            batch.add(call.batch)
        limits = [call.ends for call in calls]
        error: Exception | None = None
        try:
            await self._write(batch, None if None in limits else max(end for end in limits if end is not None))
        except Exception as failure:
            error = failure
        for call in calls:
            if call.done.done():
                continue
            if error is None:
                call.done.set_result(None)
            else:
                call.done.set_exception(error)

    async def _write(self, batch: _Batch, ends: float | None) -> None:
        left = None if ends is None else max(0.0, ends - time.monotonic())
        await self._store.keep(lambda connection: self._append(connection, batch), timeout=left)
        self._wake(batch.topics)

    def _append(self, connection: sqlite3.Connection, batch: _Batch) -> None:
        append(connection, batch.slots)
        kept = self._settings.retention_size
        for topic, slots in batch.topics.items():
            size = connection.execute("SELECT sum(bytes) FROM slot WHERE topic = ?", (topic,)).fetchone()[0]
            if size > kept:
                older_than = time.time() - self._settings.retention.total_seconds()
                for slot in batch.slots.keys() & set(slots):
                    trim(connection, slot, older_than=older_than, size=kept // len(slots))
            if size > self._settings.backlog_size:
                for slot in slots:
                    trim(connection, slot, older_than=0.0, size=0)
                backlog(connection, (topic,), self._settings.backlog_size)
