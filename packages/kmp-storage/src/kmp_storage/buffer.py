"""Many small appends made into few large ones, without losing any and without growing beyond bounds.

    async with BufferedWriter(store, rows=5_000, age="1s") as writer:
        await writer.append(Delay(...))          # returns when the row is stored

`append` returns, or raises, when what it brought was stored or was not: nothing is acknowledged that could be lost.
To go on without waiting, `submit`: await the receipt that it gives, or leave it to `flush` and to the end of the block,
which raise what went wrong with rows whose receipt nobody awaited.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from kmp_core.deadlines import Timeout, deadline, detached, duration
from kmp_core.errors import BackendError, DeadlineExceeded, InvalidInput, KmpError, LifecycleError
from kmp_storage.models import Measurement
from kmp_storage.protocols import TimeSeriesStore

__all__ = ["BufferedWriter", "Receipt"]

_CUT_SECONDS = 1.0
"""For a store to let go of a write that is given up."""


@dataclass(slots=True, eq=False)
class _Entry:
    rows: Sequence[Measurement]
    size: int
    outcome: asyncio.Future[None]
    since: float = 0.0
    told: bool = False


class Receipt:
    """For rows on their way: awaiting it returns when they are stored, and raises why they are not."""

    __slots__ = ("_entry",)

    def __init__(self, entry: _Entry) -> None:
        self._entry = entry

    def done(self) -> bool:
        """Whether it is known if they were stored."""
        return self._entry.outcome.done()

    def __await__(self) -> Generator[Any, None, None]:
        return self._told().__await__()

    async def _told(self) -> None:
        # Not the future itself: a caller that is cancelled must take nothing back from the others.
        await asyncio.wait((self._entry.outcome,))
        self._entry.told = True
        self._entry.outcome.result()


class BufferedWriter:
    """Writes when `rows` or `bytes_` have come together, or the oldest has waited for `age`.

    Whoever appends waits while twice that much is on its way (back-pressure). Where a batch is refused because of one
    caller's rows, it is taken apart until it is known whose they are: they alone hear of it, all others are stored.
    `timeout` bounds each write, and leaving the block as a whole.
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
        self._seconds = duration("30s" if timeout is None else timeout, field="timeout").total_seconds()
        self._entries: list[_Entry] = []
        self._moving: list[_Entry] = []
        self._rows = self._bytes = self._moving_rows = self._moving_bytes = 0
        self._some = asyncio.Event()
        self._due = asyncio.Event()
        self._room = asyncio.Condition()
        self._writer: asyncio.Task[None] | None = None
        self._closing = False
        self._failed: deque[_Entry] = deque()
        self._failed_rows = 0
        self._forgotten: _Entry | None = None

    @property
    def pending(self) -> int:
        """Rows that are not stored yet."""
        return self._rows + self._moving_rows

    @property
    def not_stored(self) -> tuple[Measurement, ...]:
        """What was submitted and not stored, the last of it where it is more than the writer holds on its way.

        Where its error has `outcome_unknown` it may be stored after all.
        """
        return tuple(row for entry in self._failed for row in entry.rows)

    async def append(self, *measurements: Measurement, timeout: Timeout = None) -> None:
        """Return when they are stored. A cancelled or expired call may still be stored: its rows are on their way."""
        async with deadline(timeout, what="a buffered append"):
            entry = await self._hand_over(measurements, told=True)
            await Receipt(entry)

    async def submit(self, *measurements: Measurement, timeout: Timeout = None) -> Receipt:
        """Hand rows over, waiting for room only; the receipt tells whether they were stored."""
        async with deadline(timeout, what="waiting for room in a buffered writer", outcome_unknown=False):
            return Receipt(await self._hand_over(measurements))

    async def flush(self, *, timeout: Timeout = None) -> None:
        """Return when all that was handed over so far is stored.

        Raises the first failure among it, and among what failed before and nobody was told.
        """
        entries = [*self._untold(), *self._moving, *self._entries]
        if self._entries:
            self._due.set()
        async with deadline(timeout, what="flushing a buffered writer"):
            if entries:
                await asyncio.wait([entry.outcome for entry in entries])
        self._raise_first(entries)

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
        self._some.set()
        self._due.set()
        async with self._room:
            self._room.notify_all()
        try:
            await asyncio.wait((self._writer,), timeout=self._seconds)
        finally:
            # Also where whoever leaves is cancelled: nobody waits for ever, and all hear what became of their rows.
            if not self._writer.done():
                self._writer.cancel()
                await asyncio.wait((self._writer,), timeout=_CUT_SECONDS)
            self._give_up()
        self._raise_first(self._untold(), beside=error)

    async def _hand_over(self, measurements: Sequence[Measurement], *, told: bool = False) -> _Entry:
        if self._writer is None or self._closing:
            raise LifecycleError("the writer is not open: use it inside 'async with'")
        loop = asyncio.get_running_loop()
        entry = _Entry(measurements, sum(map(_size, measurements)), loop.create_future(), told=told)
        async with self._room:
            await self._room.wait_for(self._has_room)
            if self._closing:
                raise LifecycleError("the writer is closing")
            entry.since = loop.time()
            self._entries.append(entry)
            self._rows += len(measurements)
            self._bytes += entry.size
            self._some.set()
            if self._rows >= self._most_rows or self._bytes >= self._most_bytes:
                self._due.set()
        return entry

    def _has_room(self) -> bool:
        full = self.pending >= 2 * self._most_rows or self._bytes + self._moving_bytes >= 2 * self._most_bytes
        return self._closing or not full

    async def _run(self) -> None:
        try:
            await self._write_all()
        finally:
            # However it ended: nobody is left waiting for it.
            self._closing = True
            self._give_up()
            async with self._room:
                self._room.notify_all()

    async def _write_all(self) -> None:
        while True:
            await self._some.wait()
            if not self._entries:
                return
            if not self._closing:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._entries[0].since + self._age):
                        await self._due.wait()
            await self._write()

    async def _write(self) -> None:
        self._moving, self._entries = self._entries, []
        self._moving_rows, self._moving_bytes, self._rows, self._bytes = self._rows, self._bytes, 0, 0
        self._due.clear()
        if not self._closing:
            self._some.clear()
        await self._store_together(self._moving)
        self._moving = []
        async with self._room:
            self._moving_rows = self._moving_bytes = 0
            self._room.notify_all()

    async def _store_together(self, entries: list[_Entry]) -> None:
        parts = [entries]
        while parts:
            part = parts.pop()
            error = await self._try([row for entry in part for row in entry.rows])
            if isinstance(error, BackendError):
                # It would fail for the others too, each in its time.
                for entry in [*part, *(entry for later in reversed(parts) for entry in later)]:
                    self._settle(entry, error)
                return
            if error is None or len(part) == 1:
                for entry in part:
                    self._settle(entry, error)
            else:
                # Somebody's rows are wrong, and the batch left nothing behind: find out whose.
                half = len(part) // 2
                parts += [part[half:], part[:half]]

    async def _try(self, rows: Sequence[Measurement]) -> Exception | None:
        try:
            await self._store.append(*rows, timeout=self._seconds)
        except Exception as error:  # even a fault of ours must reach somebody, and not end the task in silence
            return error
        return None

    def _settle(self, entry: _Entry, error: Exception | None) -> None:
        if entry.outcome.done():
            return
        if error is None:
            entry.outcome.set_result(None)
            return
        entry.outcome.set_exception(error)
        entry.outcome.exception()  # somebody may never look, and flush tells too: that is no reason for a warning
        if entry.told:
            return
        self._failed.append(entry)
        self._failed_rows += len(entry.rows)
        while self._failed_rows > 2 * self._most_rows and len(self._failed) > 1:
            oldest = self._failed.popleft()
            self._failed_rows -= len(oldest.rows)
            if not oldest.told and self._forgotten is None:
                self._forgotten = oldest

    def _untold(self) -> list[_Entry]:
        forgotten, self._forgotten = self._forgotten, None
        return [entry for entry in (forgotten, *self._failed) if entry is not None and not entry.told]

    def _give_up(self) -> None:
        for entries, unknown in ((self._moving, True), (self._entries, False)):
            for entry in entries:
                message = f"the writer was left after {self._seconds:.3g} s, or by force, before these rows were stored"
                self._settle(entry, DeadlineExceeded(message, outcome_unknown=unknown))
        self._moving, self._entries = [], []
        self._rows = self._bytes = self._moving_rows = self._moving_bytes = 0

    def _raise_first(self, entries: Sequence[_Entry], *, beside: BaseException | None = None) -> None:
        failed = [entry for entry in entries if entry.outcome.exception() is not None]
        if not failed:
            return
        for entry in failed:
            entry.told = True
        error = failed[0].outcome.exception()
        assert error is not None
        count = sum(len(entry.rows) for entry in failed)
        note = f"{count} rows that were handed to the buffered writer were not stored"
        if beside is not None:
            beside.add_note(f"{note}: {error if isinstance(error, KmpError) else type(error).__name__}")
            return
        error.add_note(note)
        raise error


def _size(row: Measurement) -> int:
    return 64 + sum(len(value) for value in row.__dict__.values() if isinstance(value, str | bytes))
