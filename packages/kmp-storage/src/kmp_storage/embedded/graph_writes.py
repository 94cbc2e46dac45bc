"""The graph's tables, and merging into them. Every function here runs inside a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kmp_core.errors import InvalidInput
from kmp_storage.embedded.graph_codec import EdgeCodec, NodeCodec, edge_codec, node_codec
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


def changes_of(items: Sequence[Node | Edge], first_row: int = 0) -> list[Change]:
    """Check and encode items. Raises `InvalidInput` naming row and field."""
    return [_change(item, row) for row, item in enumerate(items, start=first_row)]


def merge(connection: sqlite3.Connection, changes: Sequence[Change]) -> int:
    """Create or update each, and return how many were new or changed."""
    ids: dict[tuple[str, str], int] = {}
    changed = 0
    for change in changes:
        if isinstance(change, NodeChange):
            changed += _merge_node(connection, change.codec.label, change.key, change.given)
        else:
            source = _id_of(connection, ids, change.codec.source.label, change.source)
            target = _id_of(connection, ids, change.codec.target.label, change.target)
            changed += _merge_edge(connection, change.codec.type, (source, target), change.given)
    return changed


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


def _merge_node(connection: sqlite3.Connection, label: str, key: str, given: dict[str, Any]) -> bool:
    found = connection.execute("SELECT id, properties FROM nodes WHERE label = ? AND key = ?", (label, key)).fetchone()
    if found is None:
        connection.execute("INSERT INTO nodes (label, key, properties) VALUES (?, ?, ?)", (label, key, _json(given)))
        return True
    text = _merged(found[1], given)
    if text is None:
        return False
    connection.execute("UPDATE nodes SET properties = ? WHERE id = ?", (text, found[0]))
    return True


def _merge_edge(connection: sqlite3.Connection, kind: str, ends: tuple[int, int], given: dict[str, Any]) -> bool:
    identity = (ends[0], kind, ends[1])
    found = connection.execute(
        "SELECT properties FROM edges WHERE source = ? AND type = ? AND target = ?", identity
    ).fetchone()
    if found is None:
        connection.execute("INSERT INTO edges VALUES (?, ?, ?, ?)", (*identity, _json(given)))
        return True
    text = _merged(found[0], given)
    if text is None:
        return False
    connection.execute(
        "UPDATE edges SET properties = ? WHERE source = ? AND type = ? AND target = ?", (text, *identity)
    )
    return True


def _id_of(connection: sqlite3.Connection, ids: dict[tuple[str, str], int], label: str, key: str) -> int:
    known = ids.get((label, key))
    if known is not None:
        return known
    found = connection.execute("SELECT id FROM nodes WHERE label = ? AND key = ?", (label, key)).fetchone()
    if found is None:
        sql = "INSERT INTO nodes (label, key, properties) VALUES (?, ?, '{}') RETURNING id"
        found = connection.execute(sql, (label, key)).fetchone()
    number: int = found[0]
    ids[label, key] = number
    return number


def _merged(stored: str, given: dict[str, Any]) -> str | None:
    """The properties after merging, or None where nothing changes."""
    before = json.loads(stored)
    after = {**before, **given}
    return None if after == before else _json(after)


def _json(properties: dict[str, Any]) -> str:
    return json.dumps(properties, ensure_ascii=False, separators=(",", ":"))
