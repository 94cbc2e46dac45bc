"""The installable fault stage over every provider on a server, and the proof that it sees what it is there for."""

from __future__ import annotations

import asyncio
from bisect import bisect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import h11
import neo4j
import pytest
from httpcore._async.http11 import AsyncHTTP11Connection, HTTPConnectionState
from neo4j import GraphDatabase
from neo4j._async.io._bolt import AsyncBolt
from redis.crc import key_slot

import azure_bed
import fault_beds
import s3_bed
import testbed
from kmp_core.postgres import Connection
from kmp_core.secrets import Secret
from kmp_core.testing import FaultyServer, MakeAt, ProviderFaults, Wire, WireTls, mark
from kmp_core.testing.faults import Call
from kmp_storage.bucket import S3Settings
from kmp_storage.bucket.cloud import CloudSettings
from kmp_storage.neo4j import Neo4jSettings, Neo4jStore
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.redis.channel import Channel
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.faults import BucketFaults, CacheFaults, GraphFaults, TimeSeriesFaults, redis_places
from kmp_storage.timescale import TimescaleSettings, TimescaleStore
from kmp_storage.timescale.provisioning import Access, TimescaleProvisioner
from postgres_bed import admin_url
from redis_bed import configure, save
from redis_ways import PRIMARY, Certified

ROOT = "default:{}"
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


class TestRedisCache(CacheFaults):
    scheme: ClassVar[str] = "redis"
    at: ClassVar[str | None] = None
    """Under which name the server is known; where it listens where None."""

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
    def tuned(self) -> Mapping[str, Any]:
        """Settings of this way to Redis."""
        return {}

    @pytest.fixture
    def server(self, durable_redis: testbed.Server) -> Iterator[FaultyServer]:
        with self.has_its_user(durable_redis, f"redis://{ROOT}@{durable_redis.address}") as again:
            yield fault_beds.Handle(durable_redis, after_restart=again)

    @contextmanager
    def has_its_user(self, server: testbed.Server, url: str, **settings: Any) -> Iterator[Callable[[], None]]:
        """Gives a function that provisions the user again: most are started without a file for their users."""

        async def administer(*, remove: bool = False) -> None:
            loaded = RedisSettings.load(timeout="10s", connect_timeout="10s", **settings)
            async with RedisProvisioner(url.format(server.password), settings=loaded) as administrator:
                if remove:
                    await administrator.deprovision("faulty", force=True)
                else:
                    await administrator.provision("faulty", password=PASSWORD)

        asyncio.run(administer())
        yield lambda: asyncio.run(administer())
        asyncio.run(administer(remove=True))

    @pytest.fixture
    def make(self, tuned: Mapping[str, Any]) -> MakeAt:
        settings = RedisSettings.load(pool_size=self.pool_size, timeout="10s", connect_timeout="10s", **tuned)

        def make(host: str, port: int) -> RedisCache:
            url = f"{self.scheme}://faulty:{PASSWORD.reveal()}@{self.at or host}:{port}"
            return RedisCache(url, project="faulty", settings=settings)

        return make


class TestRedisCacheOverTls(TestRedisCache):
    scheme = "rediss"
    at = "localhost"
    cancellations = 100

    @pytest.fixture
    def tuned(self, redis_over_tls: Certified) -> Mapping[str, Any]:
        return {"tls_ca_file": redis_over_tls.authority}

    @pytest.fixture
    def server(self, redis_over_tls: Certified) -> Iterator[FaultyServer]:
        self.tls = WireTls(redis_over_tls.shown, redis_over_tls.trusted)
        server, url = redis_over_tls.server, f"rediss://{ROOT}@localhost:{redis_over_tls.server.port}"
        with self.has_its_user(server, url, tls_ca_file=redis_over_tls.authority) as again:
            yield fault_beds.Handle(server, after_restart=again)

    def wire(self, server: FaultyServer) -> Wire:
        return Wire(server.host, server.port, tls=self.tls)


class TestRedisCacheBehindASentinel(TestRedisCache):
    """The Sentinel names the same server however long that is away: what is lost in a failover nobody promises."""

    cancellations = 100
    most_connections = 20  # each new one asks the Sentinel first, on another one

    @pytest.fixture
    def tuned(self, redis_sentinel: testbed.Server) -> Mapping[str, Any]:
        return {"sentinel": PRIMARY, "sentinel_password": redis_sentinel.password}

    @pytest.fixture
    def server(self, durable_redis: testbed.Server, redis_sentinel: testbed.Server) -> Iterator[FaultyServer]:
        self.primary = (testbed.LOOPBACK, durable_redis.port)
        with self.has_its_user(durable_redis, f"redis://{ROOT}@{durable_redis.address}") as again:
            yield fault_beds.Handle(durable_redis, after_restart=again, entrance=redis_sentinel)

    def wire(self, server: FaultyServer) -> Wire:
        return Wire(server.host, server.port, self.primary, translate=redis_places)


class TestRedisClusterCache(TestRedisCache):
    """All nodes are hurt at once; no replica takes over, since it may lack what its primary acknowledged."""

    scheme = "redis+cluster"
    cancellations = 100
    most_connections = 3 * CacheFaults.pool_size + 1  # with each primary, and one that asks for the map

    def line(self, number: int) -> object:
        return bisect([5461, 10923], key_slot(f"faulty:v:{{.{mark(number)}}}".encode()))  # as three nodes share them

    @pytest.fixture
    def server(self, redis_cluster: testbed.Server) -> Iterator[FaultyServer]:
        self.others = [(testbed.LOOPBACK, port) for port in redis_cluster.nodes[1:]]
        durable = {"appendonly": "yes", "appendfsync": "always", "cluster-replica-no-failover": "yes"}
        usual = {"appendonly": "no", "appendfsync": "everysec", "cluster-replica-no-failover": "no"}
        asyncio.run(configure(redis_cluster, durable))
        with self.has_its_user(redis_cluster, f"redis+cluster://{ROOT}@{redis_cluster.address}"):
            yield fault_beds.Handle(redis_cluster)
        asyncio.run(configure(redis_cluster, usual))
        # A node that is killed later reads what it saved last, which may be from within the stage.
        asyncio.run(save(redis_cluster))

    def wire(self, server: FaultyServer) -> Wire:
        return Wire(server.host, server.port, *self.others, translate=redis_places)


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


class TestCloudBucket(BucketFaults):
    keeps_acknowledged = False  # Azurite writes its index every few seconds

    @pytest.fixture
    async def project(self, azurite: testbed.Server) -> AsyncIterator[azure_bed.CloudProject]:
        async with azure_bed.own_project(azurite) as project:
            yield project

    @pytest.fixture
    def server(self, project: azure_bed.CloudProject) -> FaultyServer:
        def again() -> None:
            asyncio.run(azure_bed.as_it_was(project.server, project.name))

        return fault_beds.Handle(project.server, after_restart=again)

    @pytest.fixture
    def make(self, project: azure_bed.CloudProject) -> MakeAt:
        settings = CloudSettings.load(connections=self.pool_size, part_bytes=1 << 20)
        return lambda host, port: project.bucket(port=port, settings=settings)
