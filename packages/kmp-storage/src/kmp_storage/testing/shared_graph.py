"""What a graph store promises that several processes share; each test runs real ones."""

from __future__ import annotations

import asyncio

import pytest

from kmp_core.testing import Make
from kmp_storage.protocols import GraphStore
from kmp_storage.testing.graph import City, Flies, GraphStoreContract, flies
from kmp_storage.testing.processes import child

__all__ = ["SharedGraphStoreContract"]

_HERE = __name__


class SharedGraphStoreContract(GraphStoreContract):
    """`GraphStoreContract` for a provider that declares `shared` and `durable`; define the fixture `address` too."""

    @pytest.fixture
    def address(self) -> str:
        """A URL with which the provider's `from_url` opens, in another process, the data of `make("acme")`."""
        raise NotImplementedError("define a fixture `address` that returns the URL of what `make` opens")

    async def test_declares_what_this_suite_tests(self, make: Make) -> None:
        assert {"durable", "shared"} <= make().abilities

    async def test_the_graph_survives_a_restart(self, make: Make) -> None:
        async with make() as graph:
            await graph.merge(City(code="A", name="Aachen"), flies("A", "B", miles=3))
        async with make() as graph:
            assert await graph.get(City, "A") == City(code="A", name="Aachen")
            assert await graph.edges(Flies) == [flies("A", "B", miles=3)]

    async def test_processes_merge_side_by_side(self, make: Make, address: str) -> None:
        provider = make()
        async with (
            child(provider, address, f"{_HERE}:merge_many") as one,
            child(provider, address, f"{_HERE}:merge_many") as other,
        ):
            # Both merge the same edges at once: each counts once, for one of them.
            new = int(await one.line()) + int(await other.line())
            await asyncio.gather(one.end(), other.end())
        async with make() as graph:
            assert new == 1000
            assert len(await graph.edges(Flies)) == 1000

    async def test_a_killed_process_leaves_whole_calls(self, make: Make, address: str) -> None:
        provider = make()
        async with child(provider, address, f"{_HERE}:merge_until_killed") as other:
            acknowledged = 0
            while acknowledged < 3:
                acknowledged = int(await other.line())
            await other.kill()
        async with make() as graph:
            edges = len(await graph.edges(Flies))
            assert edges % 500 == 0
            assert edges >= acknowledged * 500
            assert await graph.merge(flies("A", "B")) == 1


# What the other processes do


async def merge_many(graph: GraphStore) -> None:
    new = 0
    for begin in range(0, 1000, 20):
        new += await graph.merge(*(flies("HUB", f"C{number}") for number in range(begin, begin + 20)))
    print(new, flush=True)  # noqa: T201 - the other end of a pipe


async def merge_until_killed(graph: GraphStore) -> None:
    for call in range(1, 1_000_000):
        await graph.merge(*(flies(f"S{call}", f"T{number}") for number in range(500)))
        print(call, flush=True)  # noqa: T201 - the other end of a pipe
