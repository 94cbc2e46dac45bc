"""Plan a merge: items become rows of few statements that have the same outcome, and the same count, as one by one.

The count is of what is new or changed, item by item. Within one call an item may come again with other values, or
after an edge that created it; most of that is known without asking:

    a repeated item that says nothing new                 is dropped
    one that contradicts an earlier one                   counts as a change, and is folded into the earlier row
    one that adds fields                                  goes into a later statement, where Neo4j compares
    a node that an earlier edge created without details   counts only by its details
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from kmp_core.errors import InvalidInput
from kmp_storage.models import Edge, Node
from kmp_storage.neo4j import statements
from kmp_storage.neo4j.codec import EdgeCodec, NodeCodec, edge_codec, node_codec
from kmp_storage.neo4j.connections import Transaction
from kmp_storage.neo4j.statements import Update, merge_edges, merge_nodes

__all__ = ["Plan", "plan"]

Kind = Literal["plain", "bare", "quiet", "folded"]
Codec = NodeCodec[Any] | EdgeCodec[Any]

Creates = Literal["nodes_created", "relationships_created"]

_STATEMENT_ROWS = 10_000
_ALIKE_ROWS = 200
"""Rows with the same columns from which on they have a statement of their own, which the server has to plan."""
_IN_ORDER: dict[bool, Callable[[Any], Any]] = {False: itemgetter("k"), True: itemgetter("s", "t")}


class _Statement(NamedTuple):
    """Cypher, which of the server's counters tells what is new (none: it does not count), and its rows."""

    cypher: str
    creates: Creates | None
    rows: Sequence[Any]


@dataclass(slots=True)
class _Row:
    """One node or edge in one statement."""

    sent: dict[str, Any]
    kind: Kind


@dataclass(slots=True)
class _Known:
    """What the call said of one node or edge so far."""

    said: dict[str, Any]
    last: _Row
    wave: int = 0


@dataclass(slots=True)
class Plan:
    """A merge that is checked and encoded."""

    nodes: dict[tuple[Any, ...], _Known] = field(default_factory=dict)
    edges: dict[tuple[Any, ...], _Known] = field(default_factory=dict)
    codecs: dict[str, NodeCodec[Any]] = field(default_factory=dict)
    certain: int = 0
    _rows: dict[tuple[int, int, int], tuple[Codec, list[_Row]]] = field(default_factory=dict)
    _ends: set[tuple[str, str]] = field(default_factory=set)
    _nodes: dict[type[Node], NodeCodec[Any]] = field(default_factory=dict)
    _edges: dict[type[Edge], EdgeCodec[Any]] = field(default_factory=dict)

    def add_node(self, item: Node, row: int) -> None:
        """Plan one node. Raises `InvalidInput`."""
        codec = self._nodes.get(type(item)) or self._node(type(item))
        key = codec.key(item, row)
        quiet = (codec.label, key) in self._ends
        self._add(self.nodes, (codec.label, key), codec, {"k": key, "p": codec.encode(item, row)}, quiet)

    def add_edge(self, item: Edge, row: int) -> None:
        """Plan one edge. Raises `InvalidInput`."""
        codec = self._edges.get(type(item)) or self._edge(type(item))
        source, target = codec.ends(item, row)
        self._ends.add((codec.source.label, source))
        self._ends.add((codec.target.label, target))
        identity = (codec.type, codec.source.label, source, codec.target.label, target)
        self._add(self.edges, identity, codec, {"s": source, "t": target, "p": codec.encode(item, row)}, False)

    async def run(self, transaction: Transaction) -> int:
        """Merge all in a transaction, and return how many items were new or changed."""
        changed = self.certain
        for statement in self._statements():
            result = await transaction.run(statements.trusted(statement.cypher), rows=statement.rows)
            record = await result.single(strict=True)
            changed += record[0]
            if statement.creates is not None:
                changed += getattr((await result.consume()).counters, statement.creates)
        return changed

    def _node(self, model: type[Node]) -> NodeCodec[Any]:
        codec = node_codec(model)
        self._nodes[model] = self.codecs[codec.label] = codec
        return codec

    def _edge(self, model: type[Edge]) -> EdgeCodec[Any]:
        codec = self._edges[model] = edge_codec(model)
        for end in (codec.source, codec.target):
            self.codecs[end.label] = end
        return codec

    def _add(
        self,
        known: dict[tuple[Any, ...], _Known],
        identity: tuple[Any, ...],
        codec: Codec,
        sent: dict[str, Any],
        quiet: bool,
    ) -> None:
        given = sent["p"]
        before = known.get(identity)
        if before is None:
            row = _Row(sent, "plain" if _has_details(given) else "quiet" if quiet else "bare")
            known[identity] = _Known(given, row)
            self._place(0, codec, row)
            return
        said, missing = before.said, object()
        found = {name: said.get(name, missing) for name in given}
        if found == given:
            return
        contradicts = any(value is not missing and value != given[name] for name, value in found.items())
        before.said = {**said, **given}
        last = before.last
        if contradicts and last.kind in ("plain", "folded"):
            self.certain += 1
            last.sent.setdefault("c", last.sent["p"])
            last.sent["p"] = {**last.sent["p"], **given}
            last.kind = "folded"
            return
        before.wave += 1
        before.last = _Row(sent, "plain" if _has_details(given) else "quiet")
        self._place(before.wave, codec, before.last)

    def _place(self, wave: int, codec: Codec, row: _Row) -> None:
        # Nodes before edges, the earlier statement of a node before the later one.
        slot = (isinstance(codec, EdgeCodec), wave, id(codec))
        self._rows.setdefault(slot, (codec, []))[1].append(row)

    def _statements(self) -> Iterator[_Statement]:
        for slot in sorted(self._rows, key=lambda slot: slot[:2]):
            codec, planned = self._rows[slot]
            kinds: dict[Kind, list[dict[str, Any]]] = {}
            for row in planned:
                kinds.setdefault(row.kind, []).append(row.sent)
            for kind, rows in kinds.items():
                # In one order, so that two calls that merge the same do not wait for each other.
                rows.sort(key=_IN_ORDER[isinstance(codec, EdgeCodec)])
                yield from _written(codec, kind, rows)


