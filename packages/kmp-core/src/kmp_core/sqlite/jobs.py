"""Run blocking work in threads for coroutines that have deadlines and may be cancelled.

A job is given up in a way that leaves its connection clean: what has not begun never begins, and what runs is
interrupted and waited for, so that nothing of it happens after its caller has gone on.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from kmp_core.errors import DeadlineExceeded, LifecycleError

__all__ = ["Interrupted", "Job", "Jobs"]

T = TypeVar("T")

_LONGEST_PAUSE = 0.01


class Interrupted(Exception):
    """The caller does not wait any more: roll back."""


class Job:
    """One piece of work on its way through a thread."""

    __slots__ = ("_abandoned", "_connection", "_deadline", "_lock")

    def __init__(self, seconds: float | None) -> None:
        self._abandoned = False
        self._connection: sqlite3.Connection | None = None
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._lock = threading.Lock()

    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._abandoned or (self._deadline is not None and time.monotonic() >= self._deadline)

    def works_on(self, connection: sqlite3.Connection | None) -> None:
        """Tell what an interrupt must reach; None before the connection serves another job."""
        with self._lock:
            self._connection = connection

    def interrupt(self) -> None:
        """Stop the statement that is running, and see that none after it is committed."""
        self._abandoned = True
        with self._lock:
            if self._connection is not None:
                self._connection.interrupt()


class _Running(Generic[T]):
    """A job that was handed to a thread, seen from the event loop."""

    def __init__(self, threads: ThreadPoolExecutor, body: Callable[[Job], T], seconds: float | None) -> None:
        self.job = Job(seconds)
        self.inner: Future[T] = threads.submit(body, self.job)
        # The callback must not know this object: as a cycle they would keep the result until the next collection, and
        # a cursor among it would keep its connection's file open.
        self._ended = asyncio.get_running_loop().create_future()
        self.inner.add_done_callback(partial(_tell, self._ended))

    @property
    def ended(self) -> bool:
        return self._ended.done()

    async def wait(self, seconds: float | None) -> bool:
        """Wait until it is done; True where the caller was cancelled meanwhile."""
        try:
            await asyncio.wait((self._ended,), timeout=seconds)
        except asyncio.CancelledError:
            return True
        return False

    async def give_up(self) -> bool:
        """End the job, whatever it does; True where the caller was cancelled meanwhile."""
        if self.inner.cancel():
            return False
        # An interrupt reaches only the statement that is running, so it is repeated until the work has given up.
        cancelled, pause = False, 0.0
        while not self.ended:
            self.job.interrupt()
            cancelled = await self.wait(pause) or cancelled
            pause = min(_LONGEST_PAUSE, pause * 2 + 0.0005)
        return cancelled

    def result(self) -> T:
        """What the work returned, or raise what it raised; `Interrupted` where it never began."""
        if self.inner.cancelled():
            raise Interrupted
        return self.inner.result()


def _tell(ended: asyncio.Future[None], _: Future[Any]) -> None:
    # In the job's thread. A loop that is closed by now has nobody left to tell.
    with contextlib.suppress(RuntimeError):
        ended.get_loop().call_soon_threadsafe(_set, ended)


def _set(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


class Jobs:
    """The jobs under way of one database."""

    def __init__(self) -> None:
        self._running: set[_Running[Any]] = set()
        self.closed = False

    @property
    def under_way(self) -> bool:
        """Whether a thread may be at work on a connection."""
        return bool(self._running)

    async def run(self, threads: ThreadPoolExecutor, body: Callable[[Job], T], seconds: float | None) -> T:
        """Run `body` in a thread. Raises `DeadlineExceeded` when the time is over, and then nothing took effect."""
        running: _Running[T] = _Running(threads, body, seconds)
        self._running.add(running)
        try:
            cancelled = await running.wait(seconds)
            if not running.ended:
                cancelled = await running.give_up() or cancelled
        finally:
            self._running.discard(running)
        if cancelled:
            raise asyncio.CancelledError
        try:
            return running.result()
        except Interrupted as error:
            if self.closed:
                raise LifecycleError("the database was closed while the call was running") from error
            raise DeadlineExceeded(f"SQLite did not finish within {seconds or 0:.3g} s", backend="sqlite") from error

    async def close(self) -> None:
        """Give up everything that is under way, and wait until it has ended."""
        self.closed = True
        await asyncio.gather(*(running.give_up() for running in tuple(self._running)))
