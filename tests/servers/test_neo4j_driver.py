"""Where the store makes good what the Neo4j driver lacks: sockets that it forgets, and what it keeps to itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import neo4j as driver
import psutil
import pytest
from neo4j import GraphDatabase

import testbed
from kmp_core.errors import DeadlineExceeded, LifecycleError, OutcomeUnknown, Unavailable
from kmp_core.testing.wire import Wire, mark
from kmp_storage.neo4j import Neo4jSettings, Neo4jStore, internals
from kmp_storage.testing.graph import City


@pytest.fixture
def url(neo4j: testbed.Server) -> Iterator[str]:
    yield f"bolt://neo4j:{neo4j.password}@{neo4j.address}"
    with GraphDatabase.driver(f"bolt://{neo4j.address}", auth=("neo4j", neo4j.password)) as session:
        session.execute_query("MATCH (n) DETACH DELETE n")


def sockets_to(port: int) -> int:
    """How many sockets of this process lead there, or try to."""
    return sum(bool(one.raddr) and one.raddr.port == port for one in psutil.Process().net_connections("tcp"))


@pytest.fixture
def full() -> Iterator[int]:
    """A port whose queue is full: who connects to it waits."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((testbed.LOOPBACK, 0))
        listener.listen(0)
        port = int(listener.getsockname()[1])
        while True:
            one = stack.enter_context(socket.socket())
            one.settimeout(0.2)
            try:
                one.connect((testbed.LOOPBACK, port))
            except TimeoutError:
                break
        yield port


@pytest.mark.parametrize("ended_by", ["cancellation", "deadline"])
async def test_the_socket_of_a_call_that_is_ended_while_it_connects_is_closed(full: int, ended_by: str) -> None:
    # Without `close_forgotten_sockets` the driver (6.4) leaves it to the garbage collector.
    before = sockets_to(full)
    settings = Neo4jSettings.load(timeout="500ms" if ended_by == "deadline" else "30s")
    store = Neo4jStore(f"bolt://{testbed.LOOPBACK}:{full}", project="acme", settings=settings)
    opening = asyncio.ensure_future(store.open())
    while sockets_to(full) == before:  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(0)
    if ended_by == "cancellation":
        opening.cancel()
    (outcome,) = await asyncio.gather(opening, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError if ended_by == "cancellation" else DeadlineExceeded)
    assert sockets_to(full) == before, "the driver's socket outlived its call"


ENDLESS = f"UNWIND range(1, 1000000) AS a UNWIND range(1, 1000000) AS b WITH a WHERE a < 0 RETURN count(*), '{mark(1)}'"


@asynccontextmanager
async def behind_a_black_hole(url: str, port: int, **settings: Any) -> AsyncIterator[tuple[Wire, Neo4jStore, Any]]:
    """A store of which one call runs in the server, whose answers are swallowed from then on."""
    async with Wire(testbed.LOOPBACK, port) as wire:
        own = Neo4jSettings.load(**settings)
        store = Neo4jStore(url.replace(str(port), str(wire.port)), project="acme", settings=own)
        await store.open()
        sent = wire.expect(1)
        running = asyncio.ensure_future(store.run(ENDLESS))
        await sent
        wire.black_hole()
        yield wire, store, running
        await store.close()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await running
        assert sockets_to(wire.port) == 0


async def test_close_cuts_at_once_who_still_connects_and_lets_the_others_end(url: str, neo4j: testbed.Server) -> None:
    async with behind_a_black_hole(url, neo4j.port) as (wire, store, running):
        connecting = asyncio.ensure_future(store.run("RETURN 2"))
        while sockets_to(wire.port) < 2:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(store.close())
        done, _ = await asyncio.wait((running, connecting), return_when=asyncio.FIRST_COMPLETED)
        assert done == {connecting}
        with pytest.raises(LifecycleError, match="before the call had begun"):
            await connecting
        await closing


async def test_a_call_in_line_for_a_connection_does_not_begin_after_close(url: str, neo4j: testbed.Server) -> None:
    async with behind_a_black_hole(url, neo4j.port, pool_size=1) as (_, store, _):
        waiting = asyncio.ensure_future(store.run("RETURN 2"))
        while not store._server.waiting:  # noqa: ASYNC110 - turns of the event loop
            await asyncio.sleep(0)
        await store.close()
        with pytest.raises(LifecycleError, match="before the call had begun"):
            await waiting


async def test_what_is_read_of_the_drivers_own_is_where_it_was(url: str) -> None:
    mend = f"the driver {driver.__version__} keeps its connections elsewhere: mend kmp_storage/neo4j/internals.py"
    async with Neo4jStore(url, project="acme") as store:
        await store.run("RETURN 1")
        inside = store._server._driver
        assert len(internals.pooled(inside)) == 1, mend
        (writer,) = internals.writers(inside) or pytest.fail(mend)
        assert not writer.is_closing()
        assert store._server.idle == 1
    assert writer.is_closing()


class Elsewhere:
    """A pool of a driver to come: all it does it does as before, and keeps its connections under another name."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        if name == "connections":
            raise AttributeError(name)
        return getattr(self._pool, name)


async def test_a_driver_that_keeps_its_connections_elsewhere_is_used_and_closed_all_the_same(
    url: str, neo4j: testbed.Server
) -> None:
    async with Neo4jStore(url, project="acme") as store:
        inside: Any = store._server._driver
        inside._pool = Elsewhere(inside._pool)
        assert await store.merge(City(code="A")) == 1
        assert internals.pooled(inside) == []
        assert store._server.idle == 0
    assert sockets_to(neo4j.port) == 0


async def test_a_closed_store_left_no_socket(url: str, neo4j: testbed.Server) -> None:
    async with Neo4jStore(url, project="acme") as store:
        await asyncio.gather(*(store.run("RETURN 1") for _ in range(5)))
        assert sockets_to(neo4j.port) > 1
    assert sockets_to(neo4j.port) == 0
