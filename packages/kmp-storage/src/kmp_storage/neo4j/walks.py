"""Walking a graph: what lies around a node, and the shortest ways from one to another.

A walk asks Neo4j for one step of many nodes at a time, and never for a pattern of variable length, whose cost nobody
could bound. All of it happens in one transaction, whose deadline bounds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kmp_core.errors import InvalidInput
from kmp_storage.neo4j import statements
from kmp_storage.neo4j.codec import NodeCodec
from kmp_storage.neo4j.connections import Transaction

__all__ = ["Place", "Step", "Walk"]

_BATCH = 5000
_YIELD_EVERY = 256


class Place(NamedTuple):
    """A node that was met: its class and key, and its identity within the transaction."""

    label: str
    key: str
    id: str


class Step(NamedTuple):
    """One edge, in the direction of the walk; `forward` where the edge itself points that way."""

    type: str
    id: str
    source: str
    to: str
    forward: bool


@dataclass
class Walk:
    """A walk along edges of some types, bounded in nodes, and in time by its transaction."""

    transaction: Transaction
    types: tuple[str, ...]
    direction: str
    codecs: Sequence[NodeCodec[Any]]
    max_visited: int
    places: dict[str, Place] = field(default_factory=dict)
    _ticks: int = 0

    async def start(self, codec: NodeCodec[Any], key: str) -> str | None:
        """The identity of a node, or None where there is none."""
        result = await self.transaction.run(statements.trusted(statements.find(codec)), key=key)
        record = await result.single()
        if record is None:
            return None
        self.places[record[0]] = Place(codec.label, key, record[0])
        return str(record[0])

    async def around(self, start: str, depth: int) -> AsyncIterator[list[Place]]:
        """The nodes at one step, at two, and so on; each once, by label and key, without the start."""
        visited, frontier = {start}, [start]
        for _ in range(depth):
            reached: dict[str, None] = {}
            async for step in self._along(frontier, self.direction):
                if step.to not in visited:
                    reached[step.to] = None
                if len(visited) + len(reached) > self.max_visited:
                    raise self._too_wide()
            if not reached:
                return
            visited.update(reached)
            frontier = list(reached)
            yield sorted(self.places[one] for one in frontier)

    async def ways(self, start: str, end: str, depth: int) -> AsyncIterator[list[Step]]:
        """Ways that visit no node twice, shortest first, and among equals in the order of the keys along them."""
        if start == end:
            yield []
            return
        # From the end backwards, one step more for each length. Every step that a way of that length can take is met
        # by then, so that the search forward needs no server and turns no wrong way.
        distance, frontier = {end: 0}, [end]
        steps: dict[str, list[Step]] = {}
        for length in range(1, depth + 1):
            if frontier:
                frontier = await self._spread(distance, frontier, length, steps)
            if distance.get(start, length + 1) <= length:
                async for way in self._exactly(start, end, length, distance, steps):
                    yield way
            elif not frontier:
                return

    async def nodes(self, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The properties of nodes."""
        return await self._properties(statements.NODES, ids)

    async def edges(self, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The properties of edges."""
        return await self._properties(statements.EDGES, ids)

    async def _spread(
        self, distance: dict[str, int], frontier: list[str], length: int, steps: dict[str, list[Step]]
    ) -> list[str]:
        reached: list[str] = []
        async for back in self._along(frontier, _BACKWARDS[self.direction]):
            step = Step(back.type, back.id, back.to, back.source, not back.forward)
            steps.setdefault(step.source, []).append(step)
            if step.source not in distance:
                distance[step.source] = length
                reached.append(step.source)
            if len(distance) > self.max_visited:
                raise self._too_wide()
        return reached

    async def _exactly(
        self, start: str, end: str, length: int, distance: Mapping[str, int], steps: Mapping[str, list[Step]]
    ) -> AsyncIterator[list[Step]]:
        """Depth first, without recursion: ways of exactly this length."""
        way: list[Step] = []
        on_way = {start}
        ordered: dict[str, list[Step]] = {}
        pending = [iter(self._sorted(start, steps, ordered))]
        while pending:
            await self._tick()
            step = next(pending[-1], None)
            if step is None:
                pending.pop()
                if way:
                    on_way.discard(way.pop().to)
                continue
            left = length - len(way) - 1
            if step.to in on_way or distance.get(step.to, length) > left or (step.to == end and left):
                continue
            if step.to == end:
                yield [*way, step]
                continue
            way.append(step)
            on_way.add(step.to)
            pending.append(iter(self._sorted(step.to, steps, ordered)))

    def _sorted(self, node: str, steps: Mapping[str, list[Step]], ordered: dict[str, list[Step]]) -> list[Step]:
        if node not in ordered:
            ordered[node] = sorted(steps.get(node, ()), key=self._order)
        return ordered[node]

    def _order(self, step: Step) -> tuple[str, str, str, bool, str]:
        label, key, _ = self.places[step.to]
        return label, key, step.type, not step.forward, step.id

    async def _along(self, nodes: Sequence[str], direction: str) -> AsyncIterator[Step]:
        cypher = statements.step(self.types, direction, self.codecs)
        for begin in range(0, len(nodes), _BATCH):
            result = await self.transaction.run(statements.trusted(cypher), ids=list(nodes[begin : begin + _BATCH]))
            async for source, to, (label, key), edge, kind, forward in result:
                await self._tick()
                if to not in self.places:
                    self.places[to] = Place(label, key or "", to)
                yield Step(kind, edge, source, to, forward)

    async def _properties(self, cypher: str, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for begin in range(0, len(ids), _BATCH):
            result = await self.transaction.run(statements.trusted(cypher), ids=list(ids[begin : begin + _BATCH]))
            async for one, properties in result:
                found[one] = properties
        return found

    async def _tick(self) -> None:
        """Let others run, and a deadline or a cancellation be heard, also where the walk only computes."""
        self._ticks += 1
        if self._ticks % _YIELD_EVERY == 0:
            await asyncio.sleep(0)

    def _too_wide(self) -> InvalidInput:
        problem = f"reaches more than {self.max_visited} nodes; lower it, or raise KMP_STORAGE_NEO4J_MAX_VISITED"
        return InvalidInput("depth", problem)


_BACKWARDS = {"out": "in", "in": "out", "both": "both"}
