"""What the TimescaleDB store does beyond the contract: hypertables, evolution, transactions, retention, faults."""

from __future__ import annotations

import asyncio
import secrets
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psutil
import pytest

import faults
import testbed
from kmp_core.errors import (
    BackendError,
    BreakerOpen,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    KmpError,
    PoolExhausted,
    Unavailable,
    Unsupported,
)
from kmp_core.postgres import Contention
from kmp_core.secrets import Secret
from kmp_core.service import Service
from kmp_storage.models import Measurement
from kmp_storage.protocols import TimeSeriesStore
from kmp_storage.series.time_buckets import segments
from kmp_storage.timescale import TimescaleSettings, TimescaleStore, queries, schema
from kmp_storage.timescale.provisioning import Access, TimescaleProvisioner
from postgres_bed import admin, admin_url, until, url_at

START = datetime(2024, 1, 1, tzinfo=UTC)


class Delay(Measurement, series="delays", tags=("origin",), unique=("flight",)):
    flight: str
    origin: str
    minutes: float | None = None


class Reading(Measurement, series="readings", tags=("site",)):
    site: str
    value: float


class Brief(Measurement, series="brief", tags=("site",), retention="30d"):
    site: str = "a"


def delay(number: int, **changes: Any) -> Delay:
    fields = {"time": START + timedelta(minutes=number), "flight": f"KM{number}", "origin": "JFK", "minutes": 1.0}
    return Delay(**{**fields, **changes})


def reading(number: int) -> Reading:
    return Reading(time=START + timedelta(seconds=number), site=f"s{number % 3}", value=float(number))


@pytest.fixture(params=[True, False], ids=["apache", "plain"])
async def access(request: pytest.FixtureRequest, timescaledb: testbed.Server) -> AsyncIterator[Access]:
    async for made in project_on(timescaledb, extension=request.param):
        yield made


@pytest.fixture
async def apache(timescaledb: testbed.Server) -> AsyncIterator[Access]:
    async for made in project_on(timescaledb, extension=True):
        yield made


async def project_on(server: testbed.Server, *, extension: bool) -> AsyncIterator[Access]:
    name = f"p-{secrets.token_hex(5)}"
    async with TimescaleProvisioner(admin_url(server), extension=extension) as operator:
        yield await operator.provision(name)
        await server.wait_until_ready()
        await operator.deprovision(name, force=True)


def store_of(access: Access, port: int | None = None, **settings: Any) -> TimescaleStore:
    url = access.url.reveal()
    if port is not None:
        url = url_at(url, port)
    return TimescaleStore(url, project=access.project, settings=TimescaleSettings(**settings))


# Tables


async def test_a_series_is_a_hypertable_with_its_indexes(apache: Access) -> None:
    async with store_of(apache, chunk_interval="1d") as store, store.connection() as connection:
        await store.append(delay(0), delay(3000), reading(0))
        chunks = await connection.fetch_value("SELECT count(*) FROM show_chunks('delays')")
        assert chunks == 3 or chunks == 2
        indexes = {
            row[0].partition(" USING ")[2]
            for row in await connection.fetch(
                "SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() AND tablename = 'delays'"
            )
        }
        assert indexes == {'btree ("time", flight)', 'btree (origin, "time")'}


async def test_what_the_tier_lacks_names_the_tier_that_has_it(access: Access) -> None:
    async with store_of(access) as store:
        for call in (
            store.compress(Delay, older_than="7d"),
            store.keep_aggregate("hourly", Delay, every="1h", values={"minutes": "mean"}),
        ):
            with pytest.raises(Unsupported, match="TimescaleDB Community does") as lacking:
                await call
            assert ("Apache-2" if store.tier == "apache" else "plain PostgreSQL") in str(lacking.value)


async def test_a_new_optional_field_is_added_and_old_rows_lack_it(access: Access) -> None:
    class Wider(Measurement, series="delays", tags=("origin", "gate"), unique=("flight",)):
        flight: str
        origin: str
        minutes: float | None = None
        gate: str | None = None

    async with store_of(access) as old, store_of(access) as new:
        await old.append(delay(0))
        assert [row.gate async for row in new.read(Wider)] == [None]
        await new.append(Wider(time=START, flight="KM9", origin="EWR", gate="B7"))
        assert [row.gate for row in await new.latest(Wider, by=("gate",))] == [None, "B7"]
        await old.append(delay(1))  # the version before goes on beside it
        assert [row.flight async for row in old.read(Delay)] == ["KM0", "KM9", "KM1"]


