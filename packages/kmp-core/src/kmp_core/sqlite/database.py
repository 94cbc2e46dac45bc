"""SQLite for embedded providers: durable, shared by several processes, and never in the way of the event loop.

    migrations = ["CREATE TABLE note (text TEXT) STRICT"]
    database = Database(path, project=project, capability="storage.notes", migrations=migrations)
    await database.open()
    await database.write(lambda connection: connection.execute("INSERT INTO note VALUES ('x')"), timeout="2s")

Work is a function of a `sqlite3.Connection` that runs in a thread of the database. A write runs in one transaction
that holds the write lock from its beginning; it is committed when the function returns and rolled back when it
raises, when its time is over, or when its caller is cancelled. A file may be used by several processes at once (WAL
mode); waiting for another process's transaction counts against the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from kmp_core.deadlines import Timeout, within
from kmp_core.errors import LifecycleError
from kmp_core.project import Project
from kmp_core.sqlite.files import (
    BUSY,
    Owner,
    Synchronous,
    claim,
    connect,
    database_path,
    make_private_directory,
    primary,
    translate,
    unusable,
)
from kmp_core.sqlite.jobs import Interrupted, Job, Jobs

__all__ = ["Database", "Synchronous", "Work", "database_path"]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_READERS = 4
# How a statement ends whose job was given up; where it was making a virtual table, with the general error.
_GIVEN_UP = (sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_ERROR, *BUSY)
_BEGIN = {
    "write": ("BEGIN IMMEDIATE",),
    # A deferred transaction takes its snapshot at the first look.
    "read": ("BEGIN DEFERRED", "SELECT 1 FROM sqlite_schema LIMIT 1"),
}


class Database:
    """Open one SQLite file for one project, or a private database in memory where `path` is None.

    `migrations` are scripts, applied once each, in order, under the write lock; a file that was written by a later
    version, by another application, for another project or for another capability is refused and left as it is.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        project: Project,
        capability: str,
        migrations: Sequence[str],
        synchronous: Synchronous = "full",
    ) -> None:
        self.path = path
        self.project = project
        self._owner = Owner(project, capability)
        self._migrations = tuple(migrations)
        self._synchronous: Synchronous = synchronous
        self._writes: Synchronous = synchronous
        self._threads: _Threads | None = None
        self._writer: sqlite3.Connection | None = None
        self._connections: set[sqlite3.Connection] = set()
        self._readers: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._jobs = Jobs()
        self._pid = 0

    async def open(self) -> None:
        """Create what is missing and migrate; on an error nothing is left open.

        Raises `ConfigurationError` (a place that cannot be used, a stranger's file, another capability's, a later
        version's), `Corrupt`, `PermissionDenied` (another project's) and `Unavailable`.
        """
        if self._threads is not None or self._jobs.closed:
            raise LifecycleError("the database was opened before; make a new one")
        self._pid = os.getpid()
        self._threads = _Threads(self.path)
        try:
            await self._jobs.run(self._threads.write, self._prepare, within(None))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Interrupt what is running, roll it back, and close the file. Harmless when repeated."""
        threads, self._threads = self._threads, None
        if threads is None or self._pid != os.getpid():
            return  # in a forked child the threads do not exist, and the file is the parent's
        try:
            await self._jobs.close()
            closing = asyncio.wrap_future(threads.write.submit(self._close_connections, threads))
            await asyncio.wait((closing,))
            closing.result()
        finally:
            threads.shutdown()

    async def write(self, work: Work[T], *, timeout: Timeout = None, may_be_lost_at_power_cut: bool = False) -> T:
        """Run `work` in one transaction and return what it returns, once that is committed.

        Raises `DeadlineExceeded` when the time is over, and then nothing was written. Work that was committed in the
        very moment its time ended counts as done. What may be lost at a power cut, because it can be done again, does
        not wait for the disk; it is lost never without what was committed after it.
        """
        body = self._writing(work, "normal" if may_be_lost_at_power_cut else self._synchronous)
        return await self._jobs.run(self._open_threads().write, body, within(timeout))

    async def read(self, work: Work[T], *, timeout: Timeout = None) -> T:
        """Run `work` on one consistent snapshot, beside writers."""
        threads = self._open_threads()
        if threads.read is None:  # in memory: one connection, one thread
            return await self._jobs.run(threads.write, self._writing(work), within(timeout))

        def body(job: Job) -> T:
            connection = self._borrow()
            try:
                return self._transaction(connection, work, job, "read")
            finally:
                self._give_back(connection)

        return await self._jobs.run(threads.read, self._translated(body), within(timeout))

    @property
    def idle(self) -> bool:
        """Whether `run` may be called: in memory, while nothing is under way in a thread."""
        return self.path is None and not self._jobs.under_way

    def run(self, work: Work[T]) -> T:
        """Run `work` in one transaction here and now, in memory only: nothing there waits for a disk or for others.

        Saves the way through a thread, for callers that use no other method of this object beside, or ask `idle`.
        """
        self._open_threads()
        if self.path is not None:
            raise LifecycleError("only a database in memory runs work at once")
        return self._writing(work)(Job(None))

    async def stream(
        self, sql: str, parameters: Sequence[Any] = (), *, chunk: int = 1000, timeout: Timeout = None
    ) -> AsyncGenerator[list[tuple[Any, ...]], None]:
        """Read a result in chunks of rows from one snapshot with flat memory; `timeout` bounds the wait for each chunk.

        Close the iterator (`contextlib.aclosing`) when you leave it early. In memory the result is taken at once.
        """
        threads = self._open_threads()
        if threads.read is None:
            rows = await self.read(lambda c: c.execute(sql, parameters).fetchall(), timeout=timeout)
            for start in range(0, len(rows), chunk):
                yield rows[start : start + chunk]
            return
        cursor = _Cursor(self._borrow, sql, parameters, chunk)
        step = self._translated(cursor.step)
        try:
            while rows := await self._jobs.run(self._read_threads(), step, within(timeout)):
                yield rows
        finally:
            # No job of this stream is under way here: a job that is given up is waited for.
            if cursor.connection is not None:
                cursor.finish()
                self._give_back(cursor.connection)

    def _open_threads(self) -> _Threads:
        if self._threads is None:
            raise LifecycleError("the database is closed" if self._jobs.closed else "the database is not open")
        if self._pid != os.getpid():
            raise LifecycleError(
                f"the database was opened in process {self._pid} and is used in process {os.getpid()}: "
                "open it after the fork"
            )
        return self._threads

    def _read_threads(self) -> ThreadPoolExecutor:
        threads = self._open_threads()
        return threads.read or threads.write

    def _writing(self, work: Work[T], synchronous: Synchronous | None = None) -> Callable[[Job], T]:
        writer = self._writer
        if writer is None:
            raise LifecycleError("the database is not open")

        def body(job: Job) -> T:
            if synchronous is not None and synchronous != self._writes:
                writer.execute(f"PRAGMA synchronous = {synchronous}")  # has no effect inside a transaction
                self._writes = synchronous
            return self._transaction(writer, work, job, "write")

        return self._translated(body)

    def _translated(self, body: Callable[[Job], T]) -> Callable[[Job], T]:
        """The body, with SQLite's errors coming out as ours."""

        def guarded(job: Job) -> T:
            try:
                return body(job)
            except sqlite3.DatabaseError as error:
                code = primary(error)
                if job.over() and code in _GIVEN_UP:
                    raise Interrupted from error
                translated = translate(error, self.path)
                if translated is None:
                    raise
                raise translated from error

        return guarded

    def _transaction(
        self, connection: sqlite3.Connection, work: Work[T], job: Job, mode: Literal["read", "write"]
    ) -> T:
        job.works_on(connection)
        try:
            try:
                self._begin(connection, job, mode)
                result = work(connection)
                if job.over():
                    raise Interrupted
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                raise
            return result
        finally:
            job.works_on(None)

    @staticmethod
    def _begin(connection: sqlite3.Connection, job: Job, mode: Literal["read", "write"]) -> None:
        # SQLite's own busy handler neither hears an interrupt nor is fair, so it waits briefly and we ask again.
        for statement in _BEGIN[mode]:
            while True:
                if job.over():
                    raise Interrupted
                try:
                    connection.execute(statement).fetchall()
                except sqlite3.OperationalError as error:
                    if primary(error) not in BUSY:
                        raise
                    time.sleep(random.uniform(0.0005, 0.005))  # noqa: S311 - spreads processes, no secret
                else:
                    break

    def _prepare(self, job: Job) -> None:
        if self.path is not None:
            make_private_directory(self.path.parent)
        try:
            self._writer = self._connect(owner=self._owner)
            claiming = self._writing(lambda c: claim(c, self.path, self._owner, self._migrations))
            claiming(job)
        except sqlite3.Error as error:
            raise unusable(error, self.path) or translate(error, self.path) or error from error

    def _connect(self, *, owner: Owner | None = None) -> sqlite3.Connection:
        connection = connect(self.path, self._synchronous, owner=owner)
        with self._lock:
            self._connections.add(connection)
        return connection

    def _borrow(self) -> sqlite3.Connection:
        with self._lock:
            if self._readers:
                return self._readers.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._jobs.closed and len(self._readers) < _READERS:
                self._readers.append(connection)
                return
            self._connections.discard(connection)
        connection.close()

    def _close_connections(self, threads: _Threads) -> None:
        # A thread holds the result of its last work for a moment. Where that is a cursor, SQLite would keep the file
        # open behind a closed connection, with its log beside it.
        if threads.read is not None:
            threads.read.shutdown(wait=True)
        with self._lock:
            connections, self._connections = self._connections, set()
            self._readers.clear()
        self._writer = None
        for connection in connections:
            connection.close()


