"""Several statements that take effect together or not at all, and an honest answer where nobody knows which.

    async with pool.transaction() as transaction:
        await store.append(row, transaction=transaction)
        await transaction.execute("UPDATE seen SET at = now() WHERE id = $1", event.id)

Leaving the block commits; an exception, a cancellation included, undoes everything.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from kmp_core.deadlines import Timeout, deadline
from kmp_core.errors import BackendError, LifecycleError, OutcomeUnknown
from kmp_core.postgres.connection import Connection
from kmp_core.postgres.errors import BACKEND, is_answer

if TYPE_CHECKING:
    from asyncpg import Record

    from kmp_core.postgres.pool import PostgresPool

__all__ = ["Isolation", "Transaction", "TransactionUndone"]

Isolation = Literal["read committed", "repeatable read", "serializable"]


class TransactionUndone(BackendError):
    """A statement inside failed and the block went on; PostgreSQL undid the transaction instead of committing it."""


class Transaction:
    """What writes to PostgreSQL takes this as `transaction=`, so that an effect and the mark that it happened commit
    together. Used by one task at a time.

    Raises `OutcomeUnknown` when the connection was lost after COMMIT was sent and before it was answered,
    `TransactionUndone` when a failure inside was swallowed, and `Contention` (retryable) for a deadlock or a
    serialization failure, at any statement and at the commit.
    """

    def __init__(
        self,
        pool: PostgresPool,
        *,
        isolation: Isolation = "read committed",
        read_only: bool = False,
        reset: bool = True,
        timeout: Timeout = None,
    ) -> None:
        if isolation not in ("read committed", "repeatable read", "serializable"):
            raise LifecycleError(f"there is no isolation {isolation!r}")
        self._pool = pool
        self._begin = f"BEGIN ISOLATION LEVEL {isolation.upper()}{' READ ONLY' if read_only else ''}"
        self._reset = reset
        self._timeout = timeout
        self._lease: AbstractAsyncContextManager[Connection] | None = None
        self._connection: Connection | None = None
        self._used = False

    @property
    def connection(self) -> Connection:
        """The connection, while the block lasts; a `COMMIT` or `ROLLBACK` of your own on it is a mistake."""
        if self._connection is None:
            raise LifecycleError("the transaction is not open: use it inside 'async with'")
        return self._connection

    async def execute(self, statement: str, *arguments: Any, timeout: Timeout = None) -> str:
        """Run a statement and return its command tag."""
        return await self.connection.execute(statement, *arguments, timeout=timeout)

    async def fetch(self, statement: str, *arguments: Any, timeout: Timeout = None) -> list[Record]:
        """All rows of a statement."""
        return await self.connection.fetch(statement, *arguments, timeout=timeout)

    async def fetch_row(self, statement: str, *arguments: Any, timeout: Timeout = None) -> Record | None:
        """The first row, or None."""
        return await self.connection.fetch_row(statement, *arguments, timeout=timeout)

    async def fetch_value(self, statement: str, *arguments: Any, timeout: Timeout = None) -> Any:
        """The first column of the first row, or None."""
        return await self.connection.fetch_value(statement, *arguments, timeout=timeout)

    async def __aenter__(self) -> Self:
        if self._used:
            raise LifecycleError("a transaction is used once; make a new one")
        self._used = True
        lease = self._pool.acquire(reset=self._reset, in_transaction=True)
        async with deadline(self._timeout, what="the beginning of a transaction", backend=BACKEND):
            connection = await lease.__aenter__()
            try:
                await connection.execute(self._begin)
            except BaseException as error:
                await lease.__aexit__(type(error), error, error.__traceback__)
                raise
        self._lease, self._connection = lease, connection
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease, connection = self._lease, self._connection
        self._lease = self._connection = None
        assert lease is not None
        assert connection is not None
        try:
            if kind is None:
                await self._commit(connection, self._timeout)
        finally:
            # The pool undoes what is still open, and cuts the connection where that does not succeed.
            await lease.__aexit__(None, None, None)

    @staticmethod
    async def _commit(connection: Connection, timeout: Timeout) -> None:
        if connection.is_closed:
            raise BackendError("The connection was lost inside the transaction, which is undone", backend=BACKEND)
        try:
            tag = await connection.execute("COMMIT", timeout=timeout)
        except BackendError as error:
            cause = error.__cause__
            if error.outcome_unknown or (cause is not None and not is_answer(cause)):
                raise OutcomeUnknown(
                    "COMMIT was sent and its answer never came: the transaction may or may not have taken effect",
                    backend=BACKEND,
                ) from error
            raise
        if tag != "COMMIT":
            raise TransactionUndone(
                "A statement inside the transaction failed and nobody raised; PostgreSQL undid all of it",
                backend=BACKEND,
            )
