"""The installable fault stage over every provider on a server, and the proof that it sees what it is there for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any

import h11
import neo4j
import pytest
from httpcore._async.http11 import AsyncHTTP11Connection, HTTPConnectionState
from neo4j import GraphDatabase
from neo4j._async.io._bolt import AsyncBolt

import fault_beds
import s3_bed
import testbed
from kmp_core.postgres import Connection
from kmp_core.secrets import Secret
from kmp_core.testing import FaultyServer, MakeAt, ProviderFaults
from kmp_core.testing.faults import Call
from kmp_storage.bucket import S3Settings
from kmp_storage.neo4j import Neo4jSettings, Neo4jStore
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.redis.channel import Channel
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.faults import BucketFaults, CacheFaults, GraphFaults, TimeSeriesFaults
from kmp_storage.timescale import TimescaleSettings, TimescaleStore
from kmp_storage.timescale.provisioning import Access, TimescaleProvisioner
from postgres_bed import admin_url

PASSWORD = Secret("staple-of-the-fault-stage")


async def sees_it(stage: ProviderFaults, server: FaultyServer, make: MakeAt) -> None:
    """The stage fails over a provider that keeps the connections of interrupted calls."""
    stage.cancellations = 100
    with pytest.raises(AssertionError, match=r"what was not theirs|handed out again"):
        await stage.test_no_answer_reaches_the_wrong_caller(server, make)


class TestTimescaleStore(TimeSeriesFaults):
    async def test_the_stage_sees_a_connection_that_outlives_its_cancelled_call(
        self, server: FaultyServer, make: MakeAt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        after = Connection._after

        def keep(connection: Connection, error: BaseException) -> None:
            if not isinstance(error, asyncio.CancelledError):
                after(connection, error)

        monkeypatch.setattr(Connection, "_after", keep)
        await sees_it(self, server, make)

    @pytest.fixture
    def server(self, timescaledb: testbed.Server) -> FaultyServer:
        return fault_beds.Handle(timescaledb)

    @pytest.fixture
    async def access(self, timescaledb: testbed.Server) -> AsyncIterator[Access]:
        async with TimescaleProvisioner(admin_url(timescaledb)) as operator:
            yield await operator.provision("faulty")
        await timescaledb.wait_until_ready()
        async with TimescaleProvisioner(admin_url(timescaledb)) as operator:
            await operator.deprovision("faulty", force=True)

    @pytest.fixture
    def make(self, access: Access, timescaledb: testbed.Server) -> MakeAt:
        settings = TimescaleSettings.load(pool_size=self.pool_size)

        def make(host: str, port: int) -> TimescaleStore:
            url = access.url.reveal().replace(f"{testbed.LOOPBACK}:{timescaledb.port}", f"{host}:{port}")
            return TimescaleStore(url, project="faulty", settings=settings)

        return make


class TestNeo4jStore(GraphFaults):
    def calls(self, provider: Any, seconds: float) -> Mapping[str, Call]:
        return {**super().calls(provider, seconds), "run": lambda: provider.run("RETURN 1", timeout=seconds)}

    async def test_the_stage_sees_a_connection_that_outlives_its_cancelled_call(
        self, server: FaultyServer, make: MakeAt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The driver has guards of its own in each of its layers. Without them it undoes the transaction and goes on.
        kept: set[AsyncBolt] = set()
        left: set[Any] = set()
        defunct = AsyncBolt._set_defunct

        async def keep(bolt: Any, message: str, error: Any = None, silent: bool = False) -> None:
            if isinstance(error, asyncio.CancelledError):
                kept.add(bolt)
                bolt.inbox._broken = False
                raise error
            await defunct(bolt, message, error=error, silent=silent)

        def leave(session: Any, message: str = "") -> None:
            left.add(session)
            if session._connection is not None:
                kept.add(session._connection)

        monkeypatch.setattr(AsyncBolt, "_set_defunct", keep)
        monkeypatch.setattr(neo4j.AsyncSession, "_handle_cancellation", leave)
        monkeypatch.setattr(neo4j.AsyncTransaction, "_cancel", lambda transaction: None)
        try:
            await sees_it(self, server, make)
        finally:
            monkeypatch.undo()
            for session in left:
                session._closed = True
            for bolt in kept:
                bolt.kill()
            await asyncio.sleep(0)

    @pytest.fixture
    def server(self, neo4j: testbed.Server) -> FaultyServer:
        return fault_beds.Handle(neo4j)

    @pytest.fixture
    def make(self, neo4j: testbed.Server) -> Iterator[MakeAt]:
        def empty() -> None:
            with GraphDatabase.driver(f"bolt://{neo4j.address}", auth=("neo4j", neo4j.password)) as driver:
                driver.execute_query("MATCH (n) DETACH DELETE n")

        settings = Neo4jSettings.load(pool_size=self.pool_size)

        def make(host: str, port: int) -> Neo4jStore:
            return Neo4jStore(f"bolt://neo4j:{neo4j.password}@{host}:{port}", project="faulty", settings=settings)

        empty()
        yield make
        empty()


@pytest.fixture(scope="session")
def durable_redis(servers: object) -> Iterator[testbed.Server]:
    """A Redis that writes each change to its disk before it answers."""
    options = ["--appendonly", "yes", "--appendfsync", "always"]
    recipe = replace(
        testbed.RECIPES["redis"], command=lambda password: ["redis-server", "--requirepass", password, *options]
    )
    server = testbed.start("durable redis", recipe)
    yield server
    server.stop()


class TestRedisCache(CacheFaults):
    async def test_the_stage_sees_a_connection_that_outlives_its_cancelled_call(
        self, server: FaultyServer, make: MakeAt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept: set[Channel] = set()
        discard = Channel.discard
        monkeypatch.setattr(Channel, "abort", lambda channel: kept.add(channel))
        monkeypatch.setattr(Channel, "discard", lambda channel: kept.add(channel))
        try:
            await sees_it(self, server, make)
        finally:
            monkeypatch.undo()
            for channel in kept:
                discard(channel)

    @pytest.fixture
    def server(self, durable_redis: testbed.Server) -> Iterator[FaultyServer]:
        async def administer(*, remove: bool = False) -> None:
            url = f"redis://default:{durable_redis.password}@{durable_redis.address}"
            async with RedisProvisioner(url) as administrator:
                if remove:
                    await administrator.deprovision("faulty", force=True)
                else:
                    await administrator.provision("faulty", password=PASSWORD)

        asyncio.run(administer())
        # It was started without a file for its users.
        yield fault_beds.Handle(durable_redis, after_restart=lambda: asyncio.run(administer()))
        asyncio.run(administer(remove=True))

    @pytest.fixture
    def make(self) -> MakeAt:
        settings = RedisSettings.load(pool_size=self.pool_size, timeout="10s")

        def make(host: str, port: int) -> RedisCache:
            return RedisCache(f"redis://faulty:{PASSWORD.reveal()}@{host}:{port}", project="faulty", settings=settings)

        return make


class TestS3Bucket(BucketFaults):
    most_connections = 20  # as many for obstore's requests as for the others

    async def test_the_stage_sees_a_connection_that_outlives_its_cancelled_call(
        self, server: FaultyServer, make: MakeAt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = AsyncHTTP11Connection._response_closed

        async def keep(connection: Any) -> None:
            if connection._h11_state.their_state is not h11.DONE:
                connection._h11_state = h11.Connection(our_role=h11.CLIENT)
                connection._state = HTTPConnectionState.IDLE
            else:
                await closed(connection)

        monkeypatch.setattr(AsyncHTTP11Connection, "_response_closed", keep)
        await sees_it(self, server, make)

    @pytest.fixture
    def server(self, s3: testbed.Server) -> FaultyServer:
        return fault_beds.Handle(s3)

    @pytest.fixture
    async def make(self, s3: testbed.Server) -> AsyncIterator[MakeAt]:
        settings = S3Settings.load(connections=self.pool_size, part_bytes=5 << 20)
        async with s3_bed.own_project(s3) as project:
            yield lambda host, port: project.bucket(port=port, settings=settings)
