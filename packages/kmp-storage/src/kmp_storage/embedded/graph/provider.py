"""A graph store that needs no server: one SQLite file that all processes of a project on this machine share."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path as FilePath
from typing import Any, Self, TypeVar, get_args, overload

from kmp_core.context import Context
from kmp_core.deadlines import Timeout, within
from kmp_core.errors import Corrupt, InvalidInput
from kmp_core.project import Project
from kmp_core.resource import Provider
from kmp_core.sqlite import Database
from kmp_core.telemetry import Telemetry
from kmp_storage.arguments import whole_number
from kmp_storage.embedded.files import embedded_path
from kmp_storage.embedded.graph.codec import EdgeCodec, NodeCodec, edge_codec, node_codec
from kmp_storage.embedded.graph.settings import GraphSettings
from kmp_storage.embedded.graph.walks import Found, Step, Walk
from kmp_storage.embedded.graph.writes import MIGRATIONS, changes_of, delete_node, merge
from kmp_storage.graph.node_keys import check_node_key
from kmp_storage.models import Edge, Node
from kmp_storage.protocols import Direction, GraphStore, Via
from kmp_storage.streams import chunked
from kmp_storage.values import Path

__all__ = ["GraphSettings", "SqliteGraphStore"]

N = TypeVar("N", bound=Node)
E = TypeVar("E", bound=Edge)
T = TypeVar("T")

_DEEPEST = 100


class SqliteGraphStore(Provider, GraphStore):
    """Keep a graph in a file that several processes share (`sqlite:`), or in memory for a test (`memory:`).

    What `merge` acknowledged survives a killed process and a power cut.
    """

    abilities = frozenset({"durable", "shared"})
    embedded = True

    def __init__(
        self,
        url: str = "sqlite:",
        *,
        project: str = "local",
        directory: FilePath | None = None,
        settings: GraphSettings | None = None,
    ) -> None:
        self.project = Project(project)
        self.settings = GraphSettings.load() if settings is None else settings
        path = embedded_path(url, self.project, directory, "graph")
        self._database = Database(
            path,
            project=self.project,
            capability="storage.graph",
            migrations=MIGRATIONS,
            synchronous=self.settings.synchronous,
        )
        if path is None:
            self.abilities -= {"durable", "shared"}

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the graph of a service's project."""
        return cls(url, project=context.project, directory=context.directory)

    async def _open(self) -> None:
        self._telemetry = Telemetry("db", "sqlite", project=self.project, scope="kmp_storage")
        await self._database.open()

    async def _close(self) -> None:
        await self._database.close()

    async def _check(self) -> None:
        await self._database.read(lambda connection: connection.execute("SELECT 1 FROM nodes LIMIT 1").fetchall())

    async def merge(self, *items: Node | Edge, timeout: Timeout = None) -> int:
        self.ensure_open()
        changes = changes_of(items)
        with self._telemetry.call("merge", len(items)):
            return await self._database.write(partial(merge, changes=changes), timeout=self._seconds(timeout))

    async def merge_all(
        self, items: Iterable[Node | Edge] | AsyncIterable[Node | Edge], *, timeout: Timeout = None
    ) -> int:
        self.ensure_open()
        changed = row = 0
        with self._telemetry.call("merge_all"):
            async for chunk in chunked(items, self.settings.chunk_items):
                changes = await asyncio.to_thread(changes_of, chunk, row)
                changed += await self._database.write(partial(merge, changes=changes), timeout=self._seconds(timeout))
                row += len(chunk)
        return changed

    async def get(self, node: type[N], key: str, *, timeout: Timeout = None) -> N | None:
        self.ensure_open()
        codec = node_codec(node)
        identity = (codec.label, check_node_key(key))
        sql = "SELECT properties FROM nodes WHERE label = ? AND key = ?"
        with self._telemetry.call("get"):
            found = await self._database.read(
                lambda c: c.execute(sql, identity).fetchone(), timeout=self._seconds(timeout)
            )
        return None if found is None else codec.decode(key, found[0])

    async def delete(self, node: type[Node], key: str, *, timeout: Timeout = None) -> bool:
        self.ensure_open()
        label, key = node_codec(node).label, check_node_key(key)
        with self._telemetry.call("delete"):
            return await self._database.write(lambda c: delete_node(c, label, key), timeout=self._seconds(timeout))

    @overload
    async def neighbours(
        self,
        node: Node,
        *,
        via: Via,
        only: type[N],
        depth: int = 1,
        direction: Direction = "out",
        limit: int | None = None,
        timeout: Timeout = None,
    ) -> list[N]: ...

    @overload
    async def neighbours(
        self,
        node: Node,
        *,
        via: Via,
        only: None = None,
        depth: int = 1,
        direction: Direction = "out",
        limit: int | None = None,
        timeout: Timeout = None,
    ) -> list[Node]: ...

    async def neighbours(
        self,
        node: Node,
        *,
        via: Via,
        only: type[N] | None = None,
        depth: int = 1,
        direction: Direction = "out",
        limit: int | None = None,
        timeout: Timeout = None,
    ) -> list[N] | list[Node]:
        self.ensure_open()
        start = _codec_of(node)
        wanted = None if only is None else node_codec(only)
        classes = _Classes(via, start, *(() if wanted is None else (wanted,)))
        key, most = start.key(node), _limit(limit)
        depth = whole_number("depth", depth, least=1, most=_DEEPEST)

        def find(walk: Walk) -> list[Node]:
            found: list[Node] = []
            at = walk.node(start.label, key)
            for level in walk.around(at.id, depth) if at is not None else ():
                right = (one for one in level if wanted is None or one.label == wanted.label)
                found += map(classes.node, islice(right, None if most is None else most - len(found)))
                if most is not None and len(found) >= most:
                    break
            return found

        with self._telemetry.call("neighbours"):
            return await self._walk(find, classes, direction, timeout)

    async def edges(self, edge: type[E], *, limit: int | None = None, timeout: Timeout = None) -> list[E]:
        self.ensure_open()
        codec = edge_codec(edge)
        most = _limit(limit)
        sql = (
            # CROSS JOIN fixes the order of the loops: each edge once, then its ends by their ids.
            "SELECT s.key, t.key, e.properties FROM edges e CROSS JOIN nodes s ON s.id = e.source "
            "CROSS JOIN nodes t ON t.id = e.target WHERE e.type = ? AND s.label = ? AND t.label = ? "
            "ORDER BY s.key, t.key LIMIT ?"
        )
        parameters = (codec.type, codec.source.label, codec.target.label, -1 if most is None else most)
        with self._telemetry.call("edges"):
            rows = await self._database.read(
                lambda c: c.execute(sql, parameters).fetchall(), timeout=self._seconds(timeout)
            )
        return [codec.decode(*row) for row in rows]

    async def paths(
        self,
        start: Node,
        end: Node,
        *,
        via: Via,
        direction: Direction = "out",
        depth: int = 8,
        limit: int = 1,
        timeout: Timeout = None,
    ) -> list[Path]:
        self.ensure_open()
        first, last = _codec_of(start), _codec_of(end)
        classes = _Classes(via, first, last)
        first_key, last_key = first.key(start), last.key(end)
        depth = whole_number("depth", depth, least=1, most=_DEEPEST)
        limit = whole_number("limit", limit, least=1)

        def find(walk: Walk) -> list[Path]:
            here, there = walk.node(first.label, first_key), walk.node(last.label, last_key)
            if here is None or there is None:
                return []
            return [_path(walk, classes, here, way) for way in islice(walk.ways(here.id, there.id, depth), limit)]

        with self._telemetry.call("paths"):
            return await self._walk(find, classes, direction, timeout)

    async def _walk(self, find: Callable[[Walk], T], classes: _Classes, direction: Direction, timeout: Timeout) -> T:
        if direction not in get_args(Direction):
            raise InvalidInput("direction", "is not known", example='"out", "in" or "both"')
        seconds = self._seconds(timeout)
        until = None if seconds is None else time.monotonic() + seconds

        def work(connection: sqlite3.Connection) -> T:
            walk = Walk(connection, classes.types, direction, self.settings.max_visited, until)
            with walk.watched():
                return find(walk)

        return await self._database.read(work, timeout=seconds)

    def _seconds(self, timeout: Timeout) -> float | None:
        return within(timeout, self.settings.timeout)


