"""Measurements on TimescaleDB, or on PostgreSQL where the extension is missing: a project's own tables in its own role.

```python
async with TimescaleStore("timescale://acme@db.internal/acme?sslrootcert=/etc/ssl/db-ca.pem", project="acme") as store:
    await store.append(Delay(time=now, flight="UA1545", origin="EWR", minutes=2.0))
    async with store.connection() as connection:
        await connection.fetch("SELECT origin, avg(minutes) FROM delays GROUP BY origin")
```
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kmp_core.breaker import Breaker
from kmp_core.clock import SYSTEM_CLOCK, Clock
from kmp_core.context import Context
from kmp_core.deadlines import Timeout, deadline, detached, duration, remaining, within
from kmp_core.errors import (
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    Fault,
    InvalidInput,
    KmpError,
    PoolExhausted,
    Unsupported,
)
from kmp_core.postgres import Address, Connection, Password, PoolOptions, PostgresPool, Transaction
from kmp_core.project import Project, backend_name
from kmp_core.resource import Provider
from kmp_core.retries import Retries
from kmp_core.secrets import SecretStore
from kmp_core.telemetry import Telemetry
from kmp_storage.arguments import whole_number
from kmp_storage.models import Measurement
from kmp_storage.protocols import Aggregation, Fill, TimeSeriesStore
from kmp_storage.series.calls import Summary, pairs_of, runs, tags_of
from kmp_storage.series.gaps import check_fill, filled
from kmp_storage.series.shape import Series, check, declared_fields
from kmp_storage.series.time_buckets import every_of, zone_of
from kmp_storage.settings.timescale import TimescaleSettings
from kmp_storage.timescale import queries, schema
from kmp_storage.timescale.codec import TimescaleCodec, timescale_codec_of
from kmp_storage.timescale.community import create_aggregate, enable_compression
from kmp_storage.timescale.replica import Replica
from kmp_storage.timescale.schema import Tier
from kmp_storage.timescale.stream import Stream
from kmp_storage.timescale.writes import FEW, delete_older, write, write_few
from kmp_storage.values import Row

if TYPE_CHECKING:
    from kmp_core.postgres import Isolation

__all__ = ["TimescaleStore"]

M = TypeVar("M", bound=Measurement)
T = TypeVar("T")

_log = logging.getLogger("kmp_storage.timescale")

_UNDO_SECONDS = 2.0
_OPENING_SWEEP_SECONDS = 2.0
_TICK = 0.01  # what the event loop's clock may be ahead of the deadline


class TimescaleStore(Provider, TimeSeriesStore):
    """Keep measurements in hypertables that belong to the project's own role, and that no other project can reach.

    `append` is acknowledged when it is committed. Rows older than their series' retention go when the store opens
    and, at most every `sweep_every`, while it appends: whole chunks by `drop_chunks`, the rest row by row.
    """

    abilities = frozenset({"durable", "retention", "shared", "unique", "zones"})

    def __init__(
        self,
        url: str,
        *,
        project: str = "local",
        settings: TimescaleSettings | None = None,
        password: Password = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.project = Project(project)
        self.settings = TimescaleSettings.load() if settings is None else settings
        self._clock = clock
        self._schema = backend_name(self.project, "postgres")
        self._pool = PostgresPool(url, password=password, options=self._options(), project=self.project)
        self._replica = self._replica_of(self._pool)
        # Tried again soon: a server that is back shall be used within five seconds.
        self._retries = Retries("timescale", breaker=Breaker("timescale", longest_pause="2s"))
        self._place: schema.Place | None = None
        self._prepared: set[type[Measurement]] = set()
        self._swept: dict[str, float] = {}
        self._due: dict[str, timedelta] = {}
        self._sweeping: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the store of a service's project; the settings may name the secret that is its password."""
        settings = TimescaleSettings.load()
        name = settings.password_secret
        if name is None:
            return cls(url, project=context.project, settings=settings)

        async def password() -> Any:
            return await (await context.get(SecretStore)).get(name)

        return cls(url, project=context.project, settings=settings, password=password)

    def _replica_of(self, primary: PostgresPool) -> Replica | None:
        url = self.settings.replica_url
        if url is None:
            return None
        address = Address.of(url.reveal(), name="KMP_STORAGE_TIMESCALE_REPLICA_URL")
        if address.password is None:
            address = replace(address, password=primary.address.password)
        if address.database != primary.address.database:
            problem = "names another database than the store's own, which is what a replica has"
            raise ConfigurationError(
                Fault("KMP_STORAGE_TIMESCALE_REPLICA_URL", problem, example=f".../{primary.address.database}")
            )

        def make() -> PostgresPool:
            return PostgresPool(address, options=self._options(), project=self.project)

        return Replica(make, primary, most_behind=self.settings.replica_lag)

    def _options(self) -> PoolOptions:
        found = self.settings
        return PoolOptions(
            size=found.pool_size,
            acquire_timeout=found.acquire_timeout,
            connect_timeout=found.connect_timeout,
            statement_timeout=found.timeout,
            transaction_pooler=found.transaction_pooler,
            application=f"kmp {self.project}",
            server_settings={} if found.transaction_pooler else {"search_path": f'"{self._schema}", public'},
        )

    @property
    def tier(self) -> Tier:
        """What the server can do, as found at `open`."""
        return self._where.tier

    @property
    def pool(self) -> PostgresPool:
        """The store's connections, to look at."""
        return self._pool

    @property
    def _where(self) -> schema.Place:
        self.ensure_open()
        assert self._place is not None
        return self._place

    # Its life

    async def _open(self) -> None:
        self._telemetry = Telemetry("db", "postgresql", project=self.project, scope="kmp_storage")
        await self._pool.open()
        async with self._pool.transaction(reset=False) as transaction:
            self._place = await schema.detect(transaction.connection, self._schema)
            await schema.make_catalogue(transaction.connection, self._place)
        if self._replica is not None:
            await self._replica.open()
        await self._sweep_all(self._place)

    async def _close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        if self._replica is not None:
            await self._replica.close()
        await self._pool.close()

    async def _check(self) -> None:
        await self._pool.check()

    # Sessions of the caller's own

    @asynccontextmanager
    async def connection(self, *, timeout: Timeout = None) -> AsyncIterator[Connection]:
        """SQL of your own, in the project's role and schema; what you leave in the session is wiped afterwards."""
        self.ensure_open()
        async with self._pool.acquire(timeout=timeout) as connection:
            yield connection

    def transaction(self, *, isolation: Isolation = "read committed") -> Transaction:
        """Several effects at once: hand it to `append`, and to whatever else takes `transaction=`."""
        self.ensure_open()
        return self._pool.transaction(isolation=isolation)

    # Writing

    async def append(
        self, *measurements: Measurement, transaction: Transaction | None = None, timeout: Timeout = None
    ) -> int:
        """Store them all or none; with `transaction=` they become visible with it, and go if it is undone."""
        place = self._where
        with self._telemetry.call("append", len(measurements)):
            groups = [
                (codec, first, codec.encode(rows, first_row=first))
                for codec, first, rows in (
                    (timescale_codec_of(model), n, rows) for model, n, rows in runs(measurements)
                )
            ]
            if not groups:
                return 0

            async def store(connection: Connection) -> int:
                new = 0
                for codec, first, rows in groups:
                    few = codec.unique and len(rows) <= FEW
                    new += await (
                        write_few(connection, place, codec, rows, first_row=first)
                        if few
                        else write(connection, place, codec, iter(rows), first_row=first)
                    )
                return new

            async with deadline(within(timeout, self.settings.timeout), what="append", backend="timescale"):
                for codec, _, _ in groups:
                    await self._prepare(codec)
                if transaction is not None:
                    return await _or_undone(transaction.connection, store)
                new = await self._committed(store, idempotent=all(codec.unique for codec, _, _ in groups))
            self._sweep_due([codec for codec, _, _ in groups])
            return new

    async def append_all(
        self,
        measurements: Iterable[M] | AsyncIterable[M],
        *,
        transaction: Transaction | None = None,
        timeout: Timeout = None,
    ) -> int:
        """Store a stream in one COPY; a slow source keeps a connection of the pool, and nobody waiting."""
        place = self._where
        with self._telemetry.call("append_all"):
            size, seconds = self.settings.chunk_rows, within(timeout, self.settings.timeout)
            stream = Stream(measurements, size)
            codec = await stream.begin()
            if codec is None:
                return 0
            async with deadline(seconds, what="append_all", backend="timescale"):
                await self._prepare(codec)

            async def store(connection: Connection) -> int:
                rows = stream.rows()
                new = await write(connection, place, codec, rows, progress=stream.progress, timeout=seconds)
                stream.check()
                return new

            if transaction is not None:
                return await _or_undone(transaction.connection, store)
            new = await self._committed(store, idempotent=False, timeout=seconds)
            self._sweep_due([codec])
            return new

    async def erase(self, series: type[Measurement], *, where: Mapping[str, Any], timeout: Timeout = None) -> int:
        place, codec = self._where, timescale_codec_of(series)
        if not where:
            raise InvalidInput(
                "where", "must name at least one tag, so that nobody erases all", example='{"user": "u7"}'
            )
        where_ = queries.filter_of(codec, None, None, where)

        async def delete(connection: Connection) -> int:
            if await self._stored(connection, codec) is None:
                return 0
            sql = f"DELETE FROM {place.table(codec.series)} AS t WHERE {where_.sql}"  # noqa: S608 - allow-listed
            return int((await connection.execute(sql, *where_.parameters)).rpartition(" ")[2])

        with self._telemetry.call("erase"):
            async with deadline(within(timeout, self.settings.timeout), what="erase", backend="timescale"):
                return await self._committed(delete, idempotent=True)

    # Reading

    async def read(
        self,
        series: type[M],
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int | None = None,
        timeout: Timeout = None,
    ) -> AsyncIterator[M]:
        place, codec = self._where, timescale_codec_of(series)
        where_ = queries.filter_of(codec, start, end, where)
        bound = None if limit is None else whole_number("limit", limit, least=0)
        chunk, seconds = self.settings.chunk_rows, within(timeout, self.settings.timeout)

        async def begin(pool: PostgresPool) -> tuple[AsyncExitStack, AsyncGenerator[list[Any], None], list[Any] | None]:
            async with AsyncExitStack() as stack:
                reading = pool.transaction(read_only=True, reset=False, timeout=seconds)
                connection = (await stack.enter_async_context(reading)).connection
                async with deadline(seconds, what="the question", backend="timescale", outcome_unknown=False):
                    stored = await self._stored(connection, codec)
                sql = "" if stored is None else queries.ordered(place, codec, stored, where_, bound)
                chunks = connection.stream(sql, *where_.parameters, chunk=chunk, timeout=seconds)
                await stack.enter_async_context(aclosing(chunks))
                rows = None if stored is None else await anext(chunks, None)
                return stack.pop_all(), chunks, rows
            raise AssertionError  # an exit stack swallows nothing

        # The span ends with the first rows: between later ones it is the caller's code that runs.
        with self._telemetry.call("read"):
            async with deadline(seconds, what="the question", backend="timescale", outcome_unknown=False):
                stack, chunks, rows = await self._near(begin) or await begin(self._pool)
        async with stack:
            while rows is not None:
                for measurement in codec.decode([tuple(row) for row in rows]):
                    yield measurement
                rows = await anext(chunks, None)

    async def aggregate(
        self,
        series: type[Measurement],
        *,
        values: Mapping[str, Aggregation | Sequence[Aggregation]],
        every: str | timedelta | None = None,
        by: Sequence[str] = (),
        start: datetime | None = None,
        end: datetime | None = None,
        where: Mapping[str, Any] | None = None,
        zone: str = "UTC",
        fill: Fill | None = None,
        timeout: Timeout = None,
    ) -> list[Row]:
        place, codec = self._where, timescale_codec_of(series)
        check_fill(fill, every)
        summary = Summary(
            pairs=pairs_of(codec, values),
            by=tags_of(codec, by),
            every=None if every is None else every_of(every),
            zone=zone_of(zone),
            where=queries.filter_of(codec, start, end, where),
        )

        async def ask(connection: Connection) -> list[Row]:
            stored = await self._stored(connection, codec)
            return await queries.summarise(connection, place, codec, stored, summary)

        with self._telemetry.call("aggregate"):
            rows = await self._asked(ask, timeout)
            return await asyncio.to_thread(filled, rows, fill, summary, start=start, end=end) if fill else rows

    async def latest(
        self,
        series: type[M],
        *,
        by: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
        timeout: Timeout = None,
    ) -> list[M]:
        place, codec = self._where, timescale_codec_of(series)
        tags, where_ = tags_of(codec, by), queries.filter_of(codec, None, None, where)

        async def ask(connection: Connection) -> list[M]:
            stored = await self._stored(connection, codec)
            if stored is None:
                return []
            sql = queries.latest(place, codec, stored, tags, where_)
            return codec.decode([tuple(row) for row in await connection.fetch(sql, *where_.parameters)])

        with self._telemetry.call("latest"):
            return await self._asked(ask, timeout)

    # What a tier may lack

    async def compress(self, series: type[Measurement], *, older_than: str | timedelta) -> None:
        """Have chunks compressed when they are that old. The Community tier only; experimental."""
        place, codec = self._refuse_below_community("compression"), timescale_codec_of(series)
        age = duration(older_than, field="older_than")
        await self._prepare(codec)
        await self._committed(lambda connection: enable_compression(connection, place, codec, age), idempotent=True)

    async def keep_aggregate(
        self,
        name: str,
        series: type[Measurement],
        *,
        every: str | timedelta,
        values: Mapping[str, Aggregation | Sequence[Aggregation]],
        by: Sequence[str] = (),
    ) -> None:
        """Have the server keep a continuous aggregate as the view `name`. The Community tier only; experimental."""
        place, codec = self._refuse_below_community("continuous aggregates"), timescale_codec_of(series)
        pairs, tags = pairs_of(codec, values), tags_of(codec, by)
        await self._prepare(codec)
        async with self._pool.acquire(reset=False) as connection:
            await create_aggregate(connection, place, codec, name, every=every_of(every), pairs=pairs, by=tags)

    def _refuse_below_community(self, ability: str) -> schema.Place:
        if self.tier != "community":
            shown = {"apache": "TimescaleDB's Apache-2 tier", "plain": "plain PostgreSQL"}[self.tier]
            raise Unsupported(ability, provider=shown, instead="TimescaleDB Community does")
        return self._where

    # Inside

    async def _asked(self, ask: Callable[[Connection], Awaitable[T]], timeout: Timeout) -> T:
        async def once(pool: PostgresPool) -> tuple[T]:
            async with pool.acquire(reset=False) as connection:
                answer = await ask(connection)
            return (answer,)

        async with deadline(within(timeout, self.settings.timeout), what="the question", backend="timescale"):
            found = await self._near(once)
            if found is None:
                found = await self._retries.call(lambda: once(self._pool), idempotent=True)
            return found[0]

    async def _near(self, ask: Callable[[PostgresPool], Awaitable[T]]) -> T | None:
        """Ask the replica; None where the primary is to be asked."""
        if self._replica is None or (pool := self._replica.near()) is None:
            return None
        began = time.monotonic()
        try:
            return await ask(pool)
        except PoolExhausted:
            raise  # what is too much for one of the two shall not fall upon the other
        except asyncio.CancelledError:
            # The deadline around the call arrives like this.
            left = remaining()
            if left is not None and left < _TICK:
                self._replica.late(time.monotonic() - began)
            raise
        except DeadlineExceeded:
            self._replica.late(time.monotonic() - began)
            return None
        except KmpError as error:
            # What is wrong with the question says nothing of the replica, and the primary may know a newer table.
            if not isinstance(error, Conflict | InvalidInput | Unsupported):
                self._replica.doubt(error)
            return None

    async def _committed(
        self, work: Callable[[Connection], Awaitable[T]], *, idempotent: bool, timeout: Timeout = None
    ) -> T:
        async def once() -> T:
            async with self._pool.transaction(reset=False, timeout=timeout) as transaction:
                return await work(transaction.connection)

        return await self._retries.call(once, idempotent=idempotent)

    async def _stored(self, connection: Connection, codec: TimescaleCodec[Any]) -> Series | None:
        stored = await schema.find(connection, self._where, codec.series)
        if stored is not None:
            check(codec, stored)
        return stored

    async def _prepare(self, codec: TimescaleCodec[Any]) -> None:
        """Have the table fit the class; a look, and a change under the lock only where one is needed."""
        if codec.model in self._prepared:
            return
        place = self._where

        async def make(connection: Connection) -> None:
            await schema.prepare(connection, place, codec, self.settings.chunk_interval)

        async with self._pool.acquire(reset=False) as connection:
            stored = await self._stored(connection, codec)
        if stored is None or not _covers(stored, codec):
            await self._committed(make, idempotent=True)
        self._prepared.add(codec.model)

    # Retention

    def _sweep_due(self, codecs: Sequence[TimescaleCodec[Any]]) -> None:
        """Have old rows deleted, in nobody's time."""
        now = time.monotonic()
        for codec in codecs:
            if codec.retention is not None and now >= self._swept.get(codec.series, 0.0):
                self._swept[codec.series] = now + self.settings.sweep_every.total_seconds()
                self._due[codec.series] = codec.retention
        self._start_sweeping(self._where)

    def _start_sweeping(self, place: schema.Place) -> None:
        if self._due and (self._sweeping is None or self._sweeping.done()):
            sweeping = self._sweep_those_due(place)
            self._sweeping = asyncio.get_running_loop().create_task(sweeping, context=detached())

    async def _sweep_those_due(self, place: schema.Place) -> None:
        while self._due:
            series, retention = self._due.popitem()
            await self._sweep(place, series, retention)

    async def _sweep_all(self, place: schema.Place) -> None:
        async with self._pool.acquire(reset=False) as connection:
            found = await connection.fetch(
                f"SELECT name, retention FROM {place.catalogue} WHERE retention IS NOT NULL"  # noqa: S608
            )
        self._due.update(map(tuple, found))
        self._start_sweeping(place)
        if self._sweeping is not None:
            # What is soon done is done when the store opens; nobody's start waits for the rest.
            await asyncio.wait((self._sweeping,), timeout=_OPENING_SWEEP_SECONDS)

    async def _sweep(self, place: schema.Place, series: str, retention: timedelta) -> None:
        """Delete what is too old. A failure is logged: it is no fault of whoever appends, and the next sweep tries."""
        before = self._clock.now() - retention
        try:
            more = True
            while more:
                async with self._pool.transaction(reset=False) as transaction:
                    connection = transaction.connection
                    await connection.execute("SET LOCAL lock_timeout = '1s'")
                    key = f"kmp sweep:{place.schema}.{series}"
                    mine = await connection.fetch_value(
                        "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))", key
                    )
                    more = mine and await delete_older(connection, place, series, before, chunks=place.tier != "plain")
        except KmpError as error:
            _log.warning("rows of series %s beyond their retention stay for now: %s", series, type(error).__name__)


async def _or_undone(connection: Connection, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Work inside somebody's transaction: what failed leaves nothing there, whether or not the transaction goes on."""
    await connection.execute("SAVEPOINT kmp_append")
    try:
        done = await work(connection)
    except BaseException:
        if not connection.is_closed:
            # In its own time: that of the work may be what was over. Where it fails, the transaction is lost with it.
            with suppress(KmpError):
                async with connection.internal(_UNDO_SECONDS) as driver:
                    await driver.execute("ROLLBACK TO SAVEPOINT kmp_append; RELEASE SAVEPOINT kmp_append")
        raise
    await connection.execute("RELEASE SAVEPOINT kmp_append")
    return done


def _covers(stored: Series, codec: TimescaleCodec[Any]) -> bool:
    """Whether the table needs no change for the class (a change of tags or retention is found by the lock's holder)."""
    declared = declared_fields(codec)
    return (
        set(stored.tags) == set(codec.tags)
        and all(stored.fields.get(name) == known for name, known in declared.items())
        and stored.retention == (None if codec.retention is None else codec.retention // timedelta(microseconds=1))
    )
