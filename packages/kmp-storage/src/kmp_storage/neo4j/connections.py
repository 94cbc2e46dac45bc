"""Transactions with deadlines: each of ours is the server's too. What a cancelled call leaves is never used again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Literal, TypeVar

from kmp_core.breaker import Breaker
from kmp_core.deadlines import deadline, remaining
from kmp_core.errors import DeadlineExceeded, InvalidInput, LifecycleError, OutcomeUnknown, PoolExhausted, Unavailable
from kmp_core.plugins import extra
from kmp_core.pool_metrics import PoolMetrics
from kmp_core.retries import Retries
from kmp_storage.neo4j import internals, statements
from kmp_storage.neo4j.address import Neo4jAddress
from kmp_storage.neo4j.codec import sendable
from kmp_storage.neo4j.errors import BACKEND, ERRORS, LOST
from kmp_storage.settings.neo4j import Neo4jSettings

with extra("neo4j", install="kmp-storage[neo4j]"):
    import neo4j
    from neo4j.exceptions import DriverError

__all__ = ["Access", "Connections", "Transaction"]

T = TypeVar("T")
Access = Literal["READ", "WRITE"]
Transaction = neo4j.AsyncTransaction

_LEAVE_SECONDS = 0.5
_GRACE_SECONDS = 2.0
_UNBOUNDED = 100_000
_CLOSED = "the store was closed before the call had begun"


class Connections:
    """The driver of one store. Every call sees what the calls before it did: bookmarks go from one to the next."""

    def __init__(self, address: Neo4jAddress, settings: Neo4jSettings, *, project: str) -> None:
        self._settings = settings
        self._bookmarks = neo4j.AsyncGraphDatabase.bookmark_manager()
        # A pause that is short enough to be back within seconds of the server's return.
        self._retries = Retries(BACKEND, breaker=Breaker(BACKEND, longest_pause="1s"))
        self._slots = asyncio.Semaphore(settings.pool_size)
        self.in_use = 0
        self.waiting = 0
        self._metrics = PoolMetrics(project=project, name=f"{address.host}:{address.port}", scope="kmp_storage")
        self._running = 0
        self._idle = asyncio.Event()
        self._closed = False
        self._beginning: set[asyncio.Task[Transaction]] = set()
        with ERRORS.translating():
            self._driver = address.driver(
                # Our slots bound the pool, first come, first served: the driver's wakes every waiter for each free one.
                max_connection_pool_size=_UNBOUNDED,
                connection_acquisition_timeout=settings.connect_timeout.total_seconds(),
                connection_timeout=settings.connect_timeout.total_seconds(),
                connection_write_timeout=settings.timeout.total_seconds(),
                notifications_min_severity=neo4j.NotificationMinimumSeverity.OFF,
                telemetry_disabled=True,
            )
        self._metrics.start(self)

    @property
    def idle(self) -> int:
        """How many connections lie ready."""
        return max(0, len(internals.pooled(self._driver)) - self.in_use)

    async def bookmarks(self) -> frozenset[str]:
        """Where the calls so far have left the graph."""
        return frozenset(await self._bookmarks.get_bookmarks())

    async def follow(self, bookmarks: Iterable[str]) -> None:
        """Have the next calls see at least this."""
        await self._bookmarks.update_bookmarks((), frozenset(bookmarks))

    async def close(self) -> None:
        """Let running calls end for a moment, then close everything. Who still connects does not begin any more."""
        self._closed = True
        self._metrics.stop()
        for beginning in self._beginning:
            beginning.cancel()
        if self._running:
            self._idle.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), _GRACE_SECONDS)
        sockets = internals.writers(self._driver)
        # A server that is gone answers no goodbye; the driver kills its connections where closing is cancelled.
        with suppress(TimeoutError, OSError, DriverError):
            await asyncio.wait_for(self._driver.close(), _GRACE_SECONDS)
        # The driver leaves its sockets to close by themselves: behind TLS only once the server took leave too.
        with suppress(TimeoutError):
            leaving = asyncio.gather(*(writer.wait_closed() for writer in sockets), return_exceptions=True)
            await asyncio.wait_for(leaving, _LEAVE_SECONDS)
        for writer in sockets:
            writer.transport.abort()
        await asyncio.sleep(0)  # a turn of the event loop, in which what was aborted is closed

    async def read(self, work: Callable[[Transaction], Awaitable[T]], *, seconds: float | None) -> T:
        """Do the work in a transaction that reads; again where it failed in a way that passes."""
        return await self._call(partial(self._transact, work, "READ"), seconds, idempotent=True)

    async def write(self, work: Callable[[Transaction], Awaitable[T]], *, seconds: float | None) -> T:
        """Do idempotent work in a transaction that writes, all or nothing; again where nothing came of it."""
        return await self._call(partial(self._transact, work, "WRITE"), seconds, idempotent=True)

    async def run(
        self, cypher: str, parameters: Mapping[str, Any], *, seconds: float | None, idempotent: bool
    ) -> list[neo4j.Record]:
        """Run one statement in a transaction of its own."""

        async def work(transaction: Transaction) -> list[neo4j.Record]:
            with _sendable():
                result = await transaction.run(statements.trusted(cypher), sendable(parameters))
            return [record async for record in result]

        return await self._call(partial(self._transact, work, "WRITE"), seconds, idempotent=idempotent)

    async def probe(self, *, seconds: float | None) -> None:
        """Ask the server for an answer, whatever the breaker thinks."""

        async def work(transaction: Transaction) -> None:
            await (await transaction.run("RETURN 1")).consume()

        async with deadline(seconds, what="asking Neo4j", backend=BACKEND):
            await self._transact(work, "READ")

    async def stream(
        self, cypher: str, parameters: Mapping[str, Any], *, seconds: float | None
    ) -> AsyncGenerator[neo4j.Record, None]:
        """Records as they come, with flat memory; `seconds` bounds the wait for each."""
        with self._counted():
            async with self._session("WRITE") as session:
                async with self._chunk(seconds):
                    transaction = await self._begin(session, timeout=None)
                async with transaction:
                    async with self._chunk(seconds):
                        with _sendable():
                            result = await transaction.run(statements.trusted(cypher), sendable(parameters))
                    while True:
                        async with self._chunk(seconds):
                            record = await anext(result, None)
                            if record is None:
                                await _commit(transaction, "WRITE")
                                return
                        yield record

    async def _call(self, work: Callable[[], Awaitable[T]], seconds: float | None, *, idempotent: bool) -> T:
        with self._counted():
            async with deadline(seconds, what="the call to Neo4j", backend=BACKEND):
                return await self._retries.call(work, idempotent=idempotent)

    async def _transact(self, work: Callable[[Transaction], Awaitable[T]], access: Access) -> T:
        with self._translating():
            async with self._session(access) as session:
                transaction = await self._begin(session, timeout=_server_timeout())
                async with transaction:
                    result = await work(transaction)
                    await _commit(transaction, access)
                return result

    @asynccontextmanager
    async def _session(self, access: Access) -> AsyncIterator[neo4j.AsyncSession]:
        async with self._slot(), self._driver_session(access) as session:
            yield session

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        if self._slots.locked():
            with self._metrics.waiting():
                await self._wait_for_slot()
        else:
            await self._slots.acquire()
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1
            self._slots.release()

    async def _wait_for_slot(self) -> None:
        seconds = self._settings.acquire_timeout.total_seconds()
        self.waiting += 1
        try:
            # Not wait_for: Python 3.11's forgets a cancellation that comes in the moment of success.
            async with asyncio.timeout(seconds):
                await self._slots.acquire()
        except TimeoutError:
            message = f"none of {self._settings.pool_size} connections became free within {seconds:g} s"
            raise PoolExhausted(f"{message}: raise KMP_STORAGE_NEO4J_POOL_SIZE", backend=BACKEND) from None
        finally:
            self.waiting -= 1

    @asynccontextmanager
    async def _driver_session(self, access: Access) -> AsyncIterator[neo4j.AsyncSession]:
        if self._closed:
            raise LifecycleError(_CLOSED)
        session = self._driver.session(
            database=self._settings.database,
            default_access_mode=access,
            bookmark_manager=self._bookmarks,
            fetch_size=self._settings.fetch_items,
        )
        try:
            yield session
        except asyncio.CancelledError:
            # Mid-exchange the answer is still to come: the connection goes, and with it the server's transaction.
            session.cancel()
            raise
        finally:
            await session.close()

    async def _begin(self, session: neo4j.AsyncSession, *, timeout: float | None) -> Transaction:
        """Begin a transaction, on a new connection where none is idle, in a task that closing can cut."""
        beginning = asyncio.create_task(_begun(session, timeout))
        self._beginning.add(beginning)
        try:
            return await beginning
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and not caller.cancelling():  # but the store was closed
                raise LifecycleError(_CLOSED) from None
            raise
        finally:
            self._beginning.discard(beginning)

    @asynccontextmanager
    async def _chunk(self, seconds: float | None) -> AsyncIterator[None]:
        with self._translating():
            async with deadline(seconds, what="the next part of the stream", backend=BACKEND):
                yield

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            with ERRORS.translating():
                yield
        except Exception as error:
            # Closing takes the connections away from under a call, which the driver reports in many ways.
            if not self._closed or isinstance(error, Unavailable | DeadlineExceeded | LifecycleError):
                raise
            raise OutcomeUnknown("the store was closed while the call was running", backend=BACKEND) from error

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()


async def _begun(session: neo4j.AsyncSession, timeout: float | None) -> Transaction:
    try:
        return await session.begin_transaction(timeout=timeout)
    except asyncio.CancelledError as error:
        session.cancel()
        internals.close_forgotten_sockets(error)
        raise


async def _commit(transaction: Transaction, access: Access) -> None:
    try:
        await transaction.commit()
    except LOST as error:
        if access == "READ":
            raise
        raise OutcomeUnknown("Neo4j was lost while it was to commit", backend=BACKEND) from error


def _server_timeout() -> float | None:
    """What is left of the call's time, for the server: to it, zero would be for ever."""
    left = remaining()
    return None if left is None else max(left, 0.001)


@contextmanager
def _sendable() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput("parameters", f"cannot be sent to Neo4j: {error}") from error