async def test_versions_with_a_new_field_each_keep_both(access: Access) -> None:
    class Gated(Measurement, series="readings", tags=("site",)):
        site: str
        value: float
        gate: str | None = None

    class Crewed(Measurement, series="readings", tags=("site",)):
        site: str
        value: float
        crew: int | None = None

    gated, crewed = Gated(time=START, site="a", value=1.0, gate="B7"), Crewed(time=START, site="b", value=2.0, crew=5)
    for row in (reading(0), gated, crewed, gated):
        async with store_of(access, pool_size=1) as store:
            await store.append(row)
    async with store_of(access, pool_size=1) as store:
        assert await store.latest(Gated, where={"site": "a"}) == [gated]
        assert await store.latest(Crewed, where={"site": "b"}) == [crewed]


async def test_a_class_that_does_not_fit_is_refused_with_advice(access: Access) -> None:
    class Retyped(Measurement, series="delays", tags=("origin",), unique=("flight",)):
        flight: str
        origin: str
        minutes: str | None = None

    class Stricter(Measurement, series="delays", tags=("origin",), unique=("flight",)):
        flight: str
        origin: str
        minutes: float | None = None
        gate: str

    class Rekeyed(Measurement, series="delays", tags=("origin",), unique=("flight", "origin")):
        flight: str
        origin: str
        minutes: float | None = None

    async with store_of(access) as store:
        await store.append(delay(0))
        for wrong, advice in (
            (Retyped(time=START, flight="x", origin="x"), "series of its own"),
            (Stricter(time=START, flight="x", origin="x", gate="B"), "give it a default"),
            (Rekeyed(time=START, flight="x", origin="x"), "series of its own"),
        ):
            with pytest.raises(Conflict, match=advice):
                await store.append(wrong)
        assert [row async for row in store.read(Delay)] == [delay(0)]


async def test_replicas_that_start_at_once_make_one_table(access: Access) -> None:
    stores = [store_of(access, pool_size=2) for _ in range(6)]
    await asyncio.gather(*(store.open() for store in stores))
    try:
        new = await asyncio.gather(*(store.append(*map(delay, range(20))) for store in stores))
        assert sum(new) == 20
    finally:
        await asyncio.gather(*(store.close() for store in stores))


async def test_awkward_names_are_no_trap(access: Access) -> None:
    class Awkward(Measurement, series="order", tags=("select", "User"), unique=("table",)):
        select: str
        User: str
        table: int
        end: float

    async with store_of(access) as store:
        row = Awkward(time=START, select="'; DROP TABLE x --", User="$1", table=1, end=1.0)
        assert await store.append(row, row) == 1
        assert await store.latest(Awkward, by=("select", "User"), where={"select": row.select}) == [row]
        (found,) = await store.aggregate(Awkward, values={"end": ["first", "last"]}, by=("User",))
        assert (found["User"], found["end_first"], found["end_last"]) == ("$1", 1.0, 1.0)


@pytest.mark.parametrize("count", [20, 2000])
async def test_rows_that_count_once_are_told_apart_however_many_come(access: Access, count: int) -> None:
    rows = [delay(number) for number in range(count)]
    async with store_of(access) as store:
        assert await store.append(*rows, *rows) == count
        assert await store.append(*rows) == 0
        other = rows[7].model_copy(update={"minutes": None})
        with pytest.raises(Conflict, match=r"row 15: .*flight='KM7'"):
            await store.append(*(delay(number, time=START) for number in range(15)), other, *rows)
        assert [row async for row in store.read(Delay)] == rows


async def test_a_conflict_names_the_row_whatever_else_comes_before_it(access: Access) -> None:
    async with store_of(access) as store:
        await store.append(delay(0))
        other = delay(0, minutes=7.0)
        # Sizes that leave gaps in the pages of the temporary table, which later rows would fit into.
        sizes = [delay(number, origin="x" * (number * 997 % 5000)) for number in range(1, 2000)]
        with pytest.raises(Conflict, match="row 1500: "):
            await store.append_all([*sizes[:1500], other, *sizes[1500:]])
        for count in (20, 1800):
            with pytest.raises(Conflict, match=f"row {count + 3}: "):
                await store.append(reading(0), reading(1), reading(2), *sizes[:count], other)
        assert not await store.latest(Reading)


