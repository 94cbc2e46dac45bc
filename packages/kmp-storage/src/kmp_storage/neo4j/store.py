"""A graph that all processes of a project share through Neo4j.

async with Neo4jStore("neo4j://graph.internal", project="skyline") as store:
    await store.merge(Route(source="JFK", target="LAX", miles=2475))
    around = await store.neighbours(Airport(code="JFK"), via=Route)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Self, TypeVar, get_args, overload

from kmp_core.context import Context
from kmp_core.deadlines import Timeout, deadline, within
from kmp_core.errors import Conflict, Corrupt, InvalidInput, PermissionDenied
from kmp_core.project import Project
from kmp_core.resource import Provider
from kmp_core.secrets import Secret, SecretStore
from kmp_core.telemetry import Telemetry
from kmp_storage.arguments import whole_number
from kmp_storage.graph.node_keys import check_node_key
from kmp_storage.models import Edge, Node
from kmp_storage.neo4j import statements
from kmp_storage.neo4j.address import Neo4jAddress, Password
from kmp_storage.neo4j.codec import EdgeCodec, NodeCodec, edge_codec, node_codec, plain
from kmp_storage.neo4j.connections import Connections, Transaction
from kmp_storage.neo4j.errors import BACKEND
from kmp_storage.neo4j.merging import Plan, plan
from kmp_storage.neo4j.walks import Step, Walk
from kmp_storage.protocols import Direction, GraphStore, Via
from kmp_storage.settings.neo4j import Neo4jSettings
from kmp_storage.streams import chunked
from kmp_storage.values import Path

__all__ = ["Neo4jStore"]

N = TypeVar("N", bound=Node)
E = TypeVar("E", bound=Edge)
T = TypeVar("T")

_DEEPEST = 100
_ENCODED_AT_ONCE = 500


class Neo4jStore(Provider, GraphStore):
    """Keep a graph in Neo4j: labels, types and properties are those of your classes, so that your own Cypher reads it.

    On Community a project has an instance of its own (placement `dedicated`): every user there is an administrator.
    The store writes its project into the instance when it first opens it, and refuses one that is another project's.
    """

    abilities = frozenset({"durable", "shared"})

    def __init__(
        self,
        url: str = "neo4j://localhost",
        *,
        project: str = "local",
        settings: Neo4jSettings | None = None,
        password: Password | None = None,
    ) -> None:
        self.project = Project(project)
        self.settings = Neo4jSettings.load() if settings is None else settings
        self.address = Neo4jAddress.read(url, settings=self.settings, password=password)
        self._connections: Connections | None = None
        self._constrained: set[tuple[str, str]] = set()

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the graph of a service's project."""
        settings = Neo4jSettings.load()
        name = settings.password_secret

        async def password() -> Secret:
            return await (await context.get(SecretStore)).get(name or "")

        return cls(url, project=context.project, settings=settings, password=password if name else None)

    async def _open(self) -> None:
        self._telemetry = Telemetry("db", "neo4j", project=self.project, scope="kmp_storage")
        self._connections = Connections(self.address, self.settings, project=self.project)
        await self._connections.probe(seconds=self._seconds(None))
        await self._connections.write(self._run_only(statements.OWNER), seconds=self._seconds(None))
        await self._connections.write(self._claim, seconds=self._seconds(None))

    async def _close(self) -> None:
        if self._connections is not None:
            await self._connections.close()

    async def _check(self) -> None:
        await self._server.probe(seconds=None)

    @property
    def _server(self) -> Connections:
        assert self._connections is not None
        return self._connections

    async def merge(self, *items: Node | Edge, timeout: Timeout = None) -> int:
        self.ensure_open()
        seconds = self._seconds(timeout)
        with self._telemetry.call("merge", len(items)):
            async with deadline(seconds, what="merging", backend=BACKEND):
                return await self._merge(await _planned(items, 0), seconds)

    async def merge_all(
        self, items: Iterable[Node | Edge] | AsyncIterable[Node | Edge], *, timeout: Timeout = None
    ) -> int:
        self.ensure_open()
        changed = row = 0
        # While the server merges a chunk, the next one is checked and encoded.
        under_way: asyncio.Task[int] | None = None
        with self._telemetry.call("merge_all"):
            try:
                async for chunk in chunked(items, self.settings.chunk_items):
                    made = await _planned(chunk, row)
                    row += len(chunk)
                    if under_way is not None:
                        changed += await under_way
                    under_way = asyncio.create_task(self._merge(made, self._seconds(timeout)))
                return changed if under_way is None else changed + await under_way
            except Exception:
                if under_way is not None:
                    await asyncio.wait((under_way,))
                raise
            finally:
                if under_way is not None and not under_way.done():
                    under_way.cancel()
                    await asyncio.wait((under_way,))

    async def get(self, node: type[N], key: str, *, timeout: Timeout = None) -> N | None:
        self.ensure_open()
        codec = node_codec(node)
        key = check_node_key(key)

        async def work(transaction: Transaction) -> Mapping[str, Any] | None:
            record = await (await transaction.run(statements.trusted(statements.get_node(codec)), key=key)).single()
            return None if record is None else record[0]

        with self._telemetry.call("get"):
            found = await self._server.read(work, seconds=self._seconds(timeout))
        return None if found is None else codec.decode(key, found)

    async def delete(self, node: type[Node], key: str, *, timeout: Timeout = None) -> bool:
        self.ensure_open()
        codec = node_codec(node)
        key = check_node_key(key)

        async def work(transaction: Transaction) -> bool:
            result = await transaction.run(statements.trusted(statements.delete_node(codec)), key=key)
            return (await result.consume()).counters.nodes_deleted > 0

        with self._telemetry.call("delete"):
            return await self._server.write(work, seconds=self._seconds(timeout))

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

        async def find(walk: Walk) -> list[Node]:
            at = await walk.start(start, key)
            if at is None:
                return []
            right = []
            async for level in walk.around(at, depth):
                right += [place for place in level if wanted is None or place.label == wanted.label]
                if most is not None and len(right) >= most:
                    break
            found = await walk.nodes([place.id for place in right[:most]])
            return [classes.node(place.label, found[place.id]) for place in right[:most]]

        with self._telemetry.call("neighbours"):
            return await self._walk(find, classes, direction, timeout)

    async def edges(self, edge: type[E], *, limit: int | None = None, timeout: Timeout = None) -> list[E]:
        self.ensure_open()
        codec = edge_codec(edge)
        most = _limit(limit)
        cypher = statements.list_edges(codec, limited=most is not None)

        async def work(transaction: Transaction) -> list[E]:
            result = await transaction.run(statements.trusted(cypher), limit=most)
            return [codec.decode(source, target, found) async for source, target, found in result]

        with self._telemetry.call("edges"):
            return await self._server.read(work, seconds=self._seconds(timeout))

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

        async def find(walk: Walk) -> list[Path]:
            here, there = await walk.start(first, first_key), await walk.start(last, last_key)
            if here is None or there is None:
                return []
            ways: list[list[Step]] = []
            async for way in walk.ways(here, there, depth):
                ways.append(way)
                if len(ways) == limit:
                    break
            return await _paths(walk, classes, here, ways)

        with self._telemetry.call("paths"):
            return await self._walk(find, classes, direction, timeout)

    async def run(
        self, cypher: str, /, *, timeout: Timeout = None, idempotent: bool = False, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Run Cypher of your own, with values as parameters, and return its records by their names.

            await store.run("MATCH (a:Airport) WHERE a.name STARTS WITH $begin RETURN a.code AS code", begin="John")

        Temporal values come as Python's, nodes and edges as their properties. It is a transaction of its own, and is
        repeated after a failure that passes only where you say that it is `idempotent`.
        """
        self.ensure_open()
        with self._telemetry.call("run"):
            records = await self._server.run(
                _cypher(cypher), parameters, seconds=self._seconds(timeout), idempotent=idempotent
            )
        return [plain(record) for record in records]

    async def stream(
        self, cypher: str, /, *, timeout: Timeout = None, **parameters: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Like `run`, but iterate over the records as they come, with flat memory; `timeout` bounds each wait.

        What the statement writes is kept only where it is read to its end.
        """
        self.ensure_open()
        records = self._server.stream(_cypher(cypher), parameters, seconds=self._seconds(timeout))
        async with aclosing(records):
            # The span ends with the first record: between later ones it is the caller's code that runs.
            with self._telemetry.call("stream"):
                record = await anext(records, None)
            while record is not None:
                yield plain(record)
                record = await anext(records, None)

    async def bookmarks(self) -> frozenset[str]:
        """Where the calls of this store have left the graph; another store that follows them sees all of it."""
        self.ensure_open()
        return await self._server.bookmarks()

    async def follow(self, bookmarks: Iterable[str]) -> None:
        """Have the next calls see at least what another store's calls did, on whatever member of a cluster."""
        self.ensure_open()
        await self._server.follow(bookmarks)

    async def _merge(self, made: Plan, seconds: float | None) -> int:
        async with deadline(seconds, what="merging", backend=BACKEND):
            for codec in made.codecs.values():
                await self._constrain(codec, seconds)
            if not made.nodes and not made.edges:
                return 0
            return await self._server.write(made.run, seconds=seconds)

    async def _constrain(self, codec: NodeCodec[Any], seconds: float | None) -> None:
        """Have the key of a class be one. Before its first merge, since a schema change needs its own transaction."""
        if (codec.label, codec.property) in self._constrained:
            return
        try:
            await self._server.write(self._run_only(statements.constraint(codec)), seconds=seconds)
        except Conflict as error:
            raise Conflict(
                f"{codec.property!r} cannot be the key of {codec.label}: another schema rule is in the way, or nodes "
                "share a key; drop the rule or merge those nodes by hand",
                project=self.project,
            ) from error
        self._constrained.add((codec.label, codec.property))

    async def _claim(self, transaction: Transaction) -> None:
        record = await (await transaction.run(statements.CLAIM, project=str(self.project))).single(strict=True)
        if record[0] != self.project:
            raise PermissionDenied(
                f"this Neo4j belongs to another project than {self.project!r}; each project has an instance of its own",
                project=self.project,
            )

    def _run_only(self, cypher: str) -> Callable[[Transaction], Awaitable[None]]:
        async def work(transaction: Transaction) -> None:
            await (await transaction.run(statements.trusted(cypher))).consume()

        return work

    async def _walk(
        self, find: Callable[[Walk], Awaitable[T]], classes: _Classes, direction: Direction, timeout: Timeout
    ) -> T:
        if direction not in get_args(Direction):
            raise InvalidInput("direction", "is not known", example='"out", "in" or "both"')

        async def work(transaction: Transaction) -> T:
            codecs = tuple(classes.nodes.values())
            return await find(Walk(transaction, classes.types, direction, codecs, self.settings.max_visited))

        return await self._server.read(work, seconds=self._seconds(timeout))

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
        self.nodes: Mapping[str, NodeCodec[Any]] = {node.label: node for node in (*known, *nodes)}

    def node(self, label: str, found: Mapping[str, Any]) -> Node:
        """An instance of what was found."""
        codec = self.nodes.get(label)
        if codec is None:
            raise Corrupt(
                f"An edge leads to a node {label!r}, which none of the classes in 'via' declares: its class was "
                "changed after it was stored"
            )
        node: Node = codec.decode(found.get(codec.property, ""), found)
        return node

    def edge(self, step: Step, keys: Mapping[str, str], found: Mapping[str, Any]) -> Edge:
        """An instance of an edge that was walked."""
        source, target = (step.source, step.to) if step.forward else (step.to, step.source)
        edge: Edge = self._edges[step.type].decode(keys[source], keys[target], found)
        return edge


async def _paths(walk: Walk, classes: _Classes, start: str, ways: Sequence[Sequence[Step]]) -> list[Path]:
    """Ways with all that is known of their nodes and edges."""
    met = dict.fromkeys([start, *(step.to for way in ways for step in way)])
    nodes = await walk.nodes(list(met))
    edges = await walk.edges(list(dict.fromkeys(step.id for way in ways for step in way)))
    keys = {one: walk.places[one].key for one in met}

    def node(one: str) -> Node:
        return classes.node(walk.places[one].label, nodes[one])

    return [
        Path(
            (node(start), *(node(step.to) for step in way)),
            tuple(classes.edge(step, keys, edges[step.id]) for step in way),
        )
        for way in ways
    ]


async def _planned(items: Sequence[Node | Edge], row: int) -> Plan:
    # Many items take long enough to be felt by whoever else uses the event loop.
    return plan(items, row) if len(items) < _ENCODED_AT_ONCE else await asyncio.to_thread(partial(plan, items, row))


def _codec_of(node: object) -> NodeCodec[Node]:
    if not isinstance(node, Node):
        name = type(node).__name__
        raise InvalidInput("node", f"must be a Node, not {name}", example='Airport(code="JFK")')
    return node_codec(type(node))


def _cypher(text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput("cypher", "must be a statement", example='"MATCH (n) RETURN count(n)"')
    return text


def _limit(limit: int | None) -> int | None:
    return None if limit is None else whole_number("limit", limit, least=0)
