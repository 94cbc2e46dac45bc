"""What merging into the embedded graph costs beside bare SQLite: the same tables, indexes and transactions.

Bare is `executemany` of ready tuples in the calling thread, with ids known beforehand; ours takes models, checks
every value, goes through the store's thread, finds ids by keys, and merges properties into those that are stored. Both
sync each transaction to the disk.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from kmp_storage import Edge, Node
from kmp_storage.embedded.graph import SqliteGraphStore

ROUNDS = 5
NODES = 5_000
EDGES = 15_000
BATCH = 500


class Airport(Node, label="Airport", key="code"):
    code: str
    name: str | None = None
    latitude: float | None = None


class Route(Edge, type="ROUTE", source=Airport, target=Airport):
    miles: float | None = None


def _edge(number: int) -> tuple[int, int]:
    return number % NODES, (number * 7 + number // NODES + 1) % NODES


AIRPORTS = [Airport(code=f"A{number}", name=f"Airport {number}", latitude=number / 100) for number in range(NODES)]
ROUTES = [Route(source=f"A{a}", target=f"A{b}", miles=number) for number, (a, b) in enumerate(map(_edge, range(EDGES)))]
CHANGED = [Route(source=route.source, target=route.target, miles=-1) for route in ROUTES]
NODE_ROWS = [
    (number + 1, "Airport", one.code, json.dumps({"name": one.name, "latitude": one.latitude}))
    for number, one in enumerate(AIRPORTS)
]
EDGE_ROWS = [
    (a + 1, "ROUTE", b + 1, json.dumps({"miles": float(number)}))
    for number, (a, b) in enumerate(map(_edge, range(EDGES)))
]
TABLES = """
    CREATE TABLE nodes (id INTEGER PRIMARY KEY, label TEXT NOT NULL, key TEXT NOT NULL, properties TEXT NOT NULL,
        UNIQUE (label, key)) STRICT;
    CREATE TABLE edges (source INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE, type TEXT NOT NULL,
        target INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE, properties TEXT NOT NULL,
        PRIMARY KEY (source, type, target)) STRICT, WITHOUT ROWID;
    CREATE INDEX edges_by_target ON edges (target, type, source);
"""


def bare(directory: Path) -> float:
    """Seconds for ready tuples, nodes first."""
    connection = sqlite3.connect(directory / "bare.db", isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")
    connection.executescript(TABLES)
    began = time.perf_counter()
    for sql, rows in (
        ("INSERT INTO nodes VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", NODE_ROWS),
        ("INSERT INTO edges VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", EDGE_ROWS),
    ):
        for begin in range(0, len(rows), BATCH):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(sql, rows[begin : begin + BATCH])
            connection.execute("COMMIT")
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


async def ours(directory: Path) -> list[float]:
    """Seconds for what is new, for the same again, and for edges whose properties changed."""
    taken = []
    async with SqliteGraphStore(directory=directory) as graph:
        for expected, items in ((NODES + EDGES, [*AIRPORTS, *ROUTES]), (0, [*AIRPORTS, *ROUTES]), (EDGES, CHANGED)):
            began = time.perf_counter()
            changed = 0
            for begin in range(0, len(items), BATCH):
                changed += await graph.merge(*items[begin : begin + BATCH])
            taken.append((time.perf_counter() - began) / len(items) * (NODES + EDGES))
            assert changed == expected
    return taken


def main() -> None:
    names = ("merge what is new", "merge the same again", "merge changed properties")
    plain: list[float] = []
    found: list[list[float]] = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as directory:
            plain.append(bare(Path(directory)))
            found.append(asyncio.run(ours(Path(directory))))
    print(f"{'bare executemany':<28} {(NODES + EDGES) / statistics.median(plain):>10,.0f} items/s")
    for number, name in enumerate(names):
        rate = (NODES + EDGES) / statistics.median(each[number] for each in found)
        ratio = statistics.median(b / o[number] for b, o in zip(plain, found, strict=True))
        print(f"{name:<28} {rate:>10,.0f} items/s   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