async def test_many_rows_that_count_once_are_all_or_nothing_over_several_rounds(access: Access) -> None:
    rows = [delay(number) for number in range(45_000)]
    async with store_of(access) as store:
        await store.append(rows[0])
        wrong = rows[0].model_copy(update={"minutes": "hunter2"})
        other = rows[21_000].model_copy(update={"minutes": 7.0})
        for last, problem, error in ((wrong, "row 45000, minutes", InvalidInput), (other, "row 45000: ", Conflict)):
            with pytest.raises(error, match=problem):
                await store.append_all([*rows, last])
            assert [row async for row in store.read(Delay)] == rows[:1]
        appending = asyncio.ensure_future(store.append_all(rows))
        await asyncio.sleep(0.3)
        appending.cancel()
        await asyncio.gather(appending, return_exceptions=True)
        assert len([row async for row in store.read(Delay)]) in (1, 45_000)
        assert await store.append_all([*rows, *rows]) in (0, 44_999)
        assert store.pool.in_use == 0


async def test_a_row_that_is_there_already_may_come_late(access: Access) -> None:
    rows = [delay(number) for number in range(50_000)]
    other = rows[3].model_copy(update={"minutes": 7.0})
    async with store_of(access, chunk_interval="90d") as store:
        with pytest.raises(Conflict, match="row 45000: "):
            await store.append_all([*rows[:45_000], other, *rows[45_000:]])
        assert await store.latest(Delay) == []
        assert await store.append_all([*rows[:45_000], *rows[:10], *rows[45_000:]]) == 50_000
        assert [row async for row in store.read(Delay)] == rows


async def each(rows: Iterable[Any]) -> AsyncIterator[Any]:
    for row in rows:
        yield row


async def test_rows_that_come_as_somebody_finds_time_are_moved_in_parts(access: Access) -> None:
    rows = [delay(number) for number in range(45_000)]
    async with store_of(access, chunk_interval="90d") as store:
        await store.append(rows[0])
        async with store.transaction() as transaction:
            await transaction.execute("CREATE TABLE statements (rows bigint)")
            await transaction.execute(
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
                "$$BEGIN INSERT INTO statements VALUES (1); RETURN NULL; END$$"
            )
            await transaction.execute("CREATE TRIGGER noting AFTER INSERT ON delays EXECUTE FUNCTION note()")
        other = rows[0].model_copy(update={"minutes": 7.0})
        with pytest.raises(Conflict, match="row 41000: "):
            await store.append_all(each([*rows[:41_000], other, *rows[41_000:]]))
        assert [row async for row in store.read(Delay)] == rows[:1]
        assert await store.append_all(each([*rows, *rows[:20]])) == 44_999
        async with store.connection() as connection:
            assert await connection.fetch_value("SELECT count(*) FROM statements") >= 3
        assert [row async for row in store.read(Delay)] == rows


async def test_a_source_that_keeps_the_loop_busy_takes_its_own_time(apache: Access) -> None:
    def slow() -> Iterator[Delay]:
        for number in range(22_000):
            if number == 21_000:
                time.sleep(2.5)  # longer than the server may take
            yield delay(number)
        time.sleep(2.5)

    async with store_of(apache, timeout="2s", chunk_interval="90d") as store:
        assert await store.append_all(slow()) == 22_000


async def test_a_call_may_take_longer_than_the_setting_says(apache: Access, timescaledb: testbed.Server) -> None:
    async with store_of(apache, timeout="2s") as store, admin(timescaledb, apache.database) as operator:
        asked: list[asyncio.Future[Any]] = []

        async def read() -> list[Reading]:
            return [row async for row in store.read(Reading, timeout="60s")]

        delays, readings = [delay(number) for number in range(700)], [reading(number) for number in range(3)]
        await store.append(readings[0], delays[0])

        async def late() -> bool:
            waits = "wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '2.5s'"
            async with admin(timescaledb) as onlooker:
                counting = f"SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND {waits}"
                found = await onlooker.fetchval(counting, apache.role)
            return found == len(asked) or any(task.done() for task in asked)

        async with operator.transaction():
            for series in ("readings", "delays"):
                await operator.execute(f"LOCK TABLE {apache.schema}.{series} IN ACCESS EXCLUSIVE MODE")
            calls: list[Awaitable[Any]] = [
                read(),
                store.append(delays[1], timeout="60s"),
                store.append(*delays, timeout="60s"),
                store.append(*readings, timeout="60s"),
                store.append_all(iter(delays), timeout="60s"),
                store.aggregate(Reading, values={"value": "mean"}, timeout="60s"),
                store.latest(Reading, timeout="60s"),
                store.erase(Reading, where={"site": "none"}, timeout="60s"),
            ]
            asked += [asyncio.ensure_future(call) for call in calls]
            await until(late)
            assert not any(task.done() for task in asked)
        await asyncio.gather(*asked)