def plan(items: Sequence[Node | Edge], first_row: int = 0) -> Plan:
    """Check and encode items. Raises `InvalidInput` naming row and field."""
    made = Plan()
    for row, item in enumerate(items, start=first_row):
        given: object = item
        if isinstance(given, Node):
            made.add_node(given, row)
        elif isinstance(given, Edge):
            made.add_edge(given, row)
        else:
            hint = "; pass them as *items, or use merge_all" if isinstance(given, list | tuple) else ""
            raise InvalidInput("items", f"must be a Node or an Edge, not {type(given).__name__}{hint}", row=row)
    return made


def _written(codec: Codec, kind: Kind, rows: list[dict[str, Any]]) -> Iterator[_Statement]:
    """Statements for rows of one class and kind: by columns where many have the same ones, by maps what is left."""
    edges = isinstance(codec, EdgeCodec)
    identity = ("s", "t") if edges else ("k",)
    creates: Creates | None = None if kind == "quiet" else "relationships_created" if edges else "nodes_created"
    shapes: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    if kind != "folded":
        for row in rows:
            shapes.setdefault(tuple(row["p"]), []).append(row)
    alike = {columns: some for columns, some in shapes.items() if len(some) >= _ALIKE_ROWS}
    for columns, some in alike.items():
        lists = [[*map(row.__getitem__, identity), *row["p"].values()] for row in some]
        yield from _parts(_cypher(codec, Update.by_columns(len(identity), columns)), creates, lists)
    if alike:
        rows = [row for row in rows if tuple(row["p"]) not in alike]
    yield from _parts(_cypher(codec, Update.by_maps(identity, compares=kind == "folded")), creates, rows)


def _parts(cypher: str, creates: Creates | None, rows: Sequence[Any]) -> Iterator[_Statement]:
    for begin in range(0, len(rows), _STATEMENT_ROWS):
        yield _Statement(cypher, creates, rows[begin : begin + _STATEMENT_ROWS])


def _cypher(codec: Codec, update: Update) -> str:
    return merge_edges(codec, update) if isinstance(codec, EdgeCodec) else merge_nodes(codec, update)


def _has_details(given: dict[str, Any]) -> bool:
    for value in given.values():  # noqa: SIM110 - a generator for each item is felt
        if value is not None:
            return True
    return False