class _Threads:
    """One thread that writes, and some that read where several connections can share the data."""

    def __init__(self, path: Path | None) -> None:
        name = f"kmp-sqlite-{path.stem if path else 'memory'}"
        self.write = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.read = None if path is None else ThreadPoolExecutor(_READERS, thread_name_prefix=f"{name}-read")

    def shutdown(self) -> None:
        """Let the threads end by themselves; nobody waits for them."""
        for executor in (self.read, self.write):
            if executor is not None:
                executor.shutdown(wait=False, cancel_futures=True)


class _Cursor:
    """A result that is read chunk by chunk."""

    def __init__(
        self, borrow: Callable[[], sqlite3.Connection], sql: str, parameters: Sequence[Any], chunk: int
    ) -> None:
        self._borrow = borrow
        self._query = (sql, parameters)
        self._chunk = chunk
        self._cursor: sqlite3.Cursor | None = None
        self.connection: sqlite3.Connection | None = None

    def step(self, job: Job) -> list[tuple[Any, ...]]:
        """The next rows; none at the end."""
        if self.connection is None:
            self.connection = self._borrow()
        job.works_on(self.connection)
        try:
            if job.over():
                raise Interrupted
            if self._cursor is None:
                self._cursor = self.connection.execute(*self._query)
            return self._cursor.fetchmany(self._chunk)
        finally:
            job.works_on(None)

    def finish(self) -> None:
        """Let go of the snapshot."""
        if self._cursor is not None:
            # A connection that was closed meanwhile has let go by itself.
            with contextlib.suppress(sqlite3.ProgrammingError):
                self._cursor.close()
