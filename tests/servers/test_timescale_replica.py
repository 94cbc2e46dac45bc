"""A real streaming replica answers questions while it is near enough, and the primary answers them otherwise."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import images
import pytest

import faults
import testbed
from kmp_core.deadlines import deadline
from kmp_core.errors import BackendError, ConfigurationError, Conflict, DeadlineExceeded, PoolExhausted, Unavailable
from kmp_storage.models import Measurement
from kmp_storage.timescale import TimescaleSettings, TimescaleStore, replica
from kmp_storage.timescale.provisioning import Access, TimescaleProvisioner
from postgres_bed import admin, admin_url, until, url_at
from relay import Relay

START = datetime(2024, 1, 1, tzinfo=UTC)
FAR = "10m"
"""A bound that no test reaches: the replica is asked whenever it answers."""

FOLLOW = """
[ -s "$PGDATA/PG_VERSION" ] || {
    from="host=127.0.0.1 port=$PRIMARY user=postgres password=$POSTGRES_PASSWORD"
    pg_basebackup -d "$from" -D "$PGDATA" -R -X stream -c fast || exit 1
    chown -R postgres "$PGDATA" && chmod 700 "$PGDATA"
}
"""
START_SERVER = """
entry=$(command -v docker-entrypoint.sh || echo "sh /entrypoint.sh")
exec $entry postgres -p "$OWN" -c listen_addresses=127.0.0.1
"""


class Reading(Measurement, series="readings", tags=("site",)):
    site: str
    value: float = 1.0


@dataclass
class Pair:
    primary: testbed.Server
    replica: testbed.Server


def launch(name: str, password: str, script: str, **environment: str) -> testbed.Server:
    """On the host's own network, where the replica reaches its primary and both listen on 127.0.0.1 alone."""
    from testcontainers.core.container import DockerContainer

    port = testbed.free_port()
    container = DockerContainer(images.have("timescaledb"), command=["-c", script])
    for variable, value in {"POSTGRES_PASSWORD": password, "OWN": str(port), **environment}.items():
        container.with_env(variable, value)
    container.with_kwargs(labels={testbed.LABEL: str(os.getpid())}, network_mode="host", entrypoint=["sh"])
    container.start()
    return testbed.Server(name, port, password, container, testbed.postgres_ready)


@contextmanager
def pair_of_servers() -> Iterator[Pair]:
    password = secrets.token_hex(16)
    started: list[testbed.Server] = []
    try:
        started.append(launch("primary", password, START_SERVER))
        started[0].wait_ready()
        started.append(launch("replica", password, FOLLOW + START_SERVER, PRIMARY=str(started[0].port)))
        started[1].wait_ready()
        yield Pair(*started)
    finally:
        for server in started:
            server.stop()


@pytest.fixture(scope="module")
def pair(servers: Any) -> Iterator[Pair]:
    with pair_of_servers() as started:
        yield started


@pytest.fixture
async def access(pair: Pair) -> AsyncIterator[Access]:
    name = f"p-{secrets.token_hex(5)}"
    async with TimescaleProvisioner(admin_url(pair.primary)) as operator:
        yield await operator.provision(name)
        await operator.deprovision(name, force=True)


@pytest.fixture(autouse=True)
async def resumed(pair: Pair) -> AsyncIterator[None]:
    yield
    async with admin(pair.replica) as connection:
        await connection.execute("SELECT pg_wal_replay_resume()")


def store_of(access: Access, port: int, *, lag: str = FAR) -> TimescaleStore:
    url = f"timescale://{access.role}@127.0.0.1:{port}/{access.database}?sslmode=disable"
    settings = TimescaleSettings.load(replica_url=url, replica_lag=lag)
    return TimescaleStore(access.url.reveal(), project=access.project, settings=settings)


def row(number: int) -> Reading:
    return Reading(time=START + timedelta(seconds=number), site=f"s{number}")


async def answers(store: TimescaleStore) -> list[int]:
    """How many rows each way of asking finds."""
    (total,) = await store.aggregate(Reading, values={"value": "count"})
    return [
        len([found async for found in store.read(Reading)]),
        total["value_count"],
        len(await store.latest(Reading, by=("site",))),
    ]


async def caught_up(pair: Pair) -> None:
    """Wait until the replica has all that the primary has."""
    async with admin(pair.primary) as primary, admin(pair.replica) as replica:
        position = await primary.fetchval("SELECT pg_current_wal_lsn()::text")

        async def reached() -> bool:
            replayed = await replica.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position)
            return bool(replayed)

        await until(reached)


