"""One connection of the pool: every exchange has a deadline, and one that did not end leaves nothing on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from kmp_core.deadlines import Timeout, deadline, remaining, within
from kmp_core.errors import BackendError, DeadlineExceeded, LifecycleError
from kmp_core.plugins import extra
from kmp_core.postgres.errors import BACKEND, ERRORS, is_answer, took_no_effect, turns_pool_over

with extra("asyncpg", install="kmp-core[postgres]"):
    import asyncpg

if TYPE_CHECKING:
    from asyncpg import Record

__all__ = ["Connection"]


class Connection:
    """SQL on a connection that is yours for a while.

    A call that ends without the server's answer (its deadline, a cancellation, a lost connection) ends the connection
    too, so that its answer can never reach another caller. Values are parameters (`$1`), never parts of the text.
    """

    def __init__(self, driver: asyncpg.Connection[Any], *, statement_seconds: float, made_at: float) -> None:
        self._driver = driver
        self._seconds = statement_seconds
        self._busy = False
        self._lent = False
        self.made_at = made_at
        self.used_at = made_at
        self.touched = False
        self.turned_over = False
        self.was_lost = False

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone."""
        return bool(self._driver.is_closed())

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return not self.is_closed and bool(self._driver.is_in_transaction())

    @property
    def server_process(self) -> int:
        """The id of the server's process that serves this connection."""
        return int(self._driver.get_server_pid())

    async def execute(
        self, statement: str, *arguments: Any, progress: Progress | None = None, timeout: Timeout = None
    ) -> str:
        """Run a statement (several where there are no arguments) and return the last one's command tag.

        With `progress` the `timeout` begins anew with each step that it tells.
        """
        async with self._exchange(timeout, bounded_by=progress) as driver:
            return str(await driver.execute(statement, *arguments))

    async def execute_many(self, statement: str, rows: Iterable[Sequence[Any]], *, timeout: Timeout = None) -> None:
        """Run a statement once per row, all or nothing."""
        async with self._exchange(timeout) as driver:
            await driver.executemany(statement, rows)

    async def fetch(self, statement: str, *arguments: Any, timeout: Timeout = None) -> list[Record]:
        """All rows of a statement."""
        async with self._exchange(timeout) as driver:
            return list(await driver.fetch(statement, *arguments))

    async def fetch_row(self, statement: str, *arguments: Any, timeout: Timeout = None) -> Record | None:
        """The first row, or None."""
        async with self._exchange(timeout) as driver:
            return await driver.fetchrow(statement, *arguments)

    async def fetch_value(self, statement: str, *arguments: Any, timeout: Timeout = None) -> Any:
        """The first column of the first row, or None."""
        async with self._exchange(timeout) as driver:
            return await driver.fetchval(statement, *arguments)

    async def stream(
        self, statement: str, *arguments: Any, chunk: int = 2000, timeout: Timeout = None
    ) -> AsyncGenerator[list[Record], None]:
        """Rows in chunks, from a cursor, with flat memory; inside a transaction only. `timeout` bounds each chunk."""
        async with self._exchange(timeout) as driver:
            cursor = await driver.cursor(statement, *arguments)
        while True:
            async with self._exchange(timeout):
                rows = await cursor.fetch(chunk)
            if rows:
                yield rows
            if len(rows) < chunk:
                return

    async def copy(
        self,
        table: str,
        rows: Iterator[Sequence[Any]] | AsyncIterator[Sequence[Any]],
        *,
        columns: Sequence[str],
        schema: str | None = None,
        progress: Progress | None = None,
        timeout: Timeout = None,
    ) -> int:
        """Copy rows in, return how many; `timeout` bounds each step that `progress` tells, or the whole."""
        async with self._exchange(timeout, bounded_by=progress or Progress()) as driver:
            tag = await driver.copy_records_to_table(table, records=rows, columns=list(columns), schema_name=schema)
            return int(tag.rpartition(" ")[2])

    def terminate(self) -> None:
        """Cut the connection at once; the server undoes what was not committed."""
        self._driver.terminate()

    async def end(self, seconds: float) -> None:
        """Take leave of the server, or cut the connection where that takes too long."""
        try:
            async with asyncio.timeout(seconds):
                await self._driver.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._driver.terminate()

    def lend(self) -> None:
        """The pool hands it out."""
        self._lent, self.touched = True, False

    def take_back(self, now: float) -> bool:
        """The pool has it again; False where an exchange is still under way, in a task that outlived its block."""
        self._lent = False
        self.used_at = now
        return not self._busy

    @asynccontextmanager
    async def internal(self, seconds: float) -> AsyncIterator[asyncpg.Connection[Any]]:
        """The pool's own exchange, outside the time of whoever holds the connection."""
        lent, self._lent = self._lent, True
        try:
            async with (
                deadline(seconds, what="the pool's own work", backend=BACKEND, fresh=True),
                self._exchange(seconds) as driver,
            ):
                yield driver
        finally:
            self._lent = lent

    @asynccontextmanager
    async def _exchange(
        self, timeout: Timeout, *, bounded_by: Progress | None = None
    ) -> AsyncIterator[asyncpg.Connection[Any]]:
        if not self._lent:
            raise LifecycleError("the connection went back to its pool; use it inside its block")
        if self._busy:
            raise LifecycleError("two tasks use one connection at once; give each its own")
        # The pool's own time is for what nobody else bounds: whoever says how long it may take may say longer.
        seconds = within(timeout, self._seconds if remaining() is None else None)
        self._busy = self.touched = True
        protected = self.in_transaction
        try:
            if bounded_by is None:
                async with deadline(seconds, what="the statement", backend=BACKEND):
                    yield self._driver
            else:
                async with bounded_by.watched(seconds):
                    yield self._driver
        except BaseException as error:
            self._after(error)
            translated = ERRORS.translate(error) if isinstance(error, Exception) else None
            if isinstance(translated or error, BackendError):
                self._tell_outcome(translated or error, protected, answered=took_no_effect(error))
            if translated is None:
                raise
            raise translated from error
        finally:
            self._busy = False

    def _after(self, error: BaseException) -> None:
        if not is_answer(error):
            # Whatever is still on the wire belongs to nobody any more.
            self._driver.terminate()
            self.was_lost = self.was_lost or isinstance(error, Exception)
        self.turned_over = self.turned_over or turns_pool_over(error)

    @staticmethod
    def _tell_outcome(error: BaseException, protected: bool, *, answered: bool) -> None:
        # Inside a transaction nothing took effect before its COMMIT, and an answer that is an error undid the rest.
        assert isinstance(error, BackendError)
        error.outcome_unknown = not (protected or answered)


class Progress:
    """Bounds each step of a long exchange: `step()` begins the time anew."""

    def __init__(self) -> None:
        self._scope: asyncio.Timeout | None = None
        self._seconds: float | None = None

    def step(self) -> None:
        """Something was done; the next step has as much time again."""
        if self._scope is not None and self._seconds is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time() + self._seconds)

    def pause(self) -> None:
        """Whoever is waited for now is not the server."""
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(None)

    @asynccontextmanager
    async def watched(self, seconds: float | None) -> AsyncIterator[None]:
        """Watch the exchange inside. Raises `DeadlineExceeded`."""
        self._seconds = seconds
        try:
            async with asyncio.timeout(seconds) as self._scope:
                yield
        except TimeoutError as error:
            if isinstance(error, DeadlineExceeded) or self._scope is None or not self._scope.expired():
                raise
            message = f"a step took longer than the {seconds:.3g} s it was allowed"
            raise DeadlineExceeded(message, backend=BACKEND, outcome_unknown=True) from error
        finally:
            self._scope = None
