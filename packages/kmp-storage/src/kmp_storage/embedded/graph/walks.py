"""Walking a graph: what lies around a node, and the shortest ways from one to another.

A walk asks SQLite for the edges of many nodes at a time, remembers what it visited, and looks at its deadline all the
way, also where it only computes.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

from kmp_core.errors import DeadlineExceeded, InvalidInput

__all__ = ["Found", "Step", "Walk"]

_BATCH = 400
_LOOK_EVERY = 256


class Step(NamedTuple):
    """One edge, and the node that it leads to in the direction of the walk."""

    type: str
    source: int
    target: int
    to: int


class Found(NamedTuple):
    """A stored node."""

    id: int
    label: str
    key: str
    properties: str


@dataclass
class Walk:
    """A walk along edges of some types, bounded in time and in nodes."""

    connection: sqlite3.Connection
    types: tuple[str, ...]
    direction: Literal["out", "in", "both"]
    max_visited: int
    until: float | None
    _steps: dict[int, list[Step]] = field(default_factory=dict)
    _ticks: int = 0

    @contextmanager
    def watched(self) -> Iterator[Self]:
        """Let a cancellation reach the walk: SQLite interrupts what begins while some statement is unfinished, so that
        `tick` hears it. Without one it would forget an interrupt that came between two statements."""
        with closing(self.connection.execute("VALUES (1), (2), (3)")):
            yield self

    def tick(self) -> None:
        """Raise where the time is over or the caller is gone."""
        self._ticks += 1
        if self._ticks % _LOOK_EVERY == 0:
            self.connection.execute("SELECT 1").fetchone()
            if self.until is not None and time.monotonic() >= self.until:
                raise DeadlineExceeded("the walk through the graph took too long", backend="sqlite")

    def node(self, label: str, key: str) -> Found | None:
        """A node by what identifies it."""
        row = self.connection.execute(
            "SELECT id, label, key, properties FROM nodes WHERE label = ? AND key = ?", (label, key)
        ).fetchone()
        return None if row is None else Found(*row)

    def nodes(self, ids: Sequence[int]) -> dict[int, Found]:
        """Nodes by their ids."""
        found: dict[int, Found] = {}
        for batch in _batches(ids):
            sql = f"SELECT id, label, key, properties FROM nodes WHERE id IN ({_marks(batch)})"  # noqa: S608 - marks only
            for row in self.connection.execute(sql, batch):
                self.tick()
                found[row[0]] = Found(*row)
        return found

    def around(self, start: int, depth: int) -> Iterator[list[Found]]:
        """The nodes at one step, at two, and so on; each once, by label and key, without the start."""
        visited, frontier = {start}, [start]
        for _ in range(depth):
            reached: dict[int, None] = {}
            for steps in self._along(frontier, self.direction):
                for step in steps:
                    self.tick()
                    if step.to not in visited:
                        reached[step.to] = None
                if len(visited) + len(reached) > self.max_visited:
                    raise self._too_wide()
            if not reached:
                return
            visited.update(reached)
            frontier = list(reached)
            yield sorted(self.nodes(frontier).values(), key=lambda found: (found.label, found.key))

    def ways(self, start: int, end: int, depth: int) -> Iterator[list[Step]]:
        """Ways that visit no node twice, shortest first, and among equals in the order of the keys along them."""
        if start == end:
            yield []
            return
        # From the end backwards, one step more for each length, so that the search forward turns no wrong way.
        distance, frontier = {end: 0}, [end]
        for length in range(1, depth + 1):
            if frontier:
                frontier = self._spread(distance, frontier, length)
            if distance.get(start, length + 1) <= length:
                yield from self._exactly(start, end, length, distance)
            elif not frontier:
                return

    def _spread(self, distance: dict[int, int], frontier: list[int], length: int) -> list[int]:
        reached: list[int] = []
        for steps in self._along(frontier, _BACKWARDS[self.direction]):
            for step in steps:
                self.tick()
                if step.to not in distance:
                    distance[step.to] = length
                    reached.append(step.to)
            if len(distance) > self.max_visited:
                raise self._too_wide()
        return reached

    def _exactly(self, start: int, end: int, length: int, distance: dict[int, int]) -> Iterator[list[Step]]:
        """Depth first, without recursion: ways of exactly this length."""
        way: list[Step] = []
        on_way = {start}
        pending = [iter(self._sorted(start))]
        while pending:
            self.tick()
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
            pending.append(iter(self._sorted(step.to)))

    def _sorted(self, node: int) -> list[Step]:
        """The steps from a node in the order of the keys that they lead to, remembered."""
        known = self._steps.get(node)
        if known is None:
            steps = [step for found in self._along([node], self.direction) for step in found]
            nodes = self.nodes([step.to for step in steps])
            known = sorted(steps, key=lambda s: (nodes[s.to].label, nodes[s.to].key, s.type, s.source != node))
            self._steps[node] = known
        return known

    def _along(self, nodes: Sequence[int], direction: str) -> Iterator[list[Step]]:
        types = _marks(self.types)
        for batch in _batches(nodes):
            here = _marks(batch)
            if direction in ("out", "both"):
                sql = f"SELECT type, source, target, target FROM edges WHERE source IN ({here}) AND type IN ({types})"  # noqa: S608
                yield [Step(*row) for row in self.connection.execute(sql, (*batch, *self.types))]
            if direction in ("in", "both"):
                sql = f"SELECT type, source, target, source FROM edges WHERE target IN ({here}) AND type IN ({types})"  # noqa: S608
                yield [Step(*row) for row in self.connection.execute(sql, (*batch, *self.types))]

    def _too_wide(self) -> InvalidInput:
        problem = f"reaches more than {self.max_visited} nodes; lower it, or raise KMP_STORAGE_GRAPH_MAX_VISITED"
        return InvalidInput("depth", problem)


_BACKWARDS = {"out": "in", "in": "out", "both": "both"}


def _batches(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH]


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