async def pause(pair: Pair) -> None:
    await caught_up(pair)
    async with admin(pair.replica) as connection:
        await connection.execute("SELECT pg_wal_replay_pause()")

        async def paused() -> bool:
            return bool(await connection.fetchval("SELECT pg_get_wal_replay_pause_state() = 'paused'"))

        await until(paused)


async def asked_replica(pair: Pair, access: Access) -> bool:
    """Whether a session of the project's on the replica asked for rows."""
    async with admin(pair.replica) as connection:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND query LIKE '%readings%'", access.role
            )
        )


async def test_the_replica_answers_within_the_bound_and_the_primary_beyond(pair: Pair, access: Access) -> None:
    async with store_of(access, 1) as writer:
        await writer.append(row(0))
        await caught_up(pair)
        async with store_of(access, pair.replica.port) as near, store_of(access, pair.replica.port, lag="1s") as bound:
            assert await answers(near) == await answers(bound) == [1, 1, 1]
            await pause(pair)
            await near.append(row(1))
            assert await answers(near) == [1, 1, 1], "what the replica has"
            async with near.transaction() as transaction:
                assert await transaction.fetch_value("SELECT count(*) FROM readings") == 2
            async with near.connection() as connection:
                assert not await connection.fetch_value("SELECT pg_is_in_recovery()")

            async def fresh() -> bool:
                return await answers(bound) == [2, 2, 2]

            await until(fresh)
            async with admin(pair.replica) as connection:
                await connection.execute("SELECT pg_wal_replay_resume()")

            async def near_again() -> bool:
                return await answers(near) == [2, 2, 2]

            await until(near_again)


async def test_a_class_that_does_not_fit_is_no_fault_of_the_replica(pair: Pair, access: Access) -> None:
    class Worded(Measurement, series="readings", tags=("site",)):
        site: str
        value: str = ""

    async with store_of(access, pair.replica.port) as store:
        await store.append(row(0))
        await caught_up(pair)
        await pause(pair)
        await store.append(row(1))
        assert await answers(store) == [1, 1, 1], "what the replica has"
        for call in (store.latest(Worded), store.aggregate(Worded, values={"value": "count"})):
            with pytest.raises(Conflict, match="Worded does not fit"):
                await call
        assert await answers(store) == [1, 1, 1], "it is asked by all others"


async def test_an_idle_primary_does_not_make_the_replica_look_old(pair: Pair, access: Access) -> None:
    async with store_of(access, pair.replica.port, lag="1s") as store:
        await store.append(row(0))
        await caught_up(pair)
        loop = asyncio.get_running_loop()
        end, asked = loop.time() + 2.5, 0  # longer than the bound, with nothing written
        while loop.time() < end:
            assert await answers(store) == [1, 1, 1]
            asked += store._replica is not None and store._replica.near() is not None
            await asyncio.sleep(0.02)
        assert asked


async def test_a_replica_that_is_gone_is_no_error_and_one_that_is_back_is_asked(pair: Pair, access: Access) -> None:
    async with store_of(access, pair.replica.port) as near, store_of(access, pair.replica.port, lag="1s") as bound:
        await near.append(row(0))
        await caught_up(pair)

        async def asked_near() -> bool:
            assert await answers(near) == [1, 1, 1]
            return await asked_replica(pair, access)

        await until(asked_near)
        pair.replica.kill()
        try:
            assert await answers(near) == await answers(bound) == [1, 1, 1]
            await near.check()
            async with store_of(access, pair.replica.port, lag="1s") as late:
                assert await answers(late) == [1, 1, 1], "it starts without"
                pair.replica.start_again()
                await pair.replica.wait_until_ready()
                for store in (late, bound):

                    async def asked(store: TimescaleStore = store) -> bool:
                        assert await answers(store) == [1, 1, 1]
                        return await asked_replica(pair, access)

                    await until(asked, 20)
                    async with admin(pair.replica) as connection:
                        await connection.execute(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", access.role
                        )
        finally:
            pair.replica.start_again()
            await pair.replica.wait_until_ready()


async def test_a_project_that_the_replica_has_not_heard_of_yet_starts_without_it(pair: Pair) -> None:
    await pause(pair)
    name = f"p-{secrets.token_hex(5)}"
    async with TimescaleProvisioner(admin_url(pair.primary)) as operator:
        access = await operator.provision(name)
        try:
            async with store_of(access, pair.replica.port) as store:
                await store.append(row(0))
                assert await answers(store) == [1, 1, 1]
                async with admin(pair.replica) as connection:
                    await connection.execute("SELECT pg_wal_replay_resume()")

                async def asked() -> bool:
                    assert await answers(store) == [1, 1, 1]
                    return await asked_replica(pair, access)

                await until(asked, 20)
        finally:
            await operator.deprovision(name, force=True)


