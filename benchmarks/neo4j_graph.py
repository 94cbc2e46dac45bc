"""What the Neo4j store adds to a hand-written UNWIND: the same nodes, edges, constraints and transactions.

    python benchmarks/neo4j_graph.py [items]          # KMP_STORAGE_GRAPH_URL=bolt://neo4j:secret@localhost

The hand-written script sends ready dictionaries; the store takes models, checks every value, creates ends that are
missing, and counts what is new or changed. Both merge half nodes and half edges, in transactions of 5000, one round of
each in turn. The instance is emptied: name one that holds nothing.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from urllib.parse import urlsplit

from neo4j import AsyncDriver, AsyncGraphDatabase
from neo4j.exceptions import DriverError, Neo4jError

from kmp_storage import Edge, Node
from kmp_storage.neo4j import Neo4jStore

ROUNDS = 5
BATCH = 5000
BUDGET = 0.90


class Airport(Node, label="BenchmarkAirport", key="code"):
    code: str
    name: str | None = None
    elevation: int | None = None


class Route(Edge, type="BENCHMARK_ROUTE", source=Airport, target=Airport):
    miles: int | None = None


NODES = "UNWIND $rows AS row MERGE (n:BenchmarkAirport {code: row.code}) SET n += row.properties"
EDGES = (
    "UNWIND $rows AS row MERGE (s:BenchmarkAirport {code: row.source}) MERGE (t:BenchmarkAirport {code: row.target}) "
    "MERGE (s)-[r:BENCHMARK_ROUTE]->(t) SET r += row.properties"
)


async def by_hand(driver: AsyncDriver, nodes: list[dict[str, object]], edges: list[dict[str, object]]) -> None:
    for cypher, rows in ((NODES, nodes), (EDGES, edges)):
        for begin in range(0, len(rows), BATCH):
            async with driver.session() as session, await session.begin_transaction() as transaction:
                await (await transaction.run(cypher, rows=rows[begin : begin + BATCH])).consume()
                await transaction.commit()


async def main(count: int) -> int:
    url = os.environ.get("KMP_STORAGE_GRAPH_URL", "bolt://localhost")
    parts = urlsplit(url)
    half = count // 2
    models: list[Node | Edge] = [
        Airport(code=f"A{number}", name=f"Airport number {number}", elevation=number % 3000) for number in range(half)
    ]
    models += [Route(source=f"A{number}", target=f"A{(number * 7 + 1) % half}", miles=number) for number in range(half)]
    nodes: list[dict[str, object]] = [
        {"code": f"A{number}", "properties": {"name": f"Airport number {number}", "elevation": number % 3000}}
        for number in range(half)
    ]
    edges: list[dict[str, object]] = [
        {"source": f"A{number}", "target": f"A{(number * 7 + 1) % half}", "properties": {"miles": number}}
        for number in range(half)
    ]
    auth = (parts.username or "neo4j", parts.password or "")
    ratios: list[float] = []
    rates: list[float] = []
    client: dict[bool, list[float]] = {False: [], True: []}
    async with AsyncGraphDatabase.driver(
        f"{parts.scheme}://{parts.hostname}:{parts.port or 7687}", auth=auth
    ) as driver:
        try:
            await driver.verify_connectivity()
        except (DriverError, Neo4jError, OSError):
            print("no Neo4j answers: set KMP_STORAGE_GRAPH_URL, for example to bolt://neo4j:secret@localhost")
            return 0
        async with Neo4jStore(url, project="benchmark") as store:
            await store.merge(models[0])

            async def emptied() -> None:
                await store.run("MATCH (n:BenchmarkAirport) CALL (n) { DETACH DELETE n } RETURN count(*)", timeout="2m")

            async def timed(ours: bool) -> tuple[float, float]:
                await emptied()
                began, busy = time.perf_counter(), time.process_time()
                await (store.merge_all(models) if ours else by_hand(driver, nodes, edges))
                return time.perf_counter() - began, time.process_time() - busy

            for round_number in range(ROUNDS + 1):
                order = (False, True) if round_number % 2 else (True, False)
                seconds = {ours: await timed(ours) for ours in order}
                if round_number:  # the first one warms the server's planner up
                    ratios.append(seconds[False][0] / seconds[True][0])
                    rates.append(count / seconds[True][0])
                    for ours, (_, busy) in seconds.items():
                        client[ours].append(busy / count * 1e6)
            await emptied()
    ratio, rate = statistics.median(ratios), statistics.median(rates)
    print(
        f"merge of {count} nodes and edges: {rate:,.0f} per s, {ratio:.2f} x a hand-written UNWIND (at least {BUDGET})"
    )
    print(
        f"processor time of the client: {statistics.median(client[True]):.1f} us an item, "
        f"by hand {statistics.median(client[False]):.1f} us"
    )
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)))
