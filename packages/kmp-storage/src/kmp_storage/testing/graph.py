"""What every graph store promises; derive `TestMyGraph(GraphStoreContract)` and define the fixture `make`."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any, ClassVar
from uuid import UUID

import pytest

from kmp_core.errors import DeadlineExceeded, InvalidInput
from kmp_core.testing import Make, ProviderContract, Recorder
from kmp_storage.models import Edge, Node, key_of
from kmp_storage.protocols import Direction, GraphStore

__all__ = ["City", "Flies", "GraphStoreContract", "Serves"]

ODD_TEXT = "a'b\"c;--\\ `x` $y {z} \u00e9 \U0001f6eb \u202e%_ "


class City(Node, label="ContractCity", key="code"):
    """A place."""

    code: str
    name: str | None = None
    people: int = 0


class Line(Node, label="ContractLine", key="code"):
    """A company; its keys may be those of cities."""

    code: str
    name: str | None = None


class Flies(Edge, type="CONTRACT_FLIES", source=City, target=City):
    """A connection."""

    miles: int | None = None


class Serves(Edge, type="CONTRACT_SERVES", source=Line, target=City):
    """A connection between two classes."""

    since: date


class _Colour(Enum):
    RED = 1
    BLUE = 2


class _Everything(Node, label="ContractEverything", key="code"):
    """A field of each type."""

    code: str
    flag: bool | None = None
    whole: int = 1
    real: float = 0.5
    text: str = ""
    raw: bytes = b""
    moment: datetime | None = None
    day: date | None = None
    number: UUID | None = None
    colour: _Colour = _Colour.RED


class GraphStoreContract(ProviderContract):
    """The promises of `GraphStore` within one process; `SharedGraphStoreContract` adds those over several."""

    abilities: ClassVar[frozenset[str]] = frozenset({"durable", "shared"})
    """What a store may declare beyond the calls of its protocol. A declared ability is tested."""

    async def write(self, provider: Any) -> None:
        await provider.merge(City(code="CONTRACT"))

    async def wrote(self, provider: Any) -> bool:
        return await provider.get(City, "CONTRACT") is not None

    async def test_declares_known_abilities(self, make: Make) -> None:
        assert make().abilities <= self.abilities

    # Merging

    async def test_returns_what_was_merged(self, make: Make) -> None:
        node = _Everything(
            code=ODD_TEXT,
            flag=False,
            whole=2**63 - 1,
            real=0.1 + 0.2,
            text=ODD_TEXT,
            raw=bytes(range(256)),
            moment=datetime(1901, 2, 3, 4, 5, 6, 789, tzinfo=UTC),
            day=date(1, 1, 1),
            number=UUID(int=2**128 - 1),
            colour=_Colour.BLUE,
        )
        async with make() as graph:
            assert await graph.merge() == 0
            assert await graph.merge(node) == 1
            assert await graph.get(_Everything, ODD_TEXT) == node
            assert await graph.get(_Everything, ODD_TEXT.strip()) is None

    async def test_counts_what_is_new_or_changed(self, make: Make) -> None:
        async with make() as graph:
            assert await graph.merge(City(code="A"), City(code="B"), flies("A", "B"), City(code="A")) == 3
            assert await graph.merge(City(code="A"), flies("A", "B")) == 0
            assert await graph.merge(City(code="A", name="Aachen"), flies("A", "B", miles=3)) == 2
            assert await graph.merge(City(code="A", name="Aachen"), flies("A", "B", miles=3)) == 0

    async def test_none_where_nothing_was_known_is_no_change(self, make: Make) -> None:
        async with make() as graph:
            await graph.merge(City(code="A"), flies("A", "B"))
            assert (
                await graph.merge(City(code="A", name=None), City(code="B", name=None), flies("A", "B", miles=None))
                == 0
            )
            assert await graph.merge(City(code="A", name="Ames")) == 1
            assert await graph.merge(City(code="A", name=None)) == 1, "what was known is forgotten"
            assert await graph.merge(City(code="A", name=None)) == 0

    async def test_merging_changes_only_what_was_passed(self, make: Make) -> None:
        async with make() as graph:
            await graph.merge(City(code="A", name="Aachen", people=3), flies("A", "B", miles=3))
            await graph.merge(City(code="A", people=4), flies("A", "B"))
            assert await graph.get(City, "A") == City(code="A", name="Aachen", people=4)
            assert await graph.edges(Flies) == [flies("A", "B", miles=3)]
            await graph.merge(City(code="A", name=None), flies("A", "B", miles=None))
            assert await graph.get(City, "A") == City(code="A", people=4)
            assert await graph.edges(Flies) == [flies("A", "B")]

    async def test_an_end_that_is_missing_becomes_a_node_without_details(self, make: Make) -> None:
        async with make() as graph:
            assert await graph.merge(flies("A", "B")) == 1
            assert await graph.get(City, "B") == City(code="B")
            assert await graph.merge(City(code="B", name="Bonn")) == 1
            assert [node.name for node in await around(graph, "A")] == ["Bonn"]

    async def test_classes_do_not_share_keys(self, make: Make) -> None:
        async with make() as graph:
            await graph.merge(City(code="X", name="city"), Line(code="X", name="line"))
            assert await graph.get(City, "X") == City(code="X", name="city")
            assert await graph.get(Line, "X") == Line(code="X", name="line")
            assert await graph.delete(Line, "X")
            assert await graph.get(City, "X") is not None

    @pytest.mark.parametrize(
        ("field", "value", "problem"),
        [
            ("code", "", "1 to 512"),
            ("code", "x" * 513, "1 to 512"),
            ("code", None, "None"),
            ("code", 7, "str"),
            ("code", "a\0b", "NUL"),
            ("code", "\ud800", "surrogate"),
            ("whole", 2**63, "64 bits"),
            ("real", math.nan, "finite"),
            ("real", None, "None"),
            ("moment", datetime(2024, 1, 1), "naive"),  # noqa: DTZ001 - the point
            ("text", "a\0b", "NUL"),
        ],
    )
    async def test_a_wrong_value_is_refused_by_row_and_field_and_nothing_is_written(
        self, make: Make, field: str, value: Any, problem: str
    ) -> None:
        wrong = _Everything(code="W").model_copy(update={field: value})
        async with make() as graph:
            with pytest.raises(InvalidInput, match=problem) as refused:
                await graph.merge(City(code="A"), flies("A", "B"), wrong)
            assert (refused.value.field, refused.value.row) == (field, 2)
            assert await graph.get(City, "A") is None

    async def test_a_wrong_end_or_item_is_refused(self, make: Make) -> None:
        async with make() as graph:
            for wrong in (flies("A", "B").model_copy(update={"target": ""}), [City(code="A")], None, "A"):
                with pytest.raises(InvalidInput):
                    await graph.merge(City(code="A"), wrong)
                with pytest.raises(InvalidInput):
                    await graph.merge_all([wrong])
            questions: tuple[Callable[[], Awaitable[Any]], ...] = (
                lambda: graph.get(City, ""),
                lambda: graph.get(Flies, "A"),
                lambda: graph.neighbours(City(code="A"), via=City),
                lambda: graph.neighbours(City(code="A"), via=()),
                lambda: graph.neighbours(City(code="A"), via=Flies, depth=0),
                lambda: graph.neighbours(City(code="A"), via=Flies, direction="sideways"),
                lambda: graph.neighbours(City(code="A"), via=Flies, limit=-1),
                lambda: graph.neighbours("A", via=Flies),
                lambda: graph.paths(City(code="A"), City(code="B"), via=Flies, limit=0),
                lambda: graph.paths(City(code="A"), City(code="B"), via=Flies, depth=True),
            )
            for question in questions:
                with pytest.raises(InvalidInput):
                    await question()
            assert await graph.get(City, "A") is None

    async def test_merges_a_stream(self, make: Make) -> None:
        async def source() -> AsyncIterator[Node | Edge]:
            for number in range(2500):
                yield City(code=f"C{number}")
                yield flies("HUB", f"C{number}")

        async with make() as graph:
            assert await graph.merge_all([]) == 0
            assert await graph.merge_all(source()) == 5000
            assert await graph.merge_all(source()) == 0
            assert len(await graph.edges(Flies)) == 2500

    async def test_a_wrong_item_of_a_stream_is_told_by_its_position(self, make: Make) -> None:
        wrong = City(code="W").model_copy(update={"people": 2**63})
        async with make() as graph:
            with pytest.raises(InvalidInput) as refused:
                await graph.merge_all([*(City(code=f"C{number}") for number in range(4567)), wrong])
            assert (refused.value.field, refused.value.row) == ("people", 4567)

    async def test_a_cancelled_merge_leaves_all_or_nothing(self, make: Make) -> None:
        items = [City(code=f"C{number}") for number in range(2000)]
        async with make() as graph:
            for turns, pause in enumerate((0, 0, 0.001, 0.005, 0.02)):
                batch = [*items, flies(f"FIRST{turns}", f"LAST{turns}")]
                task = asyncio.ensure_future(graph.merge(City(code=f"BEGIN{turns}"), *batch))
                await asyncio.sleep(pause)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                begin, last = await graph.get(City, f"BEGIN{turns}"), await graph.get(City, f"LAST{turns}")
                assert (begin is None) == (last is None)
            assert await graph.merge(City(code="after")) == 1

    async def test_a_merge_whose_time_is_over_wrote_nothing(self, make: Make) -> None:
        items = [City(code=f"C{number}") for number in range(20_000)]
        async with make() as graph:
            with pytest.raises(DeadlineExceeded):
                await graph.merge(*items, timeout="1ms")
            assert await graph.get(City, "C0") is None
            assert await graph.merge(*items) == len(items)

    async def test_deleting_a_node_takes_its_edges_along(self, make: Make) -> None:
        async with make() as graph:
            await graph.merge(flies("A", "B"), flies("B", "C"), flies("C", "A"))
            assert await graph.delete(City, "B")
            assert not await graph.delete(City, "B")
            assert await graph.edges(Flies) == [flies("C", "A")]
            # Whoever comes into the place of a node that is gone inherits no edge of it.
            assert await graph.delete(City, "C")
            await graph.merge(City(code="D"), City(code="B"), City(code="C"))
            assert await graph.edges(Flies) == []

    # Asking

    async def test_edges_come_in_the_order_of_their_ends(self, make: Make) -> None:
        async with make() as graph:
            assert await graph.edges(Flies) == []
            await graph.merge(Serves(source="L", target="A", since=date(2001, 2, 3)))
            await graph.merge(flies("B", "A"), flies("A", "C"), flies("A", "B"))
            assert await graph.edges(Flies) == [flies("A", "B"), flies("A", "C"), flies("B", "A")]
            assert await graph.edges(Flies, limit=1) == [flies("A", "B")]
            assert await graph.edges(Serves) == [Serves(source="L", target="A", since=date(2001, 2, 3))]

    async def test_neighbours_by_direction_depth_and_limit(self, make: Make) -> None:
        async with make() as graph:
            await graph.merge(flies("A", "C"), flies("A", "B"), flies("B", "D"), flies("E", "A"), flies("A", "A"))
            assert await codes(graph, "A") == ["B", "C"]
            assert await codes(graph, "A", direction="in") == ["E"]
            assert await codes(graph, "A", direction="both") == ["B", "C", "E"]
            assert await codes(graph, "A", depth=2) == ["B", "C", "D"]
            assert await codes(graph, "A", depth=2, direction="both", limit=4) == ["B", "C", "E", "D"]
            assert await codes(graph, "A", limit=1) == ["B"]
            assert await codes(graph, "A", limit=0) == []
            assert await codes(graph, "nobody") == []

    async def test_neighbours_of_several_classes(self, make: Make) -> None:
        async with make() as graph:
            await graph.merge(Serves(source="L", target="A", since=date(2001, 2, 3)), flies("A", "B"), City(code="Z"))
            found = await graph.neighbours(City(code="A"), via=(Flies, Serves), direction="both")
            assert found == [City(code="B"), Line(code="L")]
            assert await graph.neighbours(City(code="A"), via=(Flies, Serves), direction="both", only=Line) == [
                Line(code="L")
            ]
            # What is left out of the result is not out of the way.
            assert await graph.neighbours(Line(code="L"), via=(Flies, Serves), depth=2, only=City) == [
                City(code="A"),
                City(code="B"),
            ]
            assert await graph.neighbours(City(code="A"), via=Serves) == []

    async def test_the_shortest_ways_come_first(self, make: Make) -> None:
        async with make() as graph:
            await graph.merge(flies("A", "B"), flies("B", "D"), flies("A", "C"), flies("C", "D"), flies("C", "B"))
            await graph.merge(flies("D", "A", miles=9), flies("B", "A"))
            found = await graph.paths(City(code="A"), City(code="D"), via=Flies, limit=9)
            assert [path.keys for path in found] == [("A", "B", "D"), ("A", "C", "D"), ("A", "C", "B", "D")]
            assert found[0].edges == (flies("A", "B"), flies("B", "D"))
            assert [len(path) for path in found] == [2, 2, 3]
            (one,) = await graph.paths(City(code="A"), City(code="D"), via=Flies)
            assert one == found[0]
            assert len(await graph.paths(City(code="A"), City(code="D"), via=Flies, limit=9, depth=2)) == 2
            (back,) = await graph.paths(City(code="A"), City(code="D"), via=Flies, direction="in")
            assert back.edges == (flies("D", "A", miles=9),)
            assert back.keys == ("A", "D")

    async def test_where_there_is_no_way_there_is_none(self, make: Make) -> None:
        async with make() as graph:
            await graph.merge(flies("A", "B"), flies("C", "B"))
            assert await graph.paths(City(code="A"), City(code="C"), via=Flies) == []
            (both,) = await graph.paths(City(code="A"), City(code="C"), via=Flies, direction="both")
            assert both.edges == (flies("A", "B"), flies("C", "B"))
            assert await graph.paths(City(code="A"), City(code="nobody"), via=Flies) == []
            assert await graph.paths(City(code="A"), City(code="B"), via=Serves) == []
            (here,) = await graph.paths(City(code="A"), City(code="A"), via=Flies)
            assert (len(here), here.keys) == (0, ("A",))

    @pytest.mark.parametrize("seed", range(6))
    async def test_walks_agree_with_a_search_through_all_ways(self, make: Make, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - the same graph every time
        directions: tuple[Direction, ...] = ("out", "in", "both")
        direction = directions[seed % 3]
        names = [f"N{number}" for number in range(8)]
        pairs = {(chance.choice(names), chance.choice(names)) for _ in range(14)}
        async with make() as graph:
            await graph.merge(*(City(code=name) for name in names), *(flies(*pair) for pair in pairs))
            for target in names[1:]:
                found = await graph.paths(
                    City(code="N0"), City(code=target), via=Flies, direction=direction, depth=5, limit=1000
                )
                ways = [tuple((edge.source, edge.target) for edge in path.edges) for path in found]
                expected = list(every_way(pairs, "N0", target, direction, 5))
                assert sorted(ways) == sorted(expected)
                assert [len(way) for way in ways] == sorted(map(len, ways))
            for depth in (1, 2, 7):
                reached = await codes(graph, "N0", depth=depth, direction=direction)
                assert set(reached) == within_reach(pairs, "N0", direction, depth)

    async def test_a_walk_through_a_tangle_ends_in_time_and_can_be_cancelled(self, make: Make) -> None:
        # Cities that are all connected, behind a gate through which every way from START to END has to go: there is
        # one way, and a search for a second one tries more turns than there are atoms in a cat.
        names = [f"N{number}" for number in range(24)]
        tangle = [flies(one, other) for one in [*names, "GATE"] for other in [*names, "GATE"] if one != other]

        async with make() as graph:
            await graph.merge_all([*tangle, flies("START", "GATE"), flies("GATE", "END")])
            ends = City(code="START"), City(code="END")
            assert len(await graph.paths(*ends, via=Flies, depth=30)) == 1
            with pytest.raises(DeadlineExceeded):
                await graph.paths(*ends, via=Flies, depth=30, limit=2, timeout="300ms")
            task = asyncio.ensure_future(graph.paths(*ends, via=Flies, depth=30, limit=2, timeout="10m"))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await graph.merge(City(code="after")) == 1

    async def test_each_call_is_one_span_and_one_point(self, make: Make) -> None:
        with Recorder() as recorder:
            async with make() as graph:
                calls: tuple[Callable[[], Awaitable[Any]], ...] = (
                    lambda: graph.merge(flies("A", "B")),
                    lambda: graph.merge_all(City(code=f"C{number}") for number in range(5000)),
                    lambda: graph.get(City, "A"),
                    lambda: graph.neighbours(City(code="A"), via=Flies),
                    lambda: graph.paths(City(code="A"), City(code="B"), via=Flies),
                    lambda: graph.edges(Flies),
                    lambda: graph.delete(City, "A"),
                )
                for call in calls:
                    recorder.clear()
                    await call()
                    assert len(recorder.spans) == len(recorder.points) == 1
                    assert recorder.spans[0].ended


def flies(source: str, target: str, **options: Any) -> Flies:
    """One of the suite's edges."""
    return Flies(source=source, target=target, **options)


