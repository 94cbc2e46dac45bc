"""Many small appends made into few large ones, without losing any and without growing beyond bounds.

    async with BufferedWriter(store, rows=5_000, age="1s") as writer:
        await writer.append(Delay(...))          # returns when the row is stored

`append` returns, or raises, when what it brought was stored or was not: nothing is acknowledged that could be lost.
To go on without waiting, keep the task and await it later, or `submit` and `flush`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kmp_core.deadlines import Timeout, deadline, detached, duration
from kmp_core.errors import BackendError, InvalidInput, LifecycleError
from kmp_storage.models import Measurement
from kmp_storage.protocols import TimeSeriesStore

__all__ = ["BufferedWriter"]


@dataclass(slots=True)
class _Entry:
    rows: Sequence[Measurement]
    size: int
    stored: asyncio.Future[None]


class BufferedWriter:
    """Writes when `rows` or `bytes_` have come together, or the oldest has waited for `age`.

    Whoever appends waits while twice that much is on its way (back-pressure). Where a batch is refused because of one
    caller's rows, its calls are stored one by one, so that the error reaches the caller whose rows they are.
    """

    def __init__(
        self,
        store: TimeSeriesStore,
        *,
        rows: int = 5_000,
        bytes_: int = 4 << 20,
        age: Timeout = "1s",
        timeout: Timeout = "30s",
    ) -> None:
        if rows < 1 or bytes_ < 1:
            raise InvalidInput("rows" if rows < 1 else "bytes_", "must be at least 1", example="5000")
        self._store = store
        self._most_rows, self._most_bytes = rows, bytes_
        self._age = duration("1s" if age is None else age, field="age").total_seconds()
        self._timeout = timeout
        self._entries: list[_Entry] = []
        self._rows = self._bytes = self._moving_rows = self._moving_bytes = 0
        self._due = asyncio.Event()
        self._room = asyncio.Condition()
        self._writer: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def pending(self) -> int:
        """Rows that are not stored yet."""
        return self._rows + self._moving_rows

    async def append(self, *measurements: Measurement, timeout: Timeout = None) -> None:
        """Return when they are stored. A cancelled or expired call may still be stored: its rows are on their way."""
        async with deadline(timeout, what="a buffered append"):
            await asyncio.shield(await self.submit(*measurements))

    async def submit(self, *measurements: Measurement) -> asyncio.Future[None]:
        """Hand rows over, waiting for room only; the future tells whether they were stored."""
        if self._writer is None or self._closing:
            raise LifecycleError("the writer is not open: use it inside 'async with'")
        entry = _Entry(measurements, sum(map(_size, measurements)), asyncio.get_running_loop().create_future())
        # Somebody may never look; that is no reason for a warning, because flush tells too.
        entry.stored.add_done_callback(_look)
        async with self._room:
            await self._room.wait_for(self._has_room)
            if self._closing:
                raise LifecycleError("the writer is closing")
            self._entries.append(entry)
            self._rows += len(measurements)
            self._bytes += entry.size
            if self._rows >= self._most_rows or self._bytes >= self._most_bytes:
                self._due.set()
        return entry.stored

    async def flush(self) -> None:
        """Return when all that was handed over so far is stored. Raises the first failure among it."""
        waiting = [entry.stored for entry in self._entries]
        self._due.set()
        for stored in waiting:
            await asyncio.shield(stored)

    async def __aenter__(self) -> Self:
        if self._writer is not None:
            raise LifecycleError("a writer is opened once; make a new one")
        self._writer = asyncio.get_running_loop().create_task(self._run(), context=detached())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._writer is not None
        self._closing = True
        self._due.set()
        async with self._room:
            self._room.notify_all()
        await asyncio.shield(self._writer)

    def _has_room(self) -> bool:
        full = self.pending >= 2 * self._most_rows or self._bytes + self._moving_bytes >= 2 * self._most_bytes
        return self._closing or not full

    async def _run(self) -> None:
        while not (self._closing and not self._entries):
            try:
                async with asyncio.timeout(self._age):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            if self._entries:
                await self._write()
            if self._closing:
                self._due.set()

    async def _write(self) -> None:
        async with self._room:
            entries, self._entries = self._entries, []
            self._moving_rows, self._moving_bytes, self._rows, self._bytes = self._rows, self._bytes, 0, 0
        try:
            await self._store_together(entries)
        finally:
            async with self._room:
                self._moving_rows = self._moving_bytes = 0
                self._room.notify_all()

    async def _store_together(self, entries: list[_Entry]) -> None:
        error = await self._try([row for entry in entries for row in entry.rows])
        if error is None or isinstance(error, BackendError) or len(entries) == 1:
            for entry in entries:
                _settle(entry, error)
            return
        # Somebody's rows are wrong, and the batch left nothing behind: find out whose.
        for entry in entries:
            _settle(entry, await self._try(entry.rows))

    async def _try(self, rows: Sequence[Measurement]) -> Exception | None:
        try:
            await self._store.append(*rows, timeout=self._timeout)
        except Exception as error:  # even a fault of ours must reach somebody, and not end the task in silence
            return error
        return None


def _settle(entry: _Entry, error: Exception | None) -> None:
    if entry.stored.done():
        return
    if error is None:
        entry.stored.set_result(None)
    else:
        entry.stored.set_exception(error)


def _look(stored: asyncio.Future[None]) -> None:
    if not stored.cancelled():
        stored.exception()


def _size(row: Measurement) -> int:
    return 64 + sum(len(value) for value in row.__dict__.values() if isinstance(value, str | bytes))
