"""A Neo4j that stalls, dies and comes back: calls end in time, nothing acknowledged is lost, the store goes on."""

from __future__ import annotations

import asyncio
import random
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
from kmp_core.errors import BackendError, DeadlineExceeded, KmpError, PoolExhausted, Unavailable
from kmp_core.telemetry import reporting_to
from kmp_storage.neo4j import Neo4jSettings, Neo4jStore
from kmp_storage.testing.graph import City, Flies, flies

SLACK = 0.1


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


def through(proxy: faults.Proxy, server: testbed.Server) -> str:
    return f"bolt://neo4j:{server.password}@127.0.0.1:{proxy.port}"


async def stall_during(work: asyncio.Task[object]) -> float:
    """The longest time for which this event loop was not ours while the work was done."""
    longest = 0.0
    while not work.done():
        began = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - began - 0.01)
    return longest


@pytest.mark.parametrize("direction", ["downstream", "upstream"])
async def test_calls_into_a_black_hole_end_in_time(
    url: str, proxy: faults.Proxy, neo4j: testbed.Server, direction: faults.Direction
) -> None:
    async with Neo4jStore(through(proxy, neo4j), project="acme") as store:
        await store.merge(flies("A", "B"))
        proxy.black_hole(direction=direction)
        calls = (
            lambda: store.merge(City(code="C"), timeout="500ms"),
            lambda: store.get(City, "A", timeout="500ms"),
            lambda: store.neighbours(City(code="A"), via=Flies, timeout="500ms"),
            lambda: store.run("RETURN 1", timeout="500ms"),
        )
        for call in calls:
            began = time.monotonic()
            task = asyncio.ensure_future(call())
            stall = await stall_during(task)
            assert isinstance(task.exception(), DeadlineExceeded | Unavailable)
            assert time.monotonic() - began <= 0.5 + SLACK + stall
        proxy.heal()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await store.get(City, "A") == City(code="A")
                    break
                except BackendError:
                    await asyncio.sleep(0.05)


@pytest.mark.parametrize("scheme", ["bolt", "neo4j"])
async def test_what_was_acknowledged_survives_a_killed_server_which_is_used_again(
    url: str, neo4j: testbed.Server, scheme: str
) -> None:
    async with Neo4jStore(url.replace("bolt:", f"{scheme}:"), project="acme") as store:
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


async def test_close_is_bounded_when_the_server_is_gone(url: str, proxy: faults.Proxy, neo4j: testbed.Server) -> None:
    store = Neo4jStore(through(proxy, neo4j), project="acme")
    await store.open()
    await store.merge(City(code="A"))
    proxy.black_hole()
    call = asyncio.ensure_future(store.get(City, "A", timeout="1m"))
    await asyncio.sleep(0.1)
    closing = asyncio.ensure_future(store.close())
    done, _ = await asyncio.wait((closing,), timeout=10)
    assert done
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(outcome, KmpError)
    await closing


async def test_no_answer_reaches_the_wrong_caller_however_calls_are_cancelled(
    url: str, proxy: faults.Proxy, neo4j: testbed.Server
) -> None:
    chance = random.Random(7)
    settings = Neo4jSettings.load(pool_size=10)
    async with Neo4jStore(through(proxy, neo4j), project="acme", settings=settings) as store:
        await store.merge(*(City(code=f"C{number}", people=number) for number in range(100)))
        proxy.slow(20)
        cancelled = waiting = 0

        async def caller(turns: int) -> None:
            nonlocal cancelled, waiting
            for _ in range(turns):
                number = chance.randrange(100)
                task = asyncio.ensure_future(store.get(City, f"C{number}"))
                await asyncio.sleep(chance.uniform(0.002, 0.06))
                waiting += not task.done()
                task.cancel()
                (found,) = await asyncio.gather(task, return_exceptions=True)
                cancelled += isinstance(found, asyncio.CancelledError)
                if not isinstance(found, BaseException):
                    assert found == City(code=f"C{number}", people=number)
                # What a cancelled call left must not be what the next one gets.
                assert await store.get(City, f"C{99 - number}") == City(code=f"C{99 - number}", people=99 - number)

        await asyncio.gather(*(caller(125) for _ in range(8)))
        assert cancelled >= 900
        proxy.heal()


async def test_a_small_pool_serves_many_callers_in_their_order(url: str) -> None:
    settings = Neo4jSettings.load(pool_size=10, acquire_timeout="2m", timeout="2m")
    async with Neo4jStore(url, project="acme", settings=settings) as store:
        await store.merge(City(code="A"))
        served: list[int] = []

        async def caller(number: int) -> None:
            assert await store.get(City, "A") == City(code="A")
            served.append(number)

        await asyncio.gather(*(caller(number) for number in range(1000)))
        # First come, first served: nobody is overtaken by more than those who are served beside them.
        assert all(abs(place - number) < 100 for place, number in enumerate(served))


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