async def around(graph: GraphStore, code: str, **options: Any) -> list[City]:
    """A city's neighbours."""
    return await graph.neighbours(City(code=code), via=Flies, only=City, **options)


async def codes(graph: GraphStore, code: str, **options: Any) -> list[str]:
    """Their keys."""
    return [key_of(node) for node in await around(graph, code, **options)]


def steps(pairs: Iterable[tuple[str, str]], node: str, direction: str) -> list[tuple[tuple[str, str], str]]:
    """The edges that may be taken from a node, each with where it leads."""
    found = [(pair, pair[1]) for pair in pairs if pair[0] == node and direction != "in"]
    return found + [(pair, pair[0]) for pair in pairs if pair[1] == node and direction != "out"]


def every_way(
    pairs: set[tuple[str, str]], start: str, end: str, direction: str, depth: int
) -> Iterator[tuple[tuple[str, str], ...]]:
    """All ways without a repeated node, by trying everything."""

    def go(at: str, way: tuple[tuple[str, str], ...], seen: frozenset[str]) -> Iterator[tuple[tuple[str, str], ...]]:
        if at == end:
            yield way
        elif len(way) < depth:
            for pair, to in steps(pairs, at, direction):
                if to not in seen:
                    yield from go(to, (*way, pair), seen | {to})

    return go(start, (), frozenset({start}))


def within_reach(pairs: set[tuple[str, str]], start: str, direction: str, depth: int) -> set[str]:
    """The nodes within so many steps, by trying everything."""
    distance, pending = {start: 0}, deque([start])
    while pending:
        node = pending.popleft()
        for _, to in steps(pairs, node, direction):
            if to not in distance and distance[node] < depth:
                distance[to] = distance[node] + 1
                pending.append(to)
    return set(distance) - {start}
