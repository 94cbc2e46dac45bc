"""The pool: handing out in order, taking back clean, and leaving a server that left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

from kmp_core.deadlines import Timeout, deadline, within
from kmp_core.errors import KmpError, LifecycleError, Unauthenticated, Unavailable, Unsupported
from kmp_core.plugins import extra
from kmp_core.pool_metrics import PoolMetrics
from kmp_core.postgres.address import Address, Password
from kmp_core.postgres.connection import Connection
from kmp_core.postgres.errors import BACKEND, ERRORS
from kmp_core.postgres.slots import Slots
from kmp_core.postgres.transaction import Isolation, Transaction
from kmp_core.resource import Provider

with extra("asyncpg", install="kmp-core[postgres]"):
    import asyncpg

__all__ = ["PoolOptions", "PostgresPool"]

RESET = """
    CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; DISCARD TEMP; DISCARD SEQUENCES;
    SELECT pg_advisory_unlock_all()
"""
"""What DISCARD ALL does, but for the prepared statements, which are worth keeping. One exchange."""

_LEAVE_SECONDS = 1.0
_CLOSED = "the pool is closed"


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How many connections, and how long things may take."""

    size: int = 10
    acquire_timeout: timedelta = timedelta(seconds=5)
    connect_timeout: timedelta = timedelta(seconds=5)
    statement_timeout: timedelta = timedelta(seconds=30)
    reset_timeout: timedelta = timedelta(seconds=2)
    close_grace: timedelta = timedelta(seconds=2)
    look_after: timedelta = timedelta(seconds=15)
    """A connection that lay idle so long is asked whether it lives before it is handed out."""
    longest_life: timedelta = timedelta(hours=1)
    transaction_pooler: bool = False
    """Whether a pooler such as PgBouncer hands the server's connection to others after each transaction."""
    application: str = "kmp"
    server_settings: Mapping[str, str] = field(default_factory=dict)