class _Classes:
    """The classes that a walk may meet, by what is stored of them."""

    def __init__(self, via: Via, *nodes: NodeCodec[Any]) -> None:
        edges = [edge_codec(edge) for edge in (via if isinstance(via, Sequence) else (via,))]
        if not edges:
            raise InvalidInput("via", "must name at least one class of edges", example="Route")
        self.types = tuple(dict.fromkeys(edge.type for edge in edges))
        self._edges: Mapping[str, EdgeCodec[Any]] = {edge.type: edge for edge in edges}
        known = [end for edge in edges for end in (edge.source, edge.target)]
        self._nodes: Mapping[str, NodeCodec[Any]] = {node.label: node for node in (*known, *nodes)}

    def node(self, found: Found) -> Node:
        """An instance of what was found."""
        codec = self._nodes.get(found.label)
        if codec is None:
            raise Corrupt(
                f"An edge leads to a node {found.label!r}, which none of the classes in 'via' declares: its class was "
                "changed after it was stored"
            )
        node: Node = codec.decode(found.key, found.properties)
        return node

    def edge(self, step: Step, keys: Mapping[int, str], properties: str) -> Edge:
        """An instance of an edge that was walked."""
        edge: Edge = self._edges[step.type].decode(keys[step.source], keys[step.target], properties)
        return edge


def _path(walk: Walk, classes: _Classes, start: Found, way: Sequence[Step]) -> Path:
    found = {start.id: start, **walk.nodes([step.to for step in way])}
    keys = {one.id: one.key for one in found.values()}
    sql = "SELECT properties FROM edges WHERE source = ? AND type = ? AND target = ?"
    edges = []
    for step in way:
        (properties,) = walk.connection.execute(sql, (step.source, step.type, step.target)).fetchone()
        edges.append(classes.edge(step, keys, properties))
    return Path((classes.node(start), *(classes.node(found[step.to]) for step in way)), tuple(edges))


def _codec_of(node: object) -> NodeCodec[Node]:
    if not isinstance(node, Node):
        name = type(node).__name__
        raise InvalidInput("node", f"must be a Node, not {name}", example='Airport(code="JFK")')
    return node_codec(type(node))


def _limit(limit: int | None) -> int | None:
    return None if limit is None else whole_number("limit", limit, least=0)