async def test_a_replica_in_a_black_hole_is_left_and_closing_ends(
    pair: Pair, access: Access, proxies: faults.Proxies
) -> None:
    loop = asyncio.get_running_loop()
    with proxies.before(pair.replica) as proxy:
        store = store_of(access, proxy.port, lag="1s")
        async with store:
            await store.append(row(0))
            await caught_up(pair)
            assert await answers(store) == [1, 1, 1]
            proxy.black_hole()

            async def answered() -> bool:
                try:
                    (total,) = await store.aggregate(Reading, values={"value": "count"}, timeout="500ms")
                except TimeoutError:  # it was asked before anybody knew
                    return False
                return bool(total["value_count"] == 1)

            await until(answered)
            assert await answers(store) == [1, 1, 1]
            began = loop.time()
        assert loop.time() - began < 10


async def test_a_caller_in_a_hurry_says_nothing_of_the_replica(
    pair: Pair, access: Access, proxies: faults.Proxies, caplog: pytest.LogCaptureFixture
) -> None:
    async def hurried(store: TimescaleStore) -> None:
        with pytest.raises(DeadlineExceeded):
            [found async for found in store.read(Reading, timeout="50ms")]
        for call in (store.latest(Reading, timeout="50ms"), store.aggregate(Reading, values={"value": "count"})):
            with pytest.raises(DeadlineExceeded):
                async with deadline("50ms"):
                    await call

    with proxies.before(pair.replica) as proxy:
        async with store_of(access, proxy.port) as store:
            await store.append(row(0))
            await caught_up(pair)
            assert await answers(store) == [1, 1, 1]
            assert store._replica is not None
            proxy.slow(100)
            await hurried(store)
            assert store._replica.near() is not None
            assert "not asked" not in caplog.text
            assert await answers(store) == [1, 1, 1]