async def test_a_call_that_waits_for_a_lock_ends_with_its_deadline(apache: Access, timescaledb: testbed.Server) -> None:
    delays = [delay(number) for number in range(700)]
    async with store_of(apache) as store, admin(timescaledb, apache.database) as operator:
        await store.append(delays[0], reading(0))
        async with operator.transaction():
            for series in ("readings", "delays"):
                await operator.execute(f"LOCK TABLE {apache.schema}.{series} IN SHARE MODE")  # who reads goes on
            for call in (
                store.append_all(iter(delays), timeout="300ms"),
                store.append_all(each(delays), timeout="300ms"),
                store.append_all([reading(1)], timeout="300ms"),
                store.append_all(each([reading(1)]), timeout="300ms"),
                store.append(*delays, timeout="300ms"),
                store.append(delays[1], timeout="300ms"),
                store.append(reading(1), timeout="300ms"),
            ):
                with pytest.raises(DeadlineExceeded):
                    await asyncio.wait_for(call, 20)
            assert await store.latest(Delay) == [delays[0]]
        assert await store.append(*delays) == 699


# Transactions and sessions


async def test_an_append_commits_and_goes_with_its_transaction(access: Access) -> None:
    async with store_of(access) as store:
        await store.append(delay(0), reading(0))
        with pytest.raises(RuntimeError):
            async with store.transaction() as transaction:
                assert await store.append(delay(1), reading(1), transaction=transaction) == 2
                assert await store.append_all([delay(2), delay(2)], transaction=transaction) == 1
                assert await transaction.fetch_value("SELECT count(*) FROM delays") == 3
                raise RuntimeError
        assert len([row async for row in store.read(Delay)]) == 1
        async with store.transaction() as transaction:
            await store.append(delay(1), transaction=transaction)
            await store.append(delay(2), transaction=transaction)
            assert len([row async for row in store.read(Delay)]) == 1
        assert len([row async for row in store.read(Delay)]) == 3


@pytest.mark.parametrize("count", [1, 600])
async def test_a_refused_append_leaves_nothing_in_its_transaction(access: Access, count: int) -> None:
    async with store_of(access) as store:
        await store.append(delay(0))
        rows = [*(delay(number) for number in range(1, count + 1)), delay(0, minutes=7.0)]
        async with store.transaction() as transaction:
            await store.append(delay(5000), transaction=transaction)
            with pytest.raises(Conflict, match="nothing was written"):
                await store.append(*rows, transaction=transaction)
            with pytest.raises(Conflict, match="nothing was written"):
                await store.append_all(rows, transaction=transaction)
            assert await store.append(*rows[:-1], transaction=transaction) == count
            assert await transaction.fetch_value("SELECT count(*) FROM delays") == count + 2
        assert [row async for row in store.read(Delay)] == [delay(0), *rows[:-1], delay(5000)]


@pytest.mark.parametrize("source", ["iterable", "async iterable"])
@pytest.mark.parametrize("series", ["readings", "delays"])
async def test_a_row_that_cannot_be_kept_leaves_the_transaction_to_its_caller(
    access: Access, series: str, source: str
) -> None:
    make: Callable[[int], Any] = reading if series == "readings" else delay
    rows = [make(number) for number in range(25_000)]
    wrong = rows[0].model_copy(update={"value" if series == "readings" else "minutes": "hunter2"})

    def fails() -> Iterator[Any]:
        yield from rows[:3_000]
        raise RuntimeError("the source's own")

    def given(found: Iterable[Any]) -> Any:
        return found if source == "iterable" else each(found)

    async with store_of(access, pool_size=1) as store:
        await store.append(make(100_000))
        async with store.transaction() as transaction:
            process = transaction.connection.server_process
            await store.append(make(100_001), transaction=transaction)
            with pytest.raises(InvalidInput, match=r"row 25000, (value|minutes)") as refused:
                await store.append_all(given([*rows, wrong]), transaction=transaction)
            assert "hunter2" not in str(refused.value)
            with pytest.raises(RuntimeError, match="own"):
                await store.append_all(given(fails()), transaction=transaction)
            assert await transaction.fetch_value(f"SELECT count(*) FROM {series}") == 2
            assert await store.append_all(given(rows[:10]), transaction=transaction) == 10
        async with store.connection() as connection:
            assert connection.server_process == process, "nobody's connection was lost"
            assert await connection.fetch_value(f"SELECT count(*) FROM {series}") == 12
        with pytest.raises(InvalidInput, match="row 25000"):
            await store.append_all(given([*rows, wrong]))
        async with store.connection() as connection:
            assert connection.server_process == process
            assert await connection.fetch_value(f"SELECT count(*) FROM {series}") == 12


