"""The pool on a real PostgreSQL: bounded, fair, clean between callers, and whole again after every fault."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import NoOpTracerProvider

import faults
import testbed
from kmp_core.deadlines import deadline
from kmp_core.errors import (
    BackendError,
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    LifecycleError,
    OutcomeUnknown,
    PermissionDenied,
    PoolExhausted,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from kmp_core.postgres import Connection, Contention, PoolOptions, PostgresPool, TransactionUndone
from kmp_core.secrets import Secret
from kmp_core.telemetry import reporting_to
from postgres_bed import admin, own_database, until

Database = tuple[str, str]


@pytest.fixture
async def database(timescaledb: testbed.Server) -> AsyncIterator[Database]:
    async with own_database(timescaledb) as made:
        yield made


def url(server: Any, database: Database, query: str = "sslmode=disable") -> str:
    name, password = database
    return f"timescale://{name}:{password}@127.0.0.1:{server.port}/{name}?{query}"


def pool_of(server: Any, database: Database, **options: Any) -> PostgresPool:
    return PostgresPool(url(server, database), options=PoolOptions(**options))


# Room in the pool


async def test_waiting_for_a_connection_ends_typed_and_is_seen(timescaledb: testbed.Server, database: Database) -> None:
    reader = InMemoryMetricReader()
    with reporting_to(NoOpTracerProvider(), MeterProvider([reader])):
        async with pool_of(timescaledb, database, size=1, acquire_timeout=timedelta(seconds=0.5)) as pool:
            async with pool.acquire():
                waiting = asyncio.ensure_future(pool._take(None))
                await asyncio.sleep(0)
                assert (pool.waiting, pool.in_use) == (1, 1)
                assert metrics(reader)["db.client.connection.pending_requests"] == {None: 1}
                assert metrics(reader)["db.client.connection.count"] == {"used": 1, "idle": 0}
                with pytest.raises(PoolExhausted):
                    await waiting
            assert (pool.waiting, pool.in_use, pool.idle) == (0, 0, 1)
            assert metrics(reader)["db.client.connection.timeouts"] == {None: 1}


def metrics(reader: InMemoryMetricReader) -> dict[str, dict[Any, float]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: {(p.attributes or {}).get("db.client.connection.state"): p.value for p in metric.data.data_points}
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name.startswith("db.client.connection")
    }


async def test_who_asks_first_is_served_first(timescaledb: testbed.Server, database: Database) -> None:
    served: list[int] = []
    async with pool_of(timescaledb, database, size=1) as pool:

        async def work(number: int) -> None:
            async with pool.acquire() as connection:
                served.append(number)
                await connection.fetch_value("SELECT 1")

        await asyncio.gather(*map(work, range(100)))
    assert served == list(range(100))


async def test_a_thousand_callers_are_served_or_refused_typed(timescaledb: testbed.Server, database: Database) -> None:
    async with pool_of(timescaledb, database, size=10, acquire_timeout=timedelta(seconds=0.3)) as pool:

        async def work() -> None:
            async with pool.acquire(reset=False) as connection:
                await connection.execute("SELECT pg_sleep(0.05)")

        outcomes = await asyncio.gather(*(work() for _ in range(1000)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {type(None), PoolExhausted}
        assert pool.in_use == 0


async def test_a_cancelled_waiter_takes_no_place(timescaledb: testbed.Server, database: Database) -> None:
    async with pool_of(timescaledb, database, size=1) as pool:
        for turns in range(6):
            async with pool.acquire():
                waiter = asyncio.ensure_future(pool.acquire().__aenter__())
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            if not waiter.done():
                waiter.cancel()
                await asyncio.gather(waiter, return_exceptions=True)
            else:
                await pool._put_back(waiter.result(), reset=True)
            async with pool.acquire(timeout="2s"):
                pass


async def test_a_connection_that_comes_back_while_the_pool_closes_is_closed_too(
    timescaledb: testbed.Server, database: Database, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:
        pool = pool_of(proxy, database, size=1)
        await pool.open()

        async def work() -> Any:
            async with pool.acquire() as connection:
                await connection.execute("SET search_path = public")
                proxy.slow(200)
                resetting.set()
                return connection

        resetting = asyncio.Event()
        task = asyncio.ensure_future(work())
        await resetting.wait()
        await asyncio.sleep(0.02)
        await pool.close()
        assert (await task).is_closed
        assert pool.idle == 0


async def ask(pool: PostgresPool) -> None:
    async with pool.acquire() as connection:
        await connection.fetch_value("SELECT 1")


async def connecting(pool: PostgresPool) -> bool:
    return len(pool._connecting) == 1


async def test_closing_ends_a_call_that_still_connects_at_once(
    timescaledb: testbed.Server, database: Database, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:
        pool = pool_of(proxy, database, size=2, connect_timeout=timedelta(seconds=60))
        await pool.open()
        async with pool.acquire():
            proxy.black_hole()
            call = asyncio.ensure_future(ask(pool))
            await until(lambda: connecting(pool))
            closing = asyncio.ensure_future(pool.close())
            with pytest.raises(LifecycleError, match="the pool is closed"):
                await asyncio.wait_for(call, 20)
        await asyncio.wait_for(closing, 20)
        assert (pool.in_use, pool.idle) == (0, 0)


async def test_nobody_is_handed_a_connection_of_a_pool_that_closed_meanwhile(
    timescaledb: testbed.Server, database: Database, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:
        pool = pool_of(proxy, database, size=1, look_after=timedelta(0))
        await pool.open()
        proxy.slow(200)
        call = asyncio.ensure_future(ask(pool))

        async def looked_at() -> bool:
            return pool.idle == 0

        await until(looked_at)
        await pool.close()
        with pytest.raises(LifecycleError):
            await call


async def test_a_call_that_is_cancelled_while_it_connects_is_cancelled_also_beside_a_close(
    timescaledb: testbed.Server, database: Database, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:
        pool = pool_of(proxy, database, size=2)
        await pool.open()
        async with pool.acquire():
            proxy.black_hole()
            call = asyncio.ensure_future(ask(pool))
            await until(lambda: connecting(pool))
            closing = asyncio.ensure_future(pool.close())
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        await closing


async def test_a_connection_that_is_there_as_its_caller_leaves_is_not_left_open(
    timescaledb: testbed.Server, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool_of(timescaledb, database, size=2) as pool:
        made: list[Any] = []
        connect = pool._connect

        async def leaving() -> Any:
            made.append(await connect())
            asyncio.get_running_loop().call_soon(call.cancel)
            return made[-1]

        monkeypatch.setattr(pool, "_connect", leaving)
        async with pool.acquire():
            call = asyncio.ensure_future(ask(pool))
            with pytest.raises(asyncio.CancelledError):
                await call
        assert [connection.is_closed for connection in made] == [True]
        assert pool.in_use == 0


# Deadlines and cancellation


async def test_a_statement_ends_with_its_deadline(timescaledb: testbed.Server, database: Database) -> None:
    async with pool_of(timescaledb, database, statement_timeout=timedelta(seconds=0.2)) as pool:
        async with pool.acquire() as connection:
            with pytest.raises(DeadlineExceeded) as over:
                await connection.execute("SELECT pg_sleep(30)")
            assert over.value.outcome_unknown
            with pytest.raises(Unavailable):
                await connection.execute("SELECT 1")
        async with pool.acquire() as connection:
            assert await connection.fetch_value("SELECT 1") == 1
            with pytest.raises(DeadlineExceeded):
                async with deadline("100ms"):
                    await connection.execute("SELECT pg_sleep(30)", timeout="20s")
        async with pool.acquire() as connection, deadline("20s"):
            # Whoever says how long it may take may say longer than the pool would.
            assert await connection.fetch_value("SELECT 1 FROM pg_sleep(0.5)") == 1
        async with pool.acquire() as connection:
            with pytest.raises(InvalidInput, match="timeout"):
                await connection.execute("SELECT 1", timeout="soon")
            assert await connection.fetch_value("SELECT 1") == 1


async def test_what_the_server_itself_stopped_took_no_effect(timescaledb: testbed.Server, database: Database) -> None:
    async with pool_of(timescaledb, database) as pool, pool.acquire() as connection:
        await connection.execute("SET statement_timeout = '50ms'")
        with pytest.raises(DeadlineExceeded) as stopped:
            await connection.execute("SELECT pg_sleep(30)")
        assert not stopped.value.outcome_unknown
        assert await connection.fetch_value("SELECT 1") == 1, "an answer, and so no reason to cut the connection"


async def test_a_connection_that_cannot_be_made_takes_no_place(
    timescaledb: testbed.Server, database: Database, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:
        async with pool_of(proxy, database, size=1, acquire_timeout=timedelta(seconds=0.2)) as pool:
            proxy.cut()
            for _ in range(3):
                with pytest.raises(Unavailable) as refused:
                    await ask(pool)
                assert not isinstance(refused.value, PoolExhausted)
            proxy.heal()
            await ask(pool)


async def test_a_statement_whose_caller_left_ends_on_the_server(
    timescaledb: testbed.Server, database: Database
) -> None:
    async with pool_of(timescaledb, database) as pool, admin(timescaledb) as observer:
        with pytest.raises(DeadlineExceeded):
            async with pool.acquire() as connection:
                await connection.execute("SELECT pg_sleep(60)", timeout="100ms")

        async def gone() -> bool:
            return not await observer.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND query LIKE '%pg_sleep%'", database[0]
            )

        await until(gone)


# What a caller leaves behind

TRACES = {
    "role": ("SET ROLE pg_monitor", "SELECT current_user = session_user"),
    "session user": ("SET SESSION AUTHORIZATION DEFAULT; SET ROLE pg_monitor", "SELECT current_user = session_user"),
    "setting": ("SET search_path = pg_catalog", "SELECT current_setting('search_path') LIKE '%public%'"),
    "time zone": ("SET timezone = 'Asia/Tokyo'", "SELECT current_setting('timezone') = 'UTC'"),
    "temporary table": ("CREATE TEMP TABLE left_over (x int)", "SELECT to_regclass('pg_temp.left_over') IS NULL"),
    "advisory lock": (
        "SELECT pg_advisory_lock(7)",
        "SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    "listening": ("LISTEN news", "SELECT count(*) = 0 FROM pg_listening_channels()"),
    "cursor": (
        "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "SELECT count(*) = 0 FROM pg_cursors WHERE name = 'c'",
    ),
    "transaction": ("BEGIN; CREATE TABLE half_done (x int)", "SELECT to_regclass('half_done') IS NULL"),
    "failed transaction": ("BEGIN; CREATE TABLE half_done (x int)", "SELECT to_regclass('half_done') IS NULL"),
}


@pytest.mark.parametrize("trace", TRACES)
async def test_who_comes_next_finds_no_trace(timescaledb: testbed.Server, database: Database, trace: str) -> None:
    leave, clean = TRACES[trace]
    async with admin(timescaledb) as connection:
        await connection.execute(f"GRANT pg_monitor TO {database[0]}")
    async with pool_of(timescaledb, database, size=1) as pool:
        async with pool.acquire() as connection:
            process = connection.server_process
            await connection.execute(leave)
            assert not await connection.fetch_value(clean)
            if trace == "failed transaction":
                with pytest.raises(InvalidInput):
                    await connection.execute("SELECT * FROM nowhere")
        async with pool.acquire() as connection:
            assert connection.server_process == process, "a reset is not a new connection"
            assert await connection.fetch_value(clean)


@pytest.mark.parametrize("reset", [True, False])
async def test_a_task_that_outlives_its_block_gets_nothing_of_the_next_caller(
    timescaledb: testbed.Server, database: Database, reset: bool
) -> None:
    async with pool_of(timescaledb, database, size=1) as pool:
        async with pool.acquire(reset=reset) as connection:
            late = asyncio.ensure_future(connection.fetch_value("SELECT pg_sleep(0.2)::text"))
            await asyncio.sleep(0.02)
            with pytest.raises(LifecycleError, match="two tasks"):
                await connection.fetch_value("SELECT 1")
        with pytest.raises(LifecycleError):
            await connection.fetch_value("SELECT 1")
        async with pool.acquire() as connection:
            assert await connection.fetch_value("SELECT 2") == 2
        with pytest.raises(Unavailable):
            await late


# Faults of the server


async def test_a_server_that_became_read_only_is_left_with_all_connections(
    timescaledb: testbed.Server, database: Database
) -> None:
    async with pool_of(timescaledb, database, size=3) as pool, admin(timescaledb) as operator:
        async with pool.acquire() as one, pool.acquire() as other, pool.acquire() as third:
            before = {one.server_process, other.server_process, third.server_process}
        # As after a failover: the sessions stay, and writing is refused.
        await operator.execute(f"ALTER DATABASE {database[0]} SET default_transaction_read_only = on")
        await operator.execute("SELECT pg_reload_conf()")
        async with pool.acquire(reset=False) as one:
            with pytest.raises(Unavailable) as refused:
                await one.execute("BEGIN READ ONLY; CREATE TABLE t (x int)")
            assert not refused.value.outcome_unknown
            assert refused.value.retryable
        await operator.execute(f"ALTER DATABASE {database[0]} RESET default_transaction_read_only")
        async with pool.acquire() as one, pool.acquire() as other, pool.acquire() as third:
            assert not before & {one.server_process, other.server_process, third.server_process}
            await one.execute("CREATE TABLE t (x int)")


async def test_connections_that_the_administrator_ended_are_replaced(
    timescaledb: testbed.Server, database: Database
) -> None:
    async with pool_of(timescaledb, database, size=3) as pool, admin(timescaledb) as operator:
        async with pool.acquire() as one, pool.acquire(), pool.acquire():
            asking = asyncio.ensure_future(one.execute("SELECT pg_sleep(30)"))
            await asyncio.sleep(0.1)
            await operator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", database[0]
            )
            with pytest.raises(Unavailable):
                await asking
        for _ in range(4):
            async with pool.acquire() as connection:
                assert await connection.fetch_value("SELECT 1") == 1


async def test_a_peer_that_died_silently_is_noticed_before_it_is_used(
    timescaledb: testbed.Server, database: Database, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:
        async with pool_of(proxy, database, size=3, look_after=timedelta(0)) as pool:
            async with pool.acquire(), pool.acquire(), pool.acquire():
                pass
            proxy.black_hole()
            released = asyncio.get_running_loop().call_later(0.5, proxy.heal)
            async with pool.acquire() as connection:
                assert await connection.fetch_value("SELECT 1") == 1
            released.cancel()


async def test_connections_beside_a_lost_one_are_asked_first(
    timescaledb: testbed.Server, database: Database, proxies: faults.Proxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    internal = Connection.internal

    def counted(connection: Connection, seconds: float) -> Any:
        asked.append(connection.server_process)
        return internal(connection, seconds)

    monkeypatch.setattr(Connection, "internal", counted)
    with proxies.before(timescaledb) as proxy:
        async with pool_of(proxy, database, size=3, connect_timeout=timedelta(seconds=1)) as pool:
            async with pool.acquire(), pool.acquire(), pool.acquire():
                pass
            asked.clear()
            proxy.black_hole()
            for _ in range(2):
                with pytest.raises((DeadlineExceeded, Unavailable)):
                    async with pool.acquire() as connection:
                        await connection.fetch_value("SELECT 1", timeout="200ms")
            assert len(asked) == 1, "one that does not answer speaks for those that lay beside it"
            assert pool.idle == 0


# Logging in


async def test_tls_is_checked_against_the_authority_and_the_name(
    timescaledb: testbed.Server, database: Database, tmp_path: Any
) -> None:
    _, content = timescaledb.container.get_wrapped_container().exec_run("cat /var/lib/postgresql/data/server.crt")
    authority = tmp_path / "ca.pem"
    authority.write_bytes(content)
    strict = url(timescaledb, database, f"sslmode=verify-full&sslrootcert={authority}")
    async with PostgresPool(strict) as pool, pool.acquire() as connection:
        assert await connection.fetch_value("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    with pytest.raises(ConfigurationError, match="certificate"):
        await PostgresPool(url(timescaledb, database, "")).open()
    other_name = strict.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises((ConfigurationError, Unavailable)):
        await PostgresPool(other_name).open()
    context = PostgresPool(strict).address.tls()
    assert isinstance(context, ssl.SSLContext)
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)


async def test_a_rotated_password_needs_no_restart(timescaledb: testbed.Server, database: Database) -> None:
    name, password = database
    current = Secret(password)

    async def source() -> Secret:
        return current

    address = f"timescale://{name}@127.0.0.1:{timescaledb.port}/{name}?sslmode=disable"
    async with PostgresPool(address, password=source) as pool, admin(timescaledb) as operator:
        await operator.execute(f"ALTER ROLE {name} PASSWORD 'the-next-one'")
        await operator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", name)
        with pytest.raises((Unauthenticated, Unavailable)):
            async with pool.acquire() as connection:
                await connection.execute("SELECT 1")
            async with pool.acquire() as connection:
                await connection.execute("SELECT 1")
        current = Secret("the-next-one")
        async with pool.acquire() as connection:
            assert await connection.fetch_value("SELECT 1") == 1


async def test_a_login_between_the_two_halves_of_a_rotation_is_tried_again(
    timescaledb: testbed.Server, database: Database
) -> None:
    name, password = database
    address = f"timescale://{name}@127.0.0.1:{timescaledb.port}/{name}?sslmode=disable"
    known = ["the-one-before", password]

    async def source() -> str:
        return known.pop(0)

    async with PostgresPool(address, password=source):
        assert known == []


async def test_no_password_is_taken_from_the_process(
    timescaledb: testbed.Server, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, password = database
    monkeypatch.setenv("PGPASSWORD", password)
    with pytest.raises(Unauthenticated):
        await PostgresPool(f"timescale://{name}@127.0.0.1:{timescaledb.port}/{name}?sslmode=disable").open()


async def test_no_connection_grows_older_than_it_may(timescaledb: testbed.Server, database: Database) -> None:
    for life, kept in ((timedelta(0), False), (timedelta(hours=1), True)):
        async with pool_of(timescaledb, database, longest_life=life) as pool:
            async with pool.acquire() as connection:
                first = connection.server_process
            async with pool.acquire() as connection:
                assert (connection.server_process == first) is kept


async def test_a_wrong_password_is_told_without_it(timescaledb: testbed.Server, database: Database) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await PostgresPool(url(timescaledb, (database[0], "hunter2"))).open()
    assert "hunter2" not in f"{refused.value!r} {refused.value.__cause__!r}"
    with pytest.raises(ConfigurationError, match="sslmode"):
        PostgresPool("timescale://a:hunter2@h/d?sslmode=require")
    with pytest.raises(ConfigurationError, match="database"):
        PostgresPool("timescale://a:hunter2@h")


# Transactions


async def test_a_transaction_is_whole_or_nothing(timescaledb: testbed.Server, database: Database) -> None:
    async with pool_of(timescaledb, database) as pool:
        async with pool.transaction() as transaction:
            await transaction.execute("CREATE TABLE t (x int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(RuntimeError):
            async with pool.transaction() as transaction:
                await transaction.execute("INSERT INTO t VALUES (1)")
                raise RuntimeError
        with pytest.raises(TransactionUndone):
            async with pool.transaction() as transaction:
                await transaction.execute("INSERT INTO t VALUES (1)")
                with pytest.raises(InvalidInput):
                    await transaction.execute("SELECT nonsense")
        with pytest.raises(Conflict):
            async with pool.transaction() as transaction:
                await transaction.execute("INSERT INTO t VALUES (1), (1)")
        async with pool.transaction() as transaction:
            assert await transaction.fetch_value("SELECT count(*) FROM t") == 0
            await transaction.execute("INSERT INTO t VALUES (2)")
        async with pool.acquire() as connection:
            assert [row["x"] for row in await connection.fetch("SELECT x FROM t")] == [2]


async def test_a_connection_lost_inside_is_told_as_undone_also_where_nobody_raised(
    timescaledb: testbed.Server, database: Database
) -> None:
    async with pool_of(timescaledb, database) as pool, admin(timescaledb) as operator:
        with pytest.raises(BackendError, match="lost inside the transaction, which is undone") as lost:
            async with pool.transaction() as transaction:
                await transaction.execute("CREATE TABLE t (x int)")
                process = transaction.connection.server_process
                await operator.execute("SELECT pg_terminate_backend($1)", process)
                with pytest.raises(Unavailable):
                    await transaction.execute("INSERT INTO t VALUES (1)")
        assert not isinstance(lost.value, OutcomeUnknown)
        assert not lost.value.outcome_unknown


async def test_a_transaction_is_used_once_and_its_isolation_is_known(
    timescaledb: testbed.Server, database: Database
) -> None:
    async with pool_of(timescaledb, database) as pool:
        async with pool.transaction(isolation="serializable") as transaction:
            assert await transaction.fetch_value("SHOW transaction_isolation") == "serializable"
        with pytest.raises(LifecycleError, match="used once"):
            async with transaction:
                pass
        with pytest.raises(LifecycleError, match="no isolation"):
            pool.transaction(isolation="serializable; DROP TABLE t")  # type: ignore[arg-type]


@pytest.mark.parametrize("pause", [0, 0.001, 0.003, 0.01])
async def test_a_cancelled_transaction_leaves_nothing(
    timescaledb: testbed.Server, database: Database, pause: float
) -> None:
    async with pool_of(timescaledb, database, size=2) as pool:
        async with pool.transaction() as transaction:
            await transaction.execute("CREATE TABLE t (x int)")

        async def work() -> None:
            async with pool.transaction() as inner:
                await inner.execute("INSERT INTO t VALUES (1)")
                await inner.execute("SELECT pg_sleep(30)")

        task = asyncio.ensure_future(work())
        await asyncio.sleep(pause)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.in_use == 0
        async with pool.acquire() as connection:
            assert await connection.fetch_value("SELECT count(*) FROM t") == 0


async def test_a_lost_answer_to_commit_is_an_unknown_outcome(
    timescaledb: testbed.Server, database: Database, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:
        async with pool_of(proxy, database, statement_timeout=timedelta(seconds=0.5)) as pool:
            with pytest.raises(OutcomeUnknown) as lost:
                async with pool.transaction() as transaction:
                    await transaction.execute("CREATE TABLE t AS SELECT 1 AS x")
                    proxy.black_hole()
            assert lost.value.outcome_unknown
            proxy.heal()
            async with pool.acquire() as connection:  # it did take effect, as it happens
                assert await connection.fetch_value("SELECT x FROM t") == 1
            with pytest.raises(BackendError) as known:
                async with pool.transaction() as transaction:
                    proxy.black_hole()
                    await transaction.execute("SELECT 1")
            assert not known.value.outcome_unknown, "nothing takes effect before its COMMIT"


async def test_a_deadlock_is_told_as_worth_another_try(timescaledb: testbed.Server, database: Database) -> None:
    async with pool_of(timescaledb, database) as pool:
        async with pool.transaction() as setup:
            await setup.execute("CREATE TABLE t AS SELECT generate_series(1, 2) AS x")
        both = asyncio.Barrier(2)

        async def lock(first: int, second: int) -> None:
            async with pool.transaction() as transaction:
                await transaction.execute("UPDATE t SET x = x WHERE x = $1", first)
                await both.wait()
                await transaction.execute("UPDATE t SET x = x WHERE x = $1", second)

        outcomes = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
        (error,) = [outcome for outcome in outcomes if outcome is not None]
        assert isinstance(error, Contention)
        assert (error.retryable, error.outcome_unknown) == (True, False)


async def test_errors_never_quote_a_value(timescaledb: testbed.Server, database: Database) -> None:
    async with pool_of(timescaledb, database) as pool, pool.acquire() as connection:
        await connection.execute("CREATE TABLE t (x text PRIMARY KEY, n int CHECK (n > 0))")
        await connection.execute("INSERT INTO t VALUES ('hunter2', 1)")
        for statement, arguments, kind in (
            ("INSERT INTO t VALUES ('hunter2', 1)", (), Conflict),
            ("SELECT 'hunter2'::int", (), InvalidInput),
            ("INSERT INTO t VALUES ('hunter2', -1)", (), Conflict),
            ("SELECT pg_read_file('hunter2')", (), PermissionDenied),
        ):
            with pytest.raises(kind) as refused:
                await connection.execute(statement, *arguments)
            assert "hunter2" not in str(refused.value)


# Behind a transaction pooler


async def test_behind_a_transaction_pooler_a_session_is_refused_and_a_transaction_works(
    timescaledb: testbed.Server, database: Database
) -> None:
    async with pool_of(timescaledb, database, transaction_pooler=True) as pool:
        with pytest.raises(Unsupported, match="transaction"):
            async with pool.acquire():
                pass
        async with pool.transaction() as transaction:
            assert await transaction.fetch_value("SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql") <= 1
        await pool.check()
