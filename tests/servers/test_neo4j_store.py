"""What the Neo4j store adds to the contract: the embedded store's outcomes, own Cypher, deadlines, bookmarks."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from time import tzset
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from neo4j import GraphDatabase
from neo4j.time import Duration

import testbed
from kmp_core.errors import BackendError, Conflict, Corrupt, DeadlineExceeded, InvalidInput, KmpError
from kmp_storage import Edge, Node
from kmp_storage.embedded.graph import SqliteGraphStore
from kmp_storage.neo4j import Neo4jSettings, Neo4jStore
from kmp_storage.testing.graph import City, flies


@pytest.fixture
def url(neo4j: testbed.Server) -> Iterator[str]:
    with GraphDatabase.driver(f"bolt://{neo4j.address}", auth=("neo4j", neo4j.password)) as driver:
        driver.execute_query("MATCH (n) DETACH DELETE n")
        yield f"bolt://neo4j:{neo4j.password}@{neo4j.address}"
        driver.execute_query("MATCH (n) DETACH DELETE n")


class Gate(Node, label="StoreGate", key="code"):
    code: str
    opened: datetime | None = None
    day: date | None = None
    state: str | None = "open"


class Leads(Edge, type="STORE_LEADS", source=Gate, target=Gate):
    steps: int = 0


@pytest.mark.parametrize("seed", range(4))
async def test_merging_has_the_outcome_and_the_count_of_the_embedded_store(url: str, seed: int) -> None:
    chance = random.Random(seed)

    def item() -> Node | Edge:
        code, other = chance.choice("ABC"), chance.choice("ABC")
        fields: dict[str, Any] = {}
        if chance.random() < 0.5:
            fields["state"] = chance.choice(["open", "shut", None])
        if chance.random() < 0.3:
            fields["day"] = chance.choice([date(2024, 1, 1), date(2024, 1, 2)])
        if chance.random() < 0.6:
            return Gate(code=code, **fields)
        return Leads(source=code, target=other, **({"steps": chance.randrange(3)} if chance.random() < 0.6 else {}))

    async with Neo4jStore(url, project="acme") as store, SqliteGraphStore("memory:") as embedded:
        for _ in range(25):
            call = [item() for _ in range(chance.randrange(1, 12))]
            assert await store.merge(*call) == await embedded.merge(*call), call
            for code in "ABC":
                assert await store.get(Gate, code) == await embedded.get(Gate, code), call
            assert await store.edges(Leads) == await embedded.edges(Leads), call


async def test_many_items_have_the_outcome_and_the_count_of_the_embedded_store(url: str) -> None:
    # Enough of each set of fields for statements of their own, and few enough keys for every kind of repetition.
    chance = random.Random(1)
    codes = [f"G{number}" for number in range(900)]
    states, days = ["open", "shut", None], [date(2024, 1, 1), date(2024, 1, 2)]

    def item() -> Node | Edge:
        code = chance.choice(codes)
        if chance.random() < 0.4:
            return Leads(
                source=code, target=chance.choice(codes[:3]), **chance.choice([{}, {"steps": chance.randrange(2)}])
            )
        fields = [{}, {"state": chance.choice(states)}, {"state": chance.choice(states), "day": chance.choice(days)}]
        return Gate(code=code, **chance.choice(fields))

    async with Neo4jStore(url, project="acme") as store, SqliteGraphStore("memory:") as embedded:
        for _ in range(5):
            call = [item() for _ in range(2500)]
            assert await store.merge(*call) == await embedded.merge(*call)
            assert await store.merge(*call[-50:]) == await embedded.merge(*call[-50:])
            assert await store.edges(Leads) == await embedded.edges(Leads)
            for code in chance.sample(codes, 100):
                assert await store.get(Gate, code) == await embedded.get(Gate, code)


async def test_none_is_kept_where_the_default_is_another(url: str) -> None:
    async with Neo4jStore(url, project="acme") as store:
        await store.merge(Gate(code="A", state=None))
        assert await store.get(Gate, "A") == Gate(code="A", state=None)
        await store.merge(Gate(code="A", state="shut"))
        assert await store.get(Gate, "A") == Gate(code="A", state="shut")


async def test_of_two_who_make_the_same_change_at_once_one_counts_it(url: str) -> None:
    codes = [f"C{number}" for number in range(200)]
    async with Neo4jStore(url, project="acme") as one, Neo4jStore(url, project="acme") as other:
        await one.merge(*(City(code=code) for code in codes))
        for turn in range(5):
            changes = [City(code=code, people=turn + 1) for code in codes]
            assert sum(await asyncio.gather(one.merge(*changes), other.merge(*reversed(changes)))) == len(codes)


async def test_the_key_is_a_constraint_of_the_server(url: str) -> None:
    async with Neo4jStore(url, project="acme") as store:
        await store.merge(Gate(code="A"))
        with pytest.raises(Conflict):
            await store.run("CREATE (:StoreGate {code: 'A'})")


async def test_values_are_typed_in_the_server(url: str) -> None:
    moment = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
    async with Neo4jStore(url, project="acme") as store:
        await store.merge(Gate(code="A", opened=moment, day=date(2024, 2, 29)))
        (row,) = await store.run("MATCH (g:StoreGate) RETURN g, g.opened.year AS year, g.day.month AS month")
        assert (row["year"], row["month"]) == (2024, 2)
        assert (row["g"]["opened"], row["g"]["day"]) == (moment, date(2024, 2, 29))
        assert await store.run("RETURN $at + duration('P1D') AS next", at=moment) == [
            {"next": datetime(2024, 3, 1, 12, 30, tzinfo=UTC)}
        ]


async def test_a_local_time_is_not_taken_for_one_of_this_host(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Neo4jStore(url, project="acme") as store:
        await store.merge(Gate(code="A"))
        await store.run("MATCH (g:StoreGate) SET g.opened = localdatetime('2024-02-29T12:30')")
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        tzset()
        try:
            with pytest.raises(Corrupt, match="opened: is a local time"):
                await store.get(Gate, "A")
        finally:
            monkeypatch.undo()
            tzset()
        await store.run("MATCH (g:StoreGate) SET g.opened = datetime({datetime: g.opened, timezone: 'UTC'})")
        assert await store.get(Gate, "A") == Gate(code="A", opened=datetime(2024, 2, 29, 12, 30, tzinfo=UTC))


MOMENTS = (
    datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),  # an hour later
    datetime(1901, 2, 3, 4, 5, 6, 789, tzinfo=timezone(-timedelta(hours=9, minutes=30))),
    datetime(2024, 2, 29, tzinfo=UTC),
    datetime(2024, 2, 29),  # noqa: DTZ001 - Cypher has times without a zone too
)
DURATIONS = (timedelta(0), timedelta(days=400, seconds=3, microseconds=7), -timedelta(days=1, microseconds=1))


async def test_temporal_values_come_back_as_they_went(url: str) -> None:
    values = [*MOMENTS, *DURATIONS, date(1, 1, 1), time(12, 30, 1, 5)]
    async with Neo4jStore(url, project="acme") as store:
        await store.run("CREATE (x:Temporal) SET x += $values", values={f"v{n}": v for n, v in enumerate(values)})
        (row,) = await store.run("MATCH (x:Temporal) RETURN x")
        found = [row["x"][f"v{number}"] for number in range(len(values))]
        assert found == values
        for sent, came in zip(MOMENTS, found, strict=False):
            assert came.utcoffset() == sent.utcoffset()
            assert isinstance(came.tzinfo, ZoneInfo | timezone | None)
        assert found[0].tzinfo == ZoneInfo("Europe/Berlin")
        assert all(type(came) is timedelta for came in found[len(MOMENTS) : len(MOMENTS) + len(DURATIONS)])
        with pytest.raises(InvalidInput, match="depends on the day"):
            await store.run("RETURN $at", at=time(12, tzinfo=ZoneInfo("Europe/Berlin")))
        (row,) = await store.run("RETURN duration('P1M2D') AS month")
        assert row["month"] == Duration(months=1, days=2)
        (row,) = await store.run("MATCH (x:Temporal) RETURN x.v0 < x.v1 AS earlier, x.v0.timezone AS zone")
        assert row == {"earlier": True, "zone": "Europe/Berlin"}


async def test_own_cypher_takes_values_as_parameters_only(url: str) -> None:
    odd = "x'}) MATCH (n) DETACH DELETE n //`"
    async with Neo4jStore(url, project="acme") as store:
        await store.merge(flies("A", "B", miles=3), City(code="A", name=odd))
        assert await store.run("MATCH (c:ContractCity {name: $name}) RETURN c.code AS code", name=odd) == [
            {"code": "A"}
        ]
        (row,) = await store.run("MATCH p = (:ContractCity {code: 'A'})-->() RETURN p")
        assert row["p"] == [{"code": "A", "name": odd}, {"miles": 3}, {"code": "B"}]


@pytest.mark.parametrize(("cypher", "parameters"), [("", {}), ("MATCH", {}), ("RETURN $a", {"a": object()})])
async def test_wrong_cypher_is_told_by_type(url: str, cypher: str, parameters: dict[str, Any]) -> None:
    async with Neo4jStore(url, project="acme") as store:
        with pytest.raises(InvalidInput):
            await store.run(cypher, **parameters)
        assert await store.run("RETURN 1 AS one") == [{"one": 1}]


async def test_a_stream_comes_part_by_part_and_may_be_left(url: str) -> None:
    async with Neo4jStore(url, project="acme") as store:
        total = 0
        async for row in store.stream("UNWIND range(1, $most) AS n RETURN n", most=20_000):
            total += row["n"]
        assert total == 20_000 * 20_001 // 2
        rows = store.stream("UNWIND range(1, 1000000000) AS n RETURN n", timeout="10s")
        assert await anext(rows) == {"n": 1}
        await rows.aclose()
        assert await store.run("RETURN 1 AS one") == [{"one": 1}]


async def test_a_stream_needs_no_more_memory_for_more_records(url: str) -> None:
    async def peak(store: Neo4jStore, most: int) -> int:
        tracemalloc.start()
        async for _ in store.stream("UNWIND range(1, $most) AS n RETURN n, 'x' + n AS text", most=most):
            pass
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    async with Neo4jStore(url, project="acme", settings=Neo4jSettings.load(fetch_items=100)) as store:
        await peak(store, 100)
        assert await peak(store, 5000) < 2 * await peak(store, 500)


async def test_a_call_whose_time_is_over_ends_in_the_server_too(url: str) -> None:
    endless = "UNWIND range(1, 1000000) AS a UNWIND range(1, 1000000) AS b WITH a, b WHERE a < 0 RETURN count(*)"
    running = "SHOW TRANSACTIONS YIELD currentQuery WHERE currentQuery CONTAINS '1000000' "
    async with Neo4jStore(url, project="acme") as store, Neo4jStore(url, project="acme") as other:
        with pytest.raises(DeadlineExceeded):
            await store.run(endless, timeout="300ms")
        async with asyncio.timeout(10):
            while len(await other.run(running + "RETURN currentQuery")) > 1:  # noqa: ASYNC110 - the question itself is one
                await asyncio.sleep(0.05)


async def test_calls_follow_each_other_by_bookmarks(url: str) -> None:
    async with Neo4jStore(url, project="acme") as store, Neo4jStore(url, project="acme") as other:
        await store.merge(City(code="A"))
        first = await store.bookmarks()
        await store.merge(City(code="B"))
        assert first
        assert await store.bookmarks() != first
        await other.follow(await store.bookmarks())
        assert await other.get(City, "B") == City(code="B")
        # That a call carries them shows where the server knows nothing of one.
        await other.follow(["not a bookmark"])
        with pytest.raises(KmpError):
            await other.get(City, "B")


async def test_a_call_waits_until_the_server_has_what_a_bookmark_says(url: str) -> None:
    async with Neo4jStore(url, project="acme") as store, Neo4jStore(url, project="acme") as other:
        await store.merge(City(code="A"))
        # What a member of a cluster is that has not heard of the newest write, one server is for its next one.
        await other.follow(map(next_after, await store.bookmarks()))
        reading = asyncio.ensure_future(other.get(City, "B"))
        for _ in range(5):
            assert await store.get(City, "B") is None
        assert not reading.done()
        await store.merge(City(code="B"))
        assert await reading == City(code="B")


def next_after(bookmark: str) -> str:
    """The bookmark of the transaction after: 19 bytes that name the database, a PackStream integer, an empty list."""
    kind, _, text = bookmark.partition(":")
    raw = base64.b64decode(text + "=" * (-len(text) % 4))
    assert raw[-1] == 0x90, "bookmarks of this server look different"
    number = int.from_bytes(raw[20:-1] or raw[19:20], "big") + 1
    following = raw[:19] + b"\xca" + number.to_bytes(4, "big") + raw[-1:]
    return f"{kind}:{base64.b64encode(following).decode().rstrip('=')}"


async def test_another_process_reads_what_this_one_wrote(url: str) -> None:
    async with Neo4jStore(url, project="acme") as store:
        await store.merge(City(code="A", name="Aachen"))
        places = sorted(await store.bookmarks())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", READ_AFTER, url, *places, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        assert printed == b"Aachen\n"


READ_AFTER = """
import asyncio, sys
from kmp_storage.neo4j import Neo4jSettings, Neo4jStore
from kmp_storage.testing.graph import City