async def test_own_sql_runs_as_the_projects_role_in_its_schema(access: Access) -> None:
    async with store_of(access) as store:
        await store.append(delay(0), delay(1, minutes=3.0))
        async with store.connection() as connection:
            assert await connection.fetch_value("SELECT current_user") == access.role
            assert await connection.fetch_value("SELECT avg(minutes) FROM delays WHERE origin = $1", "JFK") == 2.0
            await connection.execute("SET search_path = pg_catalog; SET ROLE NONE")
        async with store.connection() as connection:
            assert await connection.fetch_value("SELECT count(*) FROM delays") == 2


async def test_a_service_finds_the_store_by_its_scheme(access: Access, kmp_environment: Any) -> None:
    kmp_environment.set("KMP_PROJECT", access.project)
    kmp_environment.set("KMP_STORAGE_TIMESERIES_URL", access.url.reveal().replace(f":{password_of(access)}@", "@"))
    kmp_environment.set("KMP_STORAGE_TIMESCALE_PASSWORD_SECRET", "db-password")
    kmp_environment.set("KMP_SECRET_DB_PASSWORD", password_of(access))
    async with Service("delays") as service:
        store = await service.get(TimeSeriesStore)
        assert isinstance(store, TimescaleStore)
        assert await store.append(delay(0)) == 1


async def test_a_service_follows_a_secret_that_is_rotated(
    apache: Access, timescaledb: testbed.Server, kmp_environment: Any
) -> None:
    kmp_environment.set("KMP_PROJECT", apache.project)
    kmp_environment.set("KMP_STORAGE_TIMESERIES_URL", apache.url.reveal().replace(f":{password_of(apache)}@", "@"))
    kmp_environment.set("KMP_STORAGE_TIMESCALE_PASSWORD_SECRET", "db-password")
    kmp_environment.set("KMP_SECRET_DB_PASSWORD", password_of(apache))
    async with Service("delays") as service:
        store = await service.get(TimeSeriesStore)
        await store.append(delay(0))
        async with TimescaleProvisioner(admin_url(timescaledb)) as operator:
            await operator.set_password(apache.project, Secret("the-next-password-1"))
        kmp_environment.set("KMP_SECRET_DB_PASSWORD", "the-next-password-1")
        async with admin(timescaledb) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", apache.role
            )
        assert await store.append(delay(1)) == 1


def password_of(access: Access) -> str:
    assert access.password is not None
    return access.password.reveal()


# Retention


async def test_old_chunks_are_dropped_and_old_rows_deleted(access: Access) -> None:
    now = datetime.now(UTC)
    ages = [timedelta(days=400), timedelta(days=200), timedelta(days=31), timedelta(days=29), timedelta(0)]
    async with store_of(access, sweep_every="0s") as store:
        await store.append(*(Brief(time=now - age) for age in ages))

        async def swept() -> bool:
            return [now - row.time async for row in store.read(Brief)] == ages[3:]

        await until(swept)
        if store.tier == "apache":
            async with store.connection() as connection:
                assert await connection.fetch_value("SELECT count(*) FROM show_chunks('brief')") <= 4
                sql = "SELECT time_interval FROM timescaledb_information.dimensions WHERE hypertable_name = 'brief'"
                assert await connection.fetch_value(sql) == timedelta(days=30) / 8, "few rows outlive their retention"


async def test_a_sweep_that_is_blocked_does_not_fail_the_append(
    access: Access, caplog: pytest.LogCaptureFixture
) -> None:
    now = datetime.now(UTC)
    async with store_of(access, sweep_every="0s") as store:
        await store.append(Brief(time=now))
        assert store._sweeping is not None
        await store._sweeping  # that append's own sweep, which would take the old row away before it is held
        async with store.transaction() as setup:
            await setup.execute("INSERT INTO brief (time, site) VALUES ($1, 'old')", now - timedelta(days=99))
        async with store.transaction() as transaction:
            held = await transaction.fetch("SELECT * FROM brief WHERE site = 'old' FOR UPDATE")
            assert len(held) == 1
            assert await store.append(Brief(time=now), timeout="20s") == 1
            assert "beyond their retention stay" not in caplog.text, "nobody waits for it"

            async def told() -> bool:
                return "beyond their retention stay" in caplog.text

            await until(told)
            async with store_of(access, sweep_every="0s") as leaving:
                await leaving.append(Brief(time=now))
        assert await store.append(Brief(time=now)) == 1

        async def swept() -> bool:
            return {row.site async for row in store.read(Brief)} == {"a"}

        await until(swept)


