"""The Cypher of the store. Values are parameters; names, which cannot be, come from an allow-list and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from kmp_core.errors import InvalidInput
from kmp_storage.neo4j.codec import EdgeCodec, NodeCodec

__all__ = [
    "CLAIM",
    "EDGES",
    "NODES",
    "OWNER",
    "Update",
    "constraint",
    "delete_node",
    "find",
    "get_node",
    "list_edges",
    "merge_edges",
    "merge_nodes",
    "name",
    "step",
    "trusted",
]

# Neither a backtick nor a backslash can be in it: Cypher reads \u0060 as a backtick before it looks for names.
_NAME = re.compile(r"_?[A-Za-z][A-Za-z0-9_]{0,127}", re.ASCII)

OWNER = "CREATE CONSTRAINT `kmp_owner` IF NOT EXISTS FOR (owner:`_KmpOwner`) REQUIRE owner.`instance` IS UNIQUE"
CLAIM = "MERGE (owner:`_KmpOwner` {`instance`: 1}) ON CREATE SET owner.`project` = $project RETURN owner.`project`"


def trusted(text: Any) -> LiteralString:
    """Cypher that was put together here or that its author answers for, in the type that the driver asks for."""
    cypher: LiteralString = text
    return cypher


def name(text: object) -> str:
    """A label, type or property, quoted. Raises `InvalidInput` for what could be read as anything else."""
    if not isinstance(text, str) or _NAME.fullmatch(text) is None:
        raise InvalidInput("name", "must be letters, digits and '_' to stand in Cypher", example='"Airport"')
    return f"`{text}`"


def constraint(node: NodeCodec[Any]) -> str:
    """What makes the key a key: at most one node of the label has it, and it is found by an index."""
    label, key = name(node.label), name(node.property)
    called = name(f"kmp_{node.label}_{node.property}")
    return f"CREATE CONSTRAINT {called} IF NOT EXISTS FOR (n:{label}) REQUIRE n.{key} IS UNIQUE"


def merge_nodes(node: NodeCodec[Any], update: Update) -> str:
    """Create or update nodes of one class from `$rows`, and return how many were there already and changed."""
    (key,) = update.identity
    return f"UNWIND $rows AS row MERGE (n:{name(node.label)} {{{name(node.property)}: {key}}}) {update.of('n')}"


def merge_edges(edge: EdgeCodec[Any], update: Update) -> str:
    """The same for edges of one class, whose ends are created where they are not."""
    source, target = update.identity
    return (
        f"UNWIND $rows AS row "
        f"MERGE (s:{name(edge.source.label)} {{{name(edge.source.property)}: {source}}}) "
        f"MERGE (t:{name(edge.target.label)} {{{name(edge.target.property)}: {target}}}) "
        f"MERGE (s)-[r:{name(edge.type)}]->(t) {update.of('r')}"
    )


@dataclass(frozen=True, slots=True)
class Update:
    """How the rows of a merge are laid out, which says how they become properties."""

    identity: tuple[str, ...]
    assigned: Callable[[str], str]
    differs: Callable[[str], str | None]

    @classmethod
    def by_columns(cls, identifying: int, columns: Sequence[str]) -> Update:
        """Rows are lists: what identifies, then a value for each column.

        Names that Cypher knows save it from keeping all rows between its steps, as `+=` of any properties makes it do,
        and the driver from sending them in every row.
        """
        values = [(name(column), f"row[{place}]") for place, column in enumerate(columns, start=identifying)]
        return cls(
            tuple(f"row[{place}]" for place in range(identifying)),
            lambda thing: ", ".join(f"{thing}.{column} = {value}" for column, value in values),
            lambda thing: " OR ".join(_unequal(f"{thing}.{column}", value) for column, value in values) or None,
        )

    @classmethod
    def by_maps(cls, identifying: Sequence[str], *, compares: bool) -> Update:
        """Rows are maps: what identifies, p (properties) and, with `compares`, c, which is compared instead of p."""
        # What counts is the first of several changes in one call (c); how many of the others count is known already.
        given = "row.c" if compares else "row.p"
        return cls(
            tuple(f"row.{letter}" for letter in identifying),
            lambda thing: f"{thing} += row.p",
            lambda thing: f"any(name IN keys({given}) WHERE {_unequal(f'{thing}[name]', f'{given}[name]')})",
        )

    def of(self, thing: str) -> str:
        """What follows the MERGE of a thing."""
        assigned, differs = self.assigned(thing), self.differs(thing)
        if differs is None:
            return "RETURN count(null) AS changed"
        # Setting a property takes the write lock, so that of two who make the same change at once one counts it.
        # (Setting null would not: Neo4j looks first whether there is something to remove.)
        # What was created is counted by the server; only what was there already is compared.
        return (
            f"ON CREATE SET {assigned} ON MATCH SET {thing}.`_` = 0 WITH row, {thing} WHERE {thing}.`_` = 0 "
            f"WITH row, {thing}, {differs} AS differs SET {assigned}, {thing}.`_` = null "
            "WITH differs WHERE differs RETURN count(*) AS changed"
        )


def _unequal(one: str, other: str) -> str:
    return f"coalesce({one} <> {other}, ({one} IS NULL) <> ({other} IS NULL))"


def get_node(node: NodeCodec[Any]) -> str:
    """The properties of the node whose key is `$key`."""
    return f"MATCH (n:{name(node.label)} {{{name(node.property)}: $key}}) RETURN properties(n)"


def delete_node(node: NodeCodec[Any]) -> str:
    """Delete the node whose key is `$key`, with its edges."""
    return f"MATCH (n:{name(node.label)} {{{name(node.property)}: $key}}) DETACH DELETE n"


def list_edges(edge: EdgeCodec[Any], *, limited: bool) -> str:
    """The ends and properties of all edges of a class, in the order of their ends; at most `$limit`."""
    source, target = f"s.{name(edge.source.property)}", f"t.{name(edge.target.property)}"
    return (
        f"MATCH (s:{name(edge.source.label)})-[r:{name(edge.type)}]->(t:{name(edge.target.label)}) "
        f"RETURN {source}, {target}, properties(r) ORDER BY {source}, {target}{' LIMIT $limit' if limited else ''}"
    )


def identity(node: str, codecs: Sequence[NodeCodec[Any]]) -> str:
    """An expression: the label of ours that a node has, and its key; its first label where none is ours."""
    cases = "".join(
        f" WHEN {node}:{name(codec.label)} THEN ['{codec.label}', {node}.{name(codec.property)}]" for codec in codecs
    )
    return f"CASE{cases} ELSE [coalesce(head(labels({node})), ''), ''] END"


def step(types: Sequence[str], direction: str, codecs: Sequence[NodeCodec[Any]]) -> str:
    """One step from the nodes `$ids`: where from, where to, the edge and whether it points that way."""
    left, right = {"out": ("-", "->"), "in": ("<-", "-"), "both": ("-", "-")}[direction]
    pattern = "|".join(map(name, types))
    return (
        "UNWIND $ids AS id MATCH (a) WHERE elementId(a) = id "
        f"MATCH (a){left}[r:{pattern}]{right}(b) "
        f"RETURN id, elementId(b), {identity('b', codecs)}, elementId(r), type(r), elementId(startNode(r)) = id"
    )


def find(node: NodeCodec[Any]) -> str:
    """The identity within this transaction of the node whose key is `$key`."""
    return f"MATCH (n:{name(node.label)} {{{name(node.property)}: $key}}) RETURN elementId(n)"


NODES = "UNWIND $ids AS id MATCH (n) WHERE elementId(n) = id RETURN id, properties(n)"
EDGES = "UNWIND $ids AS id MATCH ()-[r]->() WHERE elementId(r) = id RETURN id, properties(r)"