async def main(url, *bookmarks):
    async with Neo4jStore(url, project="acme") as store:
        await store.follow(bookmarks)
        print((await store.get(City, "A")).name)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_deadlocks_are_tried_again(url: str) -> None:
    async with Neo4jStore(url, project="acme") as one, Neo4jStore(url, project="acme") as other:
        names = [f"C{number}" for number in range(40)]
        await one.merge(*(City(code=name) for name in names))
        forth = [[flies(a, b) for a, b in itertools.pairwise(names)] for _ in range(4)]
        back = [[flies(b, a) for a, b in itertools.pairwise(names)] for _ in range(4)]
        counts = await asyncio.gather(*(one.merge(*edges) for edges in forth), *(other.merge(*edges) for edges in back))
        assert sum(counts) == 2 * (len(names) - 1)


async def test_what_is_not_idempotent_is_run_once(url: str) -> None:
    # A transient error on purpose: two transactions that lock two nodes in opposite order.
    cypher = (
        "MATCH (a:ContractCity {code: $first}) SET a.people = coalesce(a.people, 0) + 1 WITH a "
        "UNWIND range(1, 300000) AS n WITH a, count(n) AS wait "
        "MATCH (b:ContractCity {code: $second}) SET b.people = coalesce(b.people, 0) + 1"
    )

    async def both(store: Neo4jStore, *, idempotent: bool) -> list[Any]:
        calls = [
            store.run(cypher, first=first, second=second, idempotent=idempotent)
            for first, second in (("A", "B"), ("B", "A"))
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    async with Neo4jStore(url, project="acme") as store:
        await store.merge(City(code="A"), City(code="B"))
        met = [outcome for _ in range(10) for outcome in await both(store, idempotent=False)]
        assert all(outcome == [] or isinstance(outcome, BackendError) for outcome in met)
        assert any(isinstance(outcome, BackendError) for outcome in met), "no deadlock came about"
        assert not [one for _ in range(10) for one in await both(store, idempotent=True) if one != []]