async def test_old_rows_go_a_bounded_number_at_a_time(access: Access) -> None:
    old = datetime.now(UTC) - timedelta(days=30, seconds=1)  # in a chunk that also has rows to be kept
    async with store_of(access) as store:
        await store.append(Brief(time=datetime.now(UTC)))
        assert store._sweeping is not None
        await store._sweeping
        async with store.transaction() as setup:
            await setup.execute("CREATE TABLE statements (rows bigint)")
            await setup.execute(
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
                "$$BEGIN INSERT INTO statements VALUES (1); RETURN NULL; END$$"
            )
            await setup.execute(
                "CREATE TRIGGER noting AFTER DELETE ON brief FOR EACH STATEMENT EXECUTE FUNCTION note()"
            )
            await setup.execute("INSERT INTO brief (time, site) SELECT $1, 'old' FROM generate_series(1, 45000)", old)
    async with store_of(access) as store:
        assert store._sweeping is not None
        await store._sweeping
        assert [row.site async for row in store.read(Brief)] == ["a"]
        async with store.connection() as connection:
            assert await connection.fetch_value("SELECT count(*) FROM statements") == 3


async def test_one_of_many_sweeps_a_series(access: Access) -> None:
    async with store_of(access) as store:
        await store.append(Brief(time=datetime.now(UTC)))
        assert store._sweeping is not None
        await store._sweeping
        async with store.transaction() as setup:
            await setup.execute("INSERT INTO brief VALUES ($1, 'old')", datetime.now(UTC) - timedelta(days=99))
        async with store.transaction() as sweeping:
            await sweeping.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"kmp sweep:{access.schema}.brief"
            )
            async with store_of(access) as other:
                assert other._sweeping is not None
                await other._sweeping
                assert {row.site async for row in other.read(Brief)} == {"a", "old"}
        async with store_of(access) as other:
            assert other._sweeping is not None
            await other._sweeping
            assert {row.site async for row in other.read(Brief)} == {"a"}


async def test_opening_waits_for_no_long_sweep(access: Access) -> None:
    async with store_of(access) as store:
        await store.append(Brief(time=datetime.now(UTC)))
        assert store._sweeping is not None
        await store._sweeping  # or the lock of this one may still be held
        async with store.transaction() as setup:
            # In a chunk that also has rows to be kept, since whole chunks go without a trigger.
            just_over = datetime.now(UTC) - timedelta(days=30, seconds=1)
            await setup.execute("INSERT INTO brief (time, site) VALUES ($1, 'old')", just_over)
            await setup.execute(
                "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
                "$$BEGIN PERFORM pg_sleep(100); RETURN OLD; END$$"
            )
            await setup.execute("CREATE TRIGGER slow BEFORE DELETE ON brief FOR EACH ROW EXECUTE FUNCTION dawdle()")
    async with store_of(access, timeout="90s", pool_size=2) as late:
        assert late._sweeping is not None
        assert not late._sweeping.done()
        assert "a" in {row.site async for row in late.read(Brief)}


# Time zones


async def test_buckets_of_a_zone_reach_over_all_years(access: Access) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    times = [
        datetime(1, 2, 3, 4, 5, 6, tzinfo=UTC),
        datetime(1980, 4, 6, 0, 30, tzinfo=UTC),
        datetime(1980, 4, 6, 1, 30, tzinfo=UTC),  # the clock jumped between the two
        datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
        datetime(2024, 10, 27, 1, 30, tzinfo=UTC),  # an hour later, at the same time of the clock
        datetime(8000, 7, 8, 9, 10, tzinfo=UTC),
    ]
    async with store_of(access) as store:
        await store.append(*(Reading(time=time, site="a", value=1.0) for time in times))
        rows = await store.aggregate(
            Reading, values={"value": "count"}, every="1h", zone="Europe/Berlin", timeout="60s"
        )
    expected = [time.astimezone(berlin).replace(minute=0, second=0).astimezone(UTC) for time in times]
    assert [(row.time.astimezone(UTC), row["value_count"]) for row in rows if row.time] == [(e, 1) for e in expected]