class PostgresPool(Provider):
    """A fair pool for one database and one role.

    Behind a transaction pooler (`transaction_pooler`) two statements of one `acquire` may run on two of the server's
    connections, so what lives in a session is refused: `acquire` for statements of your own, and with it SET, LISTEN,
    session locks and temporary tables that outlive a transaction. `transaction()` works, and all that the stores do.
    """

    def __init__(
        self,
        address: Address | str,
        *,
        password: Password = None,
        options: PoolOptions | None = None,
        project: str = "local",
    ) -> None:
        self.address = Address.of(address, password=password) if isinstance(address, str) else address
        self.options = options or PoolOptions()
        self._slots = Slots(self.options.size, backend=BACKEND)
        self._idle: list[Connection] = []
        self._lent: set[Connection] = set()
        name = f"{self.address.host}/{self.address.database}"
        self._metrics = PoolMetrics(project=project, name=name, scope="kmp_core.postgres")
        self._turned_over_at = 0.0
        self._doubted_at = 0.0
        self._all_back: asyncio.Event | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def size(self) -> int:
        """How many connections there may be."""
        return self._slots.size

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection now."""
        return self._slots.waiting

    @property
    def in_use(self) -> int:
        """How many connections are handed out now."""
        return self._slots.taken

    @property
    def idle(self) -> int:
        """How many connections lie ready."""
        return len(self._idle)

    @asynccontextmanager
    async def acquire(
        self, *, timeout: Timeout = None, reset: bool = True, in_transaction: bool = False
    ) -> AsyncIterator[Connection]:
        """A connection for the block; waits at most `timeout` (default `acquire_timeout`), then `PoolExhausted`.

        `reset=False` is for work that promises to leave no state in the session: it saves an exchange.
        """
        self.ensure_open()
        if self.options.transaction_pooler and reset and not in_transaction:
            raise Unsupported(
                "a session of your own",
                provider="a pool behind a transaction pooler",
                instead="use transaction(): between transactions the pooler gives the connection to others",
            )
        connection = await self._take(timeout)
        try:
            yield connection
        finally:
            await self._put_back(connection, reset=reset)

    def transaction(
        self,
        *,
        isolation: Isolation = "read committed",
        read_only: bool = False,
        reset: bool = True,
        timeout: Timeout = None,
    ) -> Transaction:
        """A block that commits when it is left well; see `Transaction`. `timeout` bounds its begin, and its commit."""
        return Transaction(self, isolation=isolation, read_only=read_only, reset=reset, timeout=timeout)

    # The life of the pool

    async def _open(self) -> None:
        self._metrics.start(self)
        connection = await self._connect()
        self._idle.append(connection)

    async def _close(self) -> None:
        self._slots.close()
        self._metrics.stop()
        for task in self._connecting:
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting, timeout=_LEAVE_SECONDS)
        await asyncio.gather(*(self._retire(connection) for connection in self._idle))
        self._idle.clear()
        if self._lent:
            self._all_back = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.options.close_grace.total_seconds()):
                    await self._all_back.wait()
        for connection in list(self._lent):
            connection.terminate()

    async def _check(self) -> None:
        async with self.acquire(reset=False) as connection:
            await connection.fetch_value("SELECT 1")

    # Handing out

    async def _take(self, timeout: Timeout) -> Connection:
        seconds = within(timeout, self.options.acquire_timeout)
        with self._metrics.waiting():
            await self._slots.take(0.0 if seconds is None else seconds)
        try:
            connection = await self._ready()
            if self.state != "open":
                connection.terminate()
                raise LifecycleError(_CLOSED)
        except BaseException:
            self._slots.give()
            raise
        connection.lend()
        self._lent.add(connection)
        return connection

    async def _ready(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if await self._lives(connection):
                return connection
        return await self._connect_until_closed()

    async def _connect_until_closed(self) -> Connection:
        """Connect in a task of its own, which closing the pool ends at once, whoever waits for it."""
        made: list[Connection] = []

        async def connect() -> None:
            made.append(await self._connect())

        task = asyncio.get_running_loop().create_task(connect())
        self._connecting.add(task)
        cancelled = _cancellations()
        try:
            await task
            return made.pop()
        except asyncio.CancelledError:
            for connection in made:  # it was there in the very moment in which nobody wanted it any more
                connection.terminate()
            if self.state != "open" and _cancellations() == cancelled:
                raise LifecycleError(_CLOSED) from None
            raise
        finally:
            self._connecting.discard(task)

    async def _lives(self, connection: Connection) -> bool:
        if connection.is_closed or connection.made_at < self._turned_over_at or self._is_old(connection):
            connection.terminate()
            return False
        lay = _now() - connection.used_at
        if lay < self.options.look_after.total_seconds() and connection.used_at > self._doubted_at:
            return True
        try:
            async with connection.internal(min(_LEAVE_SECONDS, self.options.connect_timeout.total_seconds())) as driver:
                await driver.execute("SELECT")
        except KmpError:
            self._turned_over_at = _now()  # the others lay as long: nobody waits for each of them
            return False
        except BaseException:
            connection.terminate()
            raise
        return True

    def _is_old(self, connection: Connection) -> bool:
        # A pool's connections were made together; they shall not go together.
        jitter = 0.9 + 0.2 * ((id(connection) >> 4) % 97) / 97
        return _now() - connection.made_at > self.options.longest_life.total_seconds() * jitter

    async def _connect(self) -> Connection:
        try:
            return await self._log_in()
        except Unauthenticated:
            if not self.address.rotates:
                raise
        # A rotation may lie between the asking and the login.
        await asyncio.sleep(random.uniform(0.05, 0.15))  # noqa: S311 - spreads load
        return await self._log_in()

    async def _log_in(self) -> Connection:
        address, options = self.address, self.options
        what = "connecting to PostgreSQL"
        async with deadline(options.connect_timeout, what=what, backend=BACKEND):
            password = await address.current_password()
            with ERRORS.translating(), self._poolers_refusal():
                driver = await asyncpg.connect(
                    host=address.host,
                    port=address.port,
                    user=address.user,
                    # asyncpg would look for one in the environment where it is given None.
                    password=password or "",
                    database=address.database,
                    ssl=address.tls(),
                    timeout=options.connect_timeout.total_seconds(),
                    statement_cache_size=0 if options.transaction_pooler else 100,
                    server_settings=self._server_settings(),
                )
        return Connection(driver, statement_seconds=options.statement_timeout.total_seconds(), made_at=_now())

    @contextmanager
    def _poolers_refusal(self) -> Iterator[None]:
        # PostgreSQL itself has no such answer to a login of ours; PgBouncer has it for settings that it cannot keep.
        try:
            yield
        except asyncpg.ProtocolViolationError as error:
            if self.options.transaction_pooler:
                raise
            message = "A pooler refused the login; if it works in transaction mode, say so by transaction_pooler=true"
            raise Unavailable(message, backend=BACKEND) from error

    def _server_settings(self) -> dict[str, str]:
        if self.options.transaction_pooler:
            return dict(self.options.server_settings)
        return {
            "application_name": self.options.application,
            "timezone": "UTC",
            # A statement whose caller cut the connection ends soon, instead of running on for nobody.
            "client_connection_check_interval": "1s",
            **self.options.server_settings,
        }

    # Taking back

    async def _put_back(self, connection: Connection, *, reset: bool) -> None:
        try:
            if connection.turned_over:
                self._turned_over_at = _now()
            if connection.was_lost:
                self._doubted_at = _now()
            if not connection.take_back(_now()) or self.state != "open":
                connection.terminate()
            elif not connection.is_closed and (connection.in_transaction or (reset and connection.touched)):
                await self._clean(connection)
        finally:
            self._lent.discard(connection)
            if self._all_back is not None and not self._lent:
                self._all_back.set()
            # The pool may have closed while the connection was reset.
            kept = self.state == "open" and not connection.is_closed
            if kept and connection.made_at >= self._turned_over_at:
                self._idle.append(connection)
            else:
                connection.terminate()
            self._slots.give()

    async def _clean(self, connection: Connection) -> None:
        """Leave no trace of who had it. What fails here is the connection's end, and nobody's error."""
        undo = "ROLLBACK; " if connection.in_transaction else ""
        statement = undo or "SELECT" if self.options.transaction_pooler else undo + RESET
        try:
            async with connection.internal(self.options.reset_timeout.total_seconds()) as driver:
                await driver.execute(statement)
        except KmpError:
            connection.terminate()
        except BaseException:
            connection.terminate()
            raise

    async def _retire(self, connection: Connection) -> None:
        await connection.end(_LEAVE_SECONDS)


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _now() -> float:
    return asyncio.get_running_loop().time()
