"""What the fault stage of graphs does not ask of Neo4j: a restart behind a routing URL, and waiting as a metric."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from neo4j import GraphDatabase
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import NoOpTracerProvider

import faults
import testbed
from kmp_core.errors import BackendError, DeadlineExceeded, KmpError, PoolExhausted
from kmp_core.telemetry import reporting_to
from kmp_storage import Edge, Node
from kmp_storage.neo4j import Neo4jSettings, Neo4jStore
from kmp_storage.testing.graph import City


@pytest.fixture
def url(neo4j: testbed.Server) -> Iterator[str]:
    with GraphDatabase.driver(f"bolt://{neo4j.address}", auth=("neo4j", neo4j.password)) as driver:
        driver.execute_query("MATCH (n) DETACH DELETE n")
        yield f"bolt://neo4j:{neo4j.password}@{neo4j.address}"
        driver.execute_query("MATCH (n) DETACH DELETE n")


@pytest.fixture
def proxy(neo4j: testbed.Server, proxies: faults.Proxies) -> Iterator[faults.Proxy]:
    with proxies.before(neo4j) as proxy:
        yield proxy


PATIENT = Neo4jSettings.load(timeout="60s")


def through(proxy: faults.Proxy, server: testbed.Server) -> str:
    return f"bolt://neo4j:{server.password}@127.0.0.1:{proxy.port}"


async def test_what_was_acknowledged_survives_a_killed_server_which_is_used_again_by_routing(
    url: str, neo4j: testbed.Server
) -> None:
    async with Neo4jStore(url.replace("bolt:", "neo4j:"), project="acme") as store:
        acknowledged: list[str] = []

        async def write() -> None:
            for number in range(100_000):
                code = f"K{number}"
                await store.merge(City(code=code, people=number), timeout="20s")
                acknowledged.append(code)

        writing = asyncio.create_task(write())
        while len(acknowledged) < 20:
            assert not writing.done()
            await asyncio.sleep(0.01)
        await asyncio.to_thread(neo4j.kill)
        with pytest.raises(KmpError):
            await writing
        with pytest.raises(KmpError):
            await store.check()
        await asyncio.to_thread(neo4j.start_again)
        await neo4j.wait_until_ready()
        # From when it serves a newcomer: how long a cold server takes for its first transaction is not ours.
        async with Neo4jStore(url.replace("bolt:", "neo4j:"), project="acme", settings=PATIENT) as newcomer:
            await newcomer.run("RETURN 1")
        began = time.monotonic()
        while True:
            try:
                assert await store.run("RETURN 1 AS one", timeout="5s") == [{"one": 1}]
                break
            except BackendError:
                assert time.monotonic() - began < 5, "it is not used again"
                await asyncio.sleep(0.05)
        found = await store.run("MATCH (n:ContractCity) RETURN n.code AS code")
        assert set(acknowledged) <= {row["code"] for row in found}
        await store.check()
        assert await store.merge(City(code="after")) == 1


async def test_an_exhausted_pool_is_told_by_type_and_by_a_metric(
    url: str, neo4j: testbed.Server, proxy: faults.Proxy
) -> None:
    settings = Neo4jSettings.load(pool_size=1, acquire_timeout="200ms")
    reader = InMemoryMetricReader()
    with reporting_to(NoOpTracerProvider(), MeterProvider([reader])):
        async with Neo4jStore(through(proxy, neo4j), project="acme", settings=settings) as store:
            await store.merge(City(code="A"))
            assert points(reader, "count") == {"used": 0, "idle": 1}
            proxy.slow(3000)
            slow = asyncio.ensure_future(store.get(City, "A"))
            calls = [asyncio.ensure_future(store.run("RETURN 1")) for _ in range(2)]
            for _ in range(5):  # turns of the event loop, in which all of them come to ask
                await asyncio.sleep(0)
            assert points(reader, "count")["used"] == 1
            assert points(reader, "pending_requests") == {None: 2}
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [PoolExhausted, PoolExhausted]
            assert points(reader, "pending_requests") == {None: 0}
            assert points(reader, "timeouts") == {None: 2}
            slow.cancel()
            await asyncio.gather(slow, return_exceptions=True)
            proxy.heal()
        assert points(reader, "pending_requests") == {}


class Here(Node, label="SlowHere", key="code"):
    code: str


class There(Node, label="SlowThere", key="code"):
    code: str


class Way(Edge, type="SLOW_WAY", source=Here, target=There):
    pass


@pytest.mark.parametrize("many", [False, True], ids=["merge", "merge_all"])
async def test_the_time_of_a_merge_is_that_of_its_constraints_too(
    url: str, neo4j: testbed.Server, proxy: faults.Proxy, many: bool
) -> None:
    way = Way(source="A", target="B")
    async with Neo4jStore(through(proxy, neo4j), project="acme") as store:
        await store.run("RETURN 1")
        proxy.slow(200)
        # Each of its three transactions would end in time, and all of them do not.
        with pytest.raises(DeadlineExceeded):
            await (store.merge_all([way], timeout="1.2s") if many else store.merge(way, timeout="1.2s"))
        proxy.heal()
        assert await store.edges(Way) == []
        assert await store.merge(way) == 1


def points(reader: InMemoryMetricReader, name: str) -> dict[Any, float]:
    """The values of a pool's metric by state."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (point.attributes or {}).get("db.client.connection.state"): point.value
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name == f"db.client.connection.{name}"
        for point in metric.data.data_points
    }