async def test_nobody_waits_while_the_changes_of_a_zone_are_looked_up(
    access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def watched(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return segments(*arguments)

    monkeypatch.setattr(queries, "segments", watched)
    async with store_of(access) as store:
        await store.append(*(reading(0).model_copy(update={"time": START.replace(year=year)}) for year in (1500, 2024)))
        rows = await store.aggregate(Reading, values={"value": "count"}, every="1y", zone="Europe/Berlin")
        assert [(row.time and row.time.year, row["value_count"]) for row in rows] == [(1500, 1), (2024, 1)]
    assert threading.get_ident() not in threads
    assert len(threads) == 1


# Bad input


async def test_wrong_values_name_row_and_field_and_never_themselves(access: Access) -> None:
    async with store_of(access) as store:
        wrong = reading(3).model_copy(update={"value": "hunter2"})
        for call in (store.append(reading(0), wrong), store.append_all(iter([reading(0), wrong]))):
            with pytest.raises(InvalidInput) as refused:
                await call
            assert (refused.value.row, refused.value.field) == (1, "value")
            assert "hunter2" not in str(refused.value)
        with pytest.raises(InvalidInput, match="64 bits"):
            await store.append(Reading(time=START, site="a", value=1.0).model_copy(update={"value": 10**400}))
        edge = datetime.max.replace(tzinfo=UTC)
        assert await store.append(Reading(time=edge, site="edge", value=1.0)) == 1
        assert [row.time async for row in store.read(Reading, where={"site": "edge"})] == [edge]


# Memory


async def test_streams_are_flat_in_memory(access: Access) -> None:
    process = psutil.Process()

    def source() -> Iterator[Reading]:
        ready = [reading(number) for number in range(1000)]
        for _ in range(300):
            yield from ready

    async with store_of(access) as store:
        await store.append_all(map(reading, range(20_000)))
        before, most = process.memory_info().rss, 0
        assert await store.append_all(source()) == 300_000
        most = process.memory_info().rss
        seen = 0
        async for _ in store.read(Reading):
            seen += 1
            if seen % 20_000 == 0:
                most = max(most, process.memory_info().rss)
        assert seen == 320_000
        assert most - before < 48 << 20


# Faults


async def test_calls_into_a_black_hole_end_with_their_deadline(
    apache: Access, timescaledb: testbed.Server, proxies: faults.Proxies
) -> None:
    loop = asyncio.get_running_loop()

    async def read(store: TimescaleStore) -> None:
        async for _ in store.read(Reading, timeout="500ms"):
            pass

    with proxies.before(timescaledb) as proxy:
        store = store_of(apache, proxy.port)
        await store.open()
        await store.append(reading(0), delay(0))
        proxy.black_hole()
        for call in (
            lambda: store.append(reading(1), timeout="500ms"),
            lambda: store.append(delay(1), timeout="500ms"),
            lambda: store.append_all(map(reading, range(100)), timeout="500ms"),
            lambda: store.latest(Reading, timeout="500ms"),
            lambda: store.aggregate(Reading, values={"value": "mean"}, timeout="500ms"),
            lambda: store.erase(Reading, where={"site": "s0"}, timeout="500ms"),
            lambda: read(store),
        ):
            began = loop.time()
            with pytest.raises((DeadlineExceeded, Unavailable)):
                await call()
            assert loop.time() - began < 0.5 + 0.5, "the deadline, and the event loop's own stall on a busy machine"
        began = loop.time()
        await store.close()
        assert loop.time() - began < 10


async def test_a_stream_whose_connection_was_lost_is_not_sent_again(
    apache: Access, timescaledb: testbed.Server, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:

        def source() -> Iterator[Reading]:
            for number in range(100_000):
                if number == 50_000:
                    proxy.cut()
                    proxy.heal()
                yield reading(number)

        async with store_of(apache, proxy.port) as store:
            await store.append(reading(-1))
            with pytest.raises(BackendError):
                await store.append_all(source())  # what is left of it would pass for the whole
            assert len([row async for row in store.read(Reading)]) == 1


async def test_a_change_that_has_to_wait_for_readers_keeps_nobody_else_waiting(
    apache: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wider(Measurement, series="readings", tags=("site",)):
        site: str
        value: float
        gate: str | None = None

    monkeypatch.setattr(schema, "_LOCK_SECONDS", 0.2)
    async with store_of(apache) as store:
        await store.append(reading(0))
        async with store.transaction() as reader:
            assert await reader.fetch_value("SELECT count(*) FROM readings") == 1
            with pytest.raises(Contention):
                await store.append(Wider(time=START, site="a", value=1.0), timeout="20s")
        assert await store.append(Wider(time=START, site="a", value=1.0)) == 1


async def test_the_end_of_a_slow_source_has_the_deadline_of_any_other_step(
    apache: Access, timescaledb: testbed.Server, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:

        async def source() -> AsyncIterator[Reading]:
            for number in range(5_000):
                yield reading(number)
            proxy.black_hole()

        async with store_of(apache, proxy.port) as store:
            await store.append(reading(-1))
            with pytest.raises((DeadlineExceeded, Unavailable)):
                await asyncio.wait_for(store.append_all(source(), timeout="500ms"), 20)


async def test_acknowledged_rows_survive_a_killed_server_that_is_used_again_at_once(
    access: Access, timescaledb: testbed.Server
) -> None:
    acknowledged: list[int] = []
    async with store_of(access) as store:
        await store.append(delay(10_000))

        async def write() -> None:
            for number in range(10_000):
                await store.append(delay(number))
                acknowledged.append(number)

        writing = asyncio.ensure_future(write())

        async def enough() -> bool:
            return len(acknowledged) > 50

        await until(enough)
        timescaledb.kill()
        with pytest.raises(BackendError):
            await writing
        for _ in range(6):  # and the breaker learns it
            with pytest.raises(KmpError):
                await store.latest(Delay, timeout="1s")
        timescaledb.start_again()
        await timescaledb.wait_until_ready()

        async def back() -> bool:
            try:
                return bool(await store.latest(Delay))
            except BackendError:
                return False

        await until(back, 5)
        found = {row.flight async for row in store.read(Delay)}
        assert {f"KM{number}" for number in acknowledged} <= found
        assert len(found) <= len(acknowledged) + 2, "at most the row whose answer was lost"
        assert await store.append(delay(acknowledged[0])) == 0


async def test_cancelled_calls_leave_every_later_answer_right(
    apache: Access, timescaledb: testbed.Server, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:
        async with store_of(apache, proxy.port, pool_size=4) as store:
            await store.append_all(map(reading, range(300)))
            proxy.slow(5, jitter=5)
            for round_ in range(25):
                calls = [asyncio.ensure_future(store.latest(Reading, where={"site": f"s{n % 3}"})) for n in range(12)]
                await asyncio.sleep(0.002 * (round_ % 8))
                for call in calls[::2]:
                    call.cancel()
                for number, outcome in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
                    if isinstance(outcome, BaseException):
                        assert isinstance(outcome, asyncio.CancelledError)
                    else:
                        assert [row.site for row in outcome] == [f"s{number % 3}"]
            assert store.pool.in_use == 0


async def test_a_thousand_callers_are_served_by_ten_connections_or_refused(apache: Access) -> None:
    async with store_of(apache, acquire_timeout="500ms") as store:
        outcomes = await asyncio.gather(
            *(store.append(reading(number)) for number in range(1000)), return_exceptions=True
        )
        stored = sum(1 for outcome in outcomes if outcome == 1)
        assert {type(outcome) for outcome in outcomes} <= {int, PoolExhausted, BreakerOpen}
        assert len([row async for row in store.read(Reading)]) == stored > 0


async def test_readiness_follows_the_server_and_closing_ends_without_it(
    apache: Access, timescaledb: testbed.Server
) -> None:
    store = store_of(apache, pool_size=2)
    await store.open()
    await store.check()
    timescaledb.pause()
    try:
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await store.check()
        began = asyncio.get_running_loop().time()
        await store.close()
        assert asyncio.get_running_loop().time() - began < 10
    finally:
        timescaledb.unpause()
    await timescaledb.wait_until_ready()


async def test_a_missing_driver_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['asyncpg'] = None\n"
        "try:\n import kmp_storage.timescale\nexcept ImportError as error: print(error)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert b"pip install" in output
    assert b"[timescale]" in output or b"[postgres]" in output


async def test_one_persons_rows_are_gone_from_every_chunk(access: Access, timescaledb: testbed.Server) -> None:
    async with store_of(access, chunk_interval="1d") as store:
        await store.append(*(Reading(time=START + timedelta(days=n), site=f"s{n % 2}", value=1.0) for n in range(20)))
        assert await store.erase(Reading, where={"site": "s1"}) == 10
    async with admin(timescaledb, access.database) as connection:
        assert await connection.fetchval(f'SELECT count(*) FROM "{access.schema}".readings WHERE site = $1', "s1") == 0
