"""The graph's tables, and merging into them. Every function here runs inside a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kmp_core.errors import InvalidInput
from kmp_storage.embedded.graph.codec import EdgeCodec, NodeCodec, edge_codec, node_codec
from kmp_storage.models import Edge, Node

__all__ = ["MIGRATIONS", "Change", "EdgeChange", "NodeChange", "changes_of", "delete_node", "merge"]

MIGRATIONS = (
    """
    CREATE TABLE nodes (
        id INTEGER PRIMARY KEY,
        label TEXT NOT NULL,
        key TEXT NOT NULL,
        properties TEXT NOT NULL,
        UNIQUE (label, key)
    ) STRICT;
    CREATE TABLE edges (
        source INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
        type TEXT NOT NULL,
        target INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
        properties TEXT NOT NULL,
        PRIMARY KEY (source, type, target)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX edges_by_target ON edges (target, type, source)
    """,
)


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A node to merge: the properties that were passed."""

    codec: NodeCodec[Any]
    key: str
    given: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EdgeChange:
    """An edge to merge: the keys of its ends, and the properties that were passed."""

    codec: EdgeCodec[Any]
    source: str
    target: str
    given: dict[str, Any]


Change = NodeChange | EdgeChange

_Identity = tuple[str, str]
_Edge = tuple[int, str, int]
_Ids = dict[_Identity, int]
K = TypeVar("K")


def changes_of(items: Sequence[Node | Edge], first_row: int = 0) -> list[Change]:
    """Check and encode items. Raises `InvalidInput` naming row and field."""
    return [_change(item, row) for row, item in enumerate(items, start=first_row)]


def merge(connection: sqlite3.Connection, changes: Sequence[Change]) -> int:
    """Create or update each, in their order, and return how many were new or changed.

    A statement for each item would cost more than its work, so what is stored is read at once, merged here, and written
    at once: first the nodes, then the edges, which need the ids of the nodes.
    """
    nodes, changed = _merge_nodes(connection, changes)
    edges = [change for change in changes if isinstance(change, EdgeChange)]
    return changed + (_merge_edges(connection, edges, nodes) if edges else 0)


def delete_node(connection: sqlite3.Connection, label: str, key: str) -> bool:
    """Remove a node; its edges go with it."""
    return connection.execute("DELETE FROM nodes WHERE label = ? AND key = ?", (label, key)).rowcount > 0


def _change(item: object, row: int) -> Change:
    if isinstance(item, Node):
        node = node_codec(type(item))
        return NodeChange(node, node.key(item, row), node.encode(item, row))
    if isinstance(item, Edge):
        edge = edge_codec(type(item))
        return EdgeChange(edge, *edge.ends(item, row), edge.encode(item, row))
    hint = "; pass them as *items, or use merge_all" if isinstance(item, list | tuple) else ""
    raise InvalidInput("items", f"must be a Node or an Edge, not {type(item).__name__}{hint}", row=row)


class _Merging(Generic[K]):
    """Properties as they are stored, and as they will be."""

    def __init__(self, stored: Mapping[K, str]) -> None:
        self.stored = stored
        self.after: dict[K, dict[str, Any]] = {}

    def add(self, identity: K, given: dict[str, Any], unset: frozenset[str]) -> bool:
        """Merge the properties that were passed; whether that made or changed something."""
        before = self._current(identity)
        known = before or {}
        given = {
            name: value for name, value in given.items() if value is not None or name in known or name not in unset
        }
        if before is None:
            self.after[identity] = given
            return True
        after = {**before, **given}
        if after == before:
            return False
        self.after[identity] = after
        return True

    def touch(self, identity: K) -> None:
        """See that it will be there."""
        if identity not in self.stored and identity not in self.after:
            self.after[identity] = {}

    def made(self) -> list[tuple[K, str]]:
        """What is new."""
        return [(identity, _json(after)) for identity, after in self.after.items() if identity not in self.stored]

    def changed(self) -> list[tuple[K, str]]:
        """What was stored before, and is different now."""
        return [(identity, _json(after)) for identity, after in self.after.items() if identity in self.stored]

    def _current(self, identity: K) -> dict[str, Any] | None:
        if identity in self.after:
            return self.after[identity]
        text = self.stored.get(identity)
        if text is None:
            return None
        found: dict[str, Any] = json.loads(text)
        return found


def _merge_nodes(connection: sqlite3.Connection, changes: Sequence[Change]) -> tuple[_Ids, int]:
    """Merge the nodes, and make those that edges need. Returns the ids of all of them."""
    wanted = [identity for change in changes for identity in _nodes_of(change)]
    found = _find_nodes(connection, wanted)
    merging = _Merging[_Identity]({identity: text for identity, (_, text) in found.items()})
    ids = {identity: number for identity, (number, _) in found.items()}
    changed = 0
    for change in changes:
        if isinstance(change, NodeChange):
            changed += merging.add((change.codec.label, change.key), change.given, change.codec.unset)
        else:
            for end in _nodes_of(change):
                merging.touch(end)
    made = merging.made()
    connection.executemany(
        "INSERT INTO nodes (label, key, properties) VALUES (?, ?, ?)", [(*identity, text) for identity, text in made]
    )
    connection.executemany(
        "UPDATE nodes SET properties = ? WHERE id = ?", [(text, ids[identity]) for identity, text in merging.changed()]
    )
    if any(isinstance(change, EdgeChange) for change in changes):
        fresh = _find_nodes(connection, [identity for identity, _ in made])
        ids.update((identity, number) for identity, (number, _) in fresh.items())
    return ids, changed


def _merge_edges(connection: sqlite3.Connection, changes: Sequence[EdgeChange], ids: _Ids) -> int:
    edges = []
    for change in changes:
        source, target = _nodes_of(change)
        edges.append((ids[source], change.codec.type, ids[target]))
    merging = _Merging[_Edge](_find_edges(connection, edges))
    changed = sum(
        merging.add(edge, change.given, change.codec.unset) for edge, change in zip(edges, changes, strict=True)
    )
    connection.executemany("INSERT INTO edges VALUES (?, ?, ?, ?)", [(*edge, text) for edge, text in merging.made()])
    connection.executemany(
        "UPDATE edges SET properties = ? WHERE source = ? AND type = ? AND target = ?",
        [(text, *edge) for edge, text in merging.changed()],
    )
    return changed


def _nodes_of(change: Change) -> tuple[_Identity, ...]:
    if isinstance(change, NodeChange):
        return ((change.codec.label, change.key),)
    return (change.codec.source.label, change.source), (change.codec.target.label, change.target)


def _find_nodes(connection: sqlite3.Connection, wanted: Iterable[_Identity]) -> dict[_Identity, tuple[int, str]]:
    keys: dict[str, dict[str, None]] = {}
    for label, key in wanted:
        keys.setdefault(label, {})[key] = None
    sql = (  # CROSS JOIN: each of the wanted is looked for, instead of all that are there
        "SELECT n.label, n.key, n.id, n.properties FROM json_each(?) w "
        "CROSS JOIN nodes n ON n.label = ? AND n.key = w.value"
    )
    rows = (row for label, some in keys.items() for row in connection.execute(sql, (_json(list(some)), label)))
    return {(label, key): (number, text) for label, key, number, text in rows}


def _find_edges(connection: sqlite3.Connection, wanted: Iterable[_Edge]) -> dict[_Edge, str]:
    ends: dict[str, dict[tuple[int, int], None]] = {}
    for source, kind, target in wanted:
        ends.setdefault(kind, {})[source, target] = None
    sql = (
        "SELECT e.source, e.type, e.target, e.properties FROM json_each(?) w CROSS JOIN edges e "
        "ON e.source = json_extract(w.value, '$[0]') AND e.type = ? AND e.target = json_extract(w.value, '$[1]')"
    )
    rows = (row for kind, some in ends.items() for row in connection.execute(sql, (_json(list(some)), kind)))
    return {(source, kind, target): text for source, kind, target, text in rows}


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