async def test_a_replica_that_keeps_hurried_callers_waiting_is_looked_at(
    pair: Pair, access: Access, proxies: faults.Proxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_LOOK_SECONDS", 1.0)
    with proxies.before(pair.replica) as proxy:
        async with store_of(access, proxy.port) as store:
            await store.append(row(0))
            await caught_up(pair)
            assert await answers(store) == [1, 1, 1]
            proxy.black_hole()

            async def left() -> bool:
                try:
                    return bool(await store.latest(Reading, timeout="200ms"))
                except TimeoutError:
                    return False

            await until(left, 20)
            assert store._replica is not None
            assert store._replica.near() is None


async def test_a_replica_whose_pool_is_exhausted_leaves_the_primary_in_peace(pair: Pair, access: Access) -> None:
    url = f"timescale://{access.role}@127.0.0.1:{pair.replica.port}/{access.database}?sslmode=disable"
    settings = TimescaleSettings.load(replica_url=url, replica_lag=FAR, pool_size=1, acquire_timeout="200ms")
    async with TimescaleStore(access.url.reveal(), project=access.project, settings=settings) as store:
        await store.append(*map(row, range(3)))
        await caught_up(pair)
        reading = store.read(Reading)
        await anext(reading)
        assert store.pool.in_use == 0
        with pytest.raises(PoolExhausted):
            await store.latest(Reading)
        assert len([found async for found in reading]) == 2
        assert len(await store.latest(Reading, by=("site",))) == 3


async def test_a_look_at_a_silent_replica_ends_before_its_bound(
    pair: Pair, access: Access, proxies: faults.Proxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_LOOK_SECONDS", 1.0)
    with proxies.before(pair.replica) as proxy:
        async with store_of(access, proxy.port) as store:
            assert store._replica is not None
            assert store._replica.near() is not None
            proxy.black_hole()
            await asyncio.wait_for(store._replica._look(), 20)
            assert store._replica.near() is None


async def test_who_waited_long_for_the_replica_speaks_of_it(
    pair: Pair, access: Access, proxies: faults.Proxies, caplog: pytest.LogCaptureFixture
) -> None:
    with proxies.before(pair.replica) as proxy:
        async with store_of(access, proxy.port) as store:
            await store.append(row(0))
            await caught_up(pair)
            assert await answers(store) == [1, 1, 1]
            proxy.black_hole()
            for call in (store.latest(Reading, timeout="1.2s"),):
                with pytest.raises(DeadlineExceeded):
                    await call
            assert store._replica is not None
            assert store._replica.near() is None
            assert "not asked for now: DeadlineExceeded" in caplog.text
            assert await answers(store) == [1, 1, 1], "the primary answers"


async def test_a_server_that_is_no_replica_is_not_asked(
    pair: Pair, access: Access, timescaledb: testbed.Server
) -> None:
    async with store_of(access, pair.primary.port) as store:  # as after a promotion
        await store.append(row(0))
        assert store._replica is not None
        assert store._replica.near() is None
    stranger = access.url.reveal().replace(f":{pair.primary.port}/", f":{timescaledb.port}/")
    async with TimescaleProvisioner(admin_url(timescaledb)) as operator:
        await operator.provision(access.project, password=access.password)
        try:
            settings = TimescaleSettings.load(replica_url=stranger)
            with pytest.raises(ConfigurationError, match=r"KMP_STORAGE_TIMESCALE_REPLICA_URL.* no replica"):
                await TimescaleStore(access.url.reveal(), project=access.project, settings=settings).open()
        finally:
            await operator.deprovision(access.project, force=True)


async def demote(server: testbed.Server) -> None:
    """Start it again as a server that only lets read, as a failover does with the primary that was."""
    signal = 'touch "$PGDATA/standby.signal" && chown postgres "$PGDATA/standby.signal"'
    code, output = server.container.get_wrapped_container().exec_run(["sh", "-c", signal])
    assert code == 0, output
    server.kill()
    server.start_again()
    await server.wait_until_ready()


@pytest.fixture
def own_pair(servers: Any) -> Iterator[Pair]:
    with pair_of_servers() as started:
        yield started


async def test_a_failover_to_the_replica_is_followed(own_pair: Pair) -> None:
    pair = own_pair
    async with TimescaleProvisioner(admin_url(pair.primary)) as operator:
        access = await operator.provision("acme")
    way = Relay(pair.primary.port)
    replica_url = f"timescale://{access.role}@127.0.0.1:{pair.replica.port}/{access.database}?sslmode=disable"
    settings = TimescaleSettings.load(replica_url=replica_url, replica_lag="1s")
    async with way:
        url = url_at(access.url.reveal(), way.port)
        async with TimescaleStore(url, project="acme", settings=settings) as store:
            await store.append(row(0))
            await caught_up(pair)

            async def near() -> bool:
                assert await answers(store) == [1, 1, 1]
                return await asked_replica(pair, access)

            await until(near)
            async with admin(pair.replica) as connection:
                assert await connection.fetchval("SELECT pg_promote()")
            # Both let write now; what the store knows is what its own primary knows.
            await store.append(row(1))

            async def primary_alone() -> bool:
                return await answers(store) == [2, 2, 2]

            await until(primary_alone)
            assert store._replica is not None
            assert store._replica.near() is None

            await demote(pair.primary)

            async def reading() -> bool:
                with suppress(BackendError):
                    return await answers(store) == [2, 2, 2]
                return False

            await until(reading, 20)
            async with store.pool.acquire() as one, store.pool.acquire() as other, store.pool.acquire() as third:
                for connection in (one, other, third):
                    assert await connection.fetch_value("SELECT pg_is_in_recovery()")
            way.server = pair.replica.port  # as a name or a balancer does: connections stay where they are
            with pytest.raises(Unavailable, match="25006") as refused:
                await store.append(row(2))
            assert refused.value.retryable
            assert not refused.value.outcome_unknown
            for number in (2, 3, 4):
                assert await store.append(row(number)) == 1, "no connection to the old primary is handed out"
            async with store.pool.acquire() as one, store.pool.acquire() as other:
                assert not await one.fetch_value("SELECT pg_is_in_recovery()")
                assert not await other.fetch_value("SELECT pg_is_in_recovery()")
            # A second write to the old primary never reached the replica, as is in the nature of such a failover.
            assert await answers(store) == [4, 4, 4]
            assert sorted([found.site async for found in store.read(Reading)]) == ["s0", "s2", "s3", "s4"]
            await store.check()


def test_a_wrong_address_of_the_replica_names_the_setting_and_no_secret() -> None:
    for url, problem in (
        ("timescale://acme:hunter2@db.internal", "REPLICA_URL's database"),
        ("timescale://acme:hunter2@db.internal/acme?sslmode=require", "REPLICA_URL's sslmode"),
        ("timescale://acme:hunter2@db.internal:port/acme", "REPLICA_URL: cannot be read"),
        ("timescale://acme:hunter2@db.internal/acme2", "REPLICA_URL: names another database"),
    ):
        settings = TimescaleSettings.load(replica_url=url)
        assert "hunter2" not in repr(settings)
        with pytest.raises(ConfigurationError, match=problem) as refused:
            TimescaleStore("timescale://acme@db.internal/acme", settings=settings)
        assert "hunter2" not in str(refused.value)
