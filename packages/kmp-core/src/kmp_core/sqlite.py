"""SQLite for embedded providers: durable, shared by several processes, and never in the way of the event loop.

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
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from kmp_core.deadlines import Timeout, within
from kmp_core.errors import (
    ConfigurationError,
    Corrupt,
    DeadlineExceeded,
    ErrorTable,
    Fault,
    KmpError,
    LifecycleError,
    PermissionDenied,
    Unavailable,
)
from kmp_core.project import Project

__all__ = ["Database", "Synchronous", "database_path"]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
Synchronous = Literal["full", "normal"]
"""`full` survives a power cut; `normal` survives a killed process, and may lose the last moments in a power cut."""

_APPLICATION_ID = 0x4B4D5031  # "KMP1", shown by `file`
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_READERS = 4
_BUSY_MILLISECONDS = 20


class _Interrupted(Exception):
    """The caller does not wait any more: roll back."""


class _Job:
    """One piece of work on its way through a thread."""

    __slots__ = ("abandoned", "connection", "deadline", "lock")

    def __init__(self, seconds: float | None) -> None:
        self.abandoned = False
        self.connection: sqlite3.Connection | None = None
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.lock = threading.Lock()

    def over(self) -> bool:
        return self.abandoned or (self.deadline is not None and time.monotonic() >= self.deadline)

    def interrupt(self) -> None:
        self.abandoned = True
        with self.lock:
            if self.connection is not None:
                self.connection.interrupt()


class Database:
    """Open one SQLite file for one project, or a private database in memory where `path` is None.

    `migrations` are scripts, applied once each, in order, under the write lock; a file that was written by a later
    version, by another application or for another project is refused and left as it is.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        project: Project,
        migrations: Sequence[str],
        synchronous: Synchronous = "full",
    ) -> None:
        self.path = path
        self.project = project
        self._migrations = tuple(migrations)
        self._synchronous = synchronous
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        self._write_thread: ThreadPoolExecutor | None = None
        self._read_threads: ThreadPoolExecutor | None = None
        self._jobs: set[_Job] = set()

    async def open(self) -> None:
        """Create what is missing and migrate. Raises `ConfigurationError`, `Corrupt`, `PermissionDenied`, `Unavailable`."""
        name = f"kmp-sqlite-{self.path.stem if self.path else 'memory'}"
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        if self.path is not None:
            self._read_threads = ThreadPoolExecutor(_READERS, thread_name_prefix=f"{name}-read")
        await self._run(self._write_thread, self._prepare, None)

    async def close(self) -> None:
        """Interrupt what is running, roll it back, and close the file. Harmless when repeated."""
        for job in tuple(self._jobs):
            job.interrupt()
        threads = [t for t in (self._read_threads, self._write_thread) if t is not None]
        self._read_threads = self._write_thread = None
        loop = asyncio.get_running_loop()
        for executor in threads:
            await loop.run_in_executor(None, partial(executor.shutdown, wait=True, cancel_futures=True))
        with self._readers_lock:
            readers, self._readers = self._readers, []
        for connection in readers:
            connection.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def write(self, work: Work[T], *, timeout: Timeout = None) -> T:
        """Run `work` in one transaction and return what it returns, once that is committed.

        Raises `DeadlineExceeded` when the time is over, and then nothing was written. Work that was committed in the
        very moment its time ended counts as done.
        """
        if self._write_thread is None:
            raise LifecycleError("the database is not open")

        def job_body(job: _Job) -> T:
            assert self._writer is not None
            return self._transaction(self._writer, work, job, "IMMEDIATE")

        return await self._run(self._write_thread, job_body, timeout)

    async def read(self, work: Work[T], *, timeout: Timeout = None) -> T:
        """Run `work` on one consistent snapshot, beside writers."""
        if self._write_thread is None:
            raise LifecycleError("the database is not open")
        if self._read_threads is None:  # in memory: one connection, one thread

            def alone(job: _Job) -> T:
                assert self._writer is not None
                return self._transaction(self._writer, work, job, "DEFERRED")

            return await self._run(self._write_thread, alone, timeout)

        def job_body(job: _Job) -> T:
            connection = self._borrow()
            try:
                return self._transaction(connection, work, job, "DEFERRED")
            finally:
                self._give_back(connection)

        return await self._run(self._read_threads, job_body, timeout)

    async def stream(
        self, sql: str, parameters: Sequence[Any] = (), *, chunk: int = 1000, timeout: Timeout = None
    ) -> AsyncIterator[list[tuple[Any, ...]]]:
        """Read a result in chunks of rows from one snapshot with flat memory; `timeout` bounds the wait for each chunk.

        Close the iterator (`contextlib.aclosing`) when you leave it early. In memory the result is taken at once.
        """
        if self._read_threads is None:
            rows = await self.read(lambda c: c.execute(sql, parameters).fetchall(), timeout=timeout)
            for start in range(0, len(rows), chunk):
                yield rows[start : start + chunk]
            return
        threads = self._read_threads
        connection: sqlite3.Connection | None = None
        cursor: sqlite3.Cursor | None = None

        def step(job: _Job) -> list[tuple[Any, ...]]:
            nonlocal connection, cursor
            if connection is None:
                connection = self._borrow()
            with job.lock:
                job.connection = connection
            try:
                if job.over():
                    raise _Interrupted
                if cursor is None:
                    cursor = connection.execute(sql, parameters)
                return cursor.fetchmany(chunk)
            finally:
                with job.lock:
                    job.connection = None

        def finish(job: _Job) -> None:
            if cursor is not None:
                cursor.close()
            if connection is not None:
                self._give_back(connection)

        try:
            while rows := await self._run(threads, step, timeout):
                yield rows
        finally:
            if self._read_threads is not None:
                await self._run(threads, finish, None)
            elif connection is not None:
                connection.close()

    async def _run(self, threads: ThreadPoolExecutor, body: Callable[[_Job], T], timeout: Timeout) -> T:
        seconds = within(timeout)
        job = _Job(seconds)
        self._jobs.add(job)
        future = asyncio.get_running_loop().run_in_executor(threads, self._guarded, body, job)
        try:
            done, _ = await asyncio.wait((future,), timeout=seconds)
            if not done:
                await self._abandon(future, job)
            return future.result()
        except asyncio.CancelledError:
            if not future.done():
                await self._abandon(future, job)
            if not future.cancelled():
                future.exception()  # retrieved: the caller is gone
            raise
        except _Interrupted as error:
            if not self._jobs or self._write_thread is None:
                raise LifecycleError("the database was closed while the call was running") from error
            raise DeadlineExceeded(f"SQLite did not finish within {seconds or 0:.3g} s", backend="sqlite") from error
        finally:
            self._jobs.discard(job)

    @staticmethod
    async def _abandon(future: asyncio.Future[T], job: _Job) -> None:
        # An interrupt reaches only the statement that is running, so it is repeated until the work has given up.
        pause = 0.0
        while not future.done():
            job.interrupt()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((future,), timeout=pause)
            pause = 0.005

    @staticmethod
    def _guarded(body: Callable[[_Job], T], job: _Job) -> T:
        try:
            return body(job)
        except sqlite3.OperationalError as error:
            if _primary(error) == sqlite3.SQLITE_INTERRUPT or (_primary(error) in _BUSY and job.over()):
                raise _Interrupted from error
            raise (_ERRORS.translate(error) or error) from error
        except sqlite3.DatabaseError as error:
            raise (_ERRORS.translate(error) or error) from error

    def _transaction(self, connection: sqlite3.Connection, work: Work[T], job: _Job, mode: str) -> T:
        with job.lock:
            job.connection = connection
        try:
            self._begin(connection, job, mode)
            try:
                result = work(connection)
                if job.over():
                    raise _Interrupted
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                raise
            return result
        finally:
            with job.lock:
                job.connection = None

    @staticmethod
    def _begin(connection: sqlite3.Connection, job: _Job, mode: str) -> None:
        # SQLite's own busy handler neither hears an interrupt nor is fair, so it waits briefly and we ask again.
        while True:
            if job.over():
                raise _Interrupted
            try:
                connection.execute(f"BEGIN {mode}")
            except sqlite3.OperationalError as error:
                if _primary(error) not in _BUSY:
                    raise
                time.sleep(random.uniform(0.0005, 0.005))  # noqa: S311 - spreads processes, no secret
            else:
                return

    def _prepare(self, job: _Job) -> None:
        if self.path is not None:
            _make_private_directory(self.path.parent)
        self._writer = self._connect()
        version = self._transaction(self._writer, self._migrate, job, "IMMEDIATE")
        if version > len(self._migrations):
            raise Unavailable(
                f"{self.path} was written by a later version (schema {version}, this one knows "
                f"{len(self._migrations)}): upgrade this service, or give it another directory",
                backend="sqlite",
            )

    def _migrate(self, connection: sqlite3.Connection) -> int:
        application: int = connection.execute("PRAGMA application_id").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if application not in (0, _APPLICATION_ID):
            raise ConfigurationError(
                Fault(str(self.path), "belongs to another application", example="an empty directory")
            )
        if version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise ConfigurationError(
                Fault(str(self.path), "belongs to another application", example="an empty directory")
            )
        if version == 0:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute("CREATE TABLE kmp_owner (project TEXT NOT NULL) STRICT")
            connection.execute("INSERT INTO kmp_owner VALUES (?)", (self.project,))
        owner: str = connection.execute("SELECT project FROM kmp_owner").fetchone()[0]
        if owner != self.project:
            raise PermissionDenied(f"{self.path} belongs to another project", project=self.project)
        for number, script in enumerate(self._migrations[version:], start=version + 1):
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        return max(version, len(self._migrations))

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            ":memory:" if self.path is None else self.path,
            timeout=_BUSY_MILLISECONDS / 1000,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for pragma in (
                "journal_mode = WAL",
                f"synchronous = {self._synchronous}",
                "foreign_keys = ON",
                "trusted_schema = OFF",
                "temp_store = MEMORY",
                "cache_size = -16384",
            ):
                _patiently(connection, f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _borrow(self) -> sqlite3.Connection:
        with self._readers_lock:
            if self._readers:
                return self._readers.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._readers_lock:
            if self._write_thread is not None and len(self._readers) < _READERS:
                self._readers.append(connection)
                return
        connection.close()


def database_path(directory: Path, url: str, name: str) -> Path | None:
    """Where an embedded provider keeps its file: None for `memory:`, `<directory>/<name>.db` for `sqlite:`, else the URL's path."""
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        return None
    path = rest.removeprefix("//")
    return Path(path) if path else directory / f"{name}.db"


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _patiently(connection: sqlite3.Connection, statement: str, seconds: float = 5.0) -> None:
    # The switch to WAL needs the file for itself for a moment; several processes may open it at once.
    end = time.monotonic() + seconds
    while True:
        try:
            connection.execute(statement).fetchall()
        except sqlite3.OperationalError as error:
            if _primary(error) not in _BUSY or time.monotonic() >= end:
                raise
            time.sleep(0.005)
        else:
            return


def _statements(script: str) -> list[str]:
    statements, pending = [], ""
    for part in script.split(";"):
        pending += part + ";"
        if sqlite3.complete_statement(pending):
            if pending.strip(" \n;"):
                statements.append(pending.strip())
            pending = ""
    return statements


def _make_private_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be created ({os.strerror(error.errno or 0)})"
        raise ConfigurationError(
            Fault(str(directory), problem, example="a directory that this user may write")
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigurationError(
            Fault(str(directory), "cannot be written", example="a directory that this user may write")
        )


def _translate(error: BaseException) -> KmpError | None:
    assert isinstance(error, sqlite3.Error)
    code = _primary(error)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Corrupt(
            "The SQLite file is damaged or is none; it was left as it is. Move it away, and restore a copy or begin anew"
        )
    messages = {
        sqlite3.SQLITE_FULL: "The disk is full; nothing was written",
        sqlite3.SQLITE_IOERR: "The disk reported an error",
        sqlite3.SQLITE_READONLY: "The SQLite file cannot be written",
        sqlite3.SQLITE_CANTOPEN: "The SQLite file cannot be opened; see that its directory can be written and has room",
        sqlite3.SQLITE_PERM: "The SQLite file may not be accessed",
        sqlite3.SQLITE_BUSY: "Another process holds the SQLite file",
        sqlite3.SQLITE_LOCKED: "Another process holds the SQLite file",
        sqlite3.SQLITE_NOMEM: "SQLite is out of memory",
    }
    return Unavailable(messages[code], backend="sqlite") if code in messages else None


_ERRORS = ErrorTable({sqlite3.DatabaseError: _translate})
