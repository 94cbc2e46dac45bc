"""What is special about the embedded graph: its walks, its evolution, its file."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from kmp_core.errors import ConfigurationError, Corrupt, InvalidInput, PermissionDenied
from kmp_core.project import Project
from kmp_core.sqlite import Database
from kmp_core.testing import IsolatedEnvironment
from kmp_storage import Edge, Node
from kmp_storage.embedded.graph import GraphSettings, SqliteGraphStore
from kmp_storage.embedded.graph.walks import Walk


class City(Node, label="City", key="code"):
    code: str
    people: int | None = None


class Town(Node, label="Town", key="code"):
    code: str


class Way(Edge, type="WAY", source=City, target=City):
    miles: int | None = None
    minutes: int | None = None


def version(fields: dict[str, Any], defaults: dict[str, Any]) -> type[Node]:
    """The class of cities in another release of the service."""
    namespace = {"__module__": __name__, "__annotations__": {"code": str, **fields}, **defaults}
    return type(Node)("Version", (Node,), namespace, label="City", key="code")


async def test_releases_with_other_fields_share_a_graph():
    later = version({"mayor": str}, {"mayor": "nobody"})
    async with SqliteGraphStore("memory:") as graph:
        await graph.merge(City(code="A", people=3))
        assert await graph.get(later, "A") == later(code="A")
        await graph.merge(later(code="A", mayor="M"))
        assert await graph.get(City, "A") == City(code="A", people=3)
        assert await graph.get(later, "A") == later(code="A", mayor="M")


async def test_what_a_class_refuses_is_told_and_kept():
    other = version({"people": bool}, {"people": False})
    async with SqliteGraphStore("memory:") as graph:
        await graph.merge(City(code="A", people=3))
        await graph.merge(City(code="A", people=None))
        text = version({"people": str}, {"people": ""})
        with pytest.raises(Corrupt, match=r"City 'A' does not fit Version.*people"):
            await graph.get(text, "A")
        with pytest.raises(Corrupt):
            await graph.get(other, "A")
        assert await graph.get(City, "A") == City(code="A")


async def test_an_edge_whose_end_changed_its_class_is_told():
    namespace = {"__module__": __name__, "__annotations__": {}}
    before = type(Edge)("Before", (Edge,), namespace, type="LIES_IN", source=City, target=Town)
    after = type(Edge)("After", (Edge,), namespace, type="LIES_IN", source=City, target=City)
    async with SqliteGraphStore("memory:") as graph:
        await graph.merge(before(source="A", target="T"))
        with pytest.raises(Corrupt, match="'Town', which none of the classes"):
            await graph.neighbours(City(code="A"), via=after)
        assert await graph.neighbours(City(code="A"), via=before) == [Town(code="T")]


async def test_a_walk_that_is_too_wide_is_refused():
    settings = GraphSettings.load(max_visited=50)
    async with SqliteGraphStore("memory:", settings=settings) as graph:
        await graph.merge(*(Way(source="A", target=f"B{number}") for number in range(60)), Way(source="Z", target="A"))
        with pytest.raises(InvalidInput, match="KMP_STORAGE_GRAPH_MAX_VISITED"):
            await graph.neighbours(City(code="A"), via=Way)
        with pytest.raises(InvalidInput, match="KMP_STORAGE_GRAPH_MAX_VISITED"):
            await graph.paths(City(code="B7"), City(code="A"), via=Way, direction="both")
        assert await graph.neighbours(City(code="Z"), via=Way) == [City(code="A")]


async def everything(graph: SqliteGraphStore) -> tuple[list[Node | None], list[Way]]:
    return [await graph.get(City, code) for code in "ABCD"], await graph.edges(Way)


@pytest.mark.parametrize("seed", range(20))
async def test_merging_at_once_is_merging_one_by_one(seed: int):
    chance = random.Random(seed)

    def item() -> Node | Edge:
        a, b, number = chance.choice("ABCD"), chance.choice("ABCD"), chance.choice((None, 1, 2))
        if chance.random() < 0.5:
            return City(code=a) if chance.random() < 0.3 else City(code=a, people=number)
        given = {name: number for name in ("miles", "minutes") if chance.random() < 0.5}
        return Way(source=a, target=b, **given)

    batches = [[item() for _ in range(chance.randrange(1, 12))] for _ in range(4)]
    async with SqliteGraphStore("memory:") as at_once, SqliteGraphStore("memory:") as one_by_one:
        for batch in batches:
            assert await at_once.merge(*batch) == sum([await one_by_one.merge(item) for item in batch])
            assert await everything(at_once) == await everything(one_by_one)


async def test_an_interrupt_between_two_statements_is_heard(tmp_path: Path):
    database = Database(tmp_path / "x.db", project=Project("acme"), capability="storage.graph", migrations=())
    await database.open()

    def work(connection: sqlite3.Connection) -> bool:
        walk = Walk(connection, ("WAY",), "out", 10, None)
        with walk.watched():
            connection.interrupt()
            for _ in range(1000):
                walk.tick()
        return True

    try:
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            await database.read(work)
        assert await database.read(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
    finally:
        await database.close()


async def test_another_projects_file_is_refused(tmp_path: Path):
    async with SqliteGraphStore(project="acme", directory=tmp_path) as graph:
        await graph.merge(City(code="A"))
    with pytest.raises(PermissionDenied):
        await SqliteGraphStore(project="acme2", directory=tmp_path).open()


async def test_a_wrong_url_or_setting_is_refused(kmp_environment: IsolatedEnvironment):
    with pytest.raises(ConfigurationError, match="sqlite:"):
        SqliteGraphStore("neo4j://db")
    kmp_environment.set("KMP_STORAGE_GRAPH_MAX_VISITED", "0")
    with pytest.raises(ConfigurationError, match="KMP_STORAGE_GRAPH_MAX_VISITED"):
        SqliteGraphStore("memory:")
