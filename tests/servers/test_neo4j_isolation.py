"""A project's graph is in an instance of its own: the server refuses a neighbour, and the store a wrong instance."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from neo4j import GraphDatabase
from pydantic import SecretStr

import testbed
from kmp_core.capability import spec_of
from kmp_core.errors import ConfigurationError, InvalidInput, PermissionDenied, Unauthenticated
from kmp_core.plugins import find
from kmp_storage import Edge, GraphStore, Node, fields, models
from kmp_storage.neo4j import Neo4jSettings, Neo4jStore, statements
from kmp_storage.testing.graph import City, Flies, flies

Url = Callable[[testbed.Server], str]


def url(server: testbed.Server) -> str:
    return f"bolt://neo4j:{server.password}@{server.address}"


@pytest.fixture(autouse=True)
def emptied(neo4j: testbed.Server, second_neo4j: testbed.Server) -> Iterator[None]:
    def empty() -> None:
        for server in (neo4j, second_neo4j):
            with GraphDatabase.driver(f"bolt://{server.address}", auth=("neo4j", server.password)) as driver:
                driver.execute_query("MATCH (n) DETACH DELETE n")

    empty()
    yield
    empty()


async def test_an_instance_that_belongs_to_another_project_is_refused(neo4j: testbed.Server) -> None:
    async with Neo4jStore(url(neo4j), project="acme") as store:
        await store.merge(City(code="A", name="secret"))
    with pytest.raises(PermissionDenied) as refused:
        await Neo4jStore(url(neo4j), project="acme2").open()
    assert "'acme'" not in str(refused.value)
    async with Neo4jStore(url(neo4j), project="acme") as store:
        assert await store.get(City, "A") == City(code="A", name="secret")


async def test_of_two_projects_that_open_at_once_one_gets_the_instance(neo4j: testbed.Server) -> None:
    import asyncio

    stores = [Neo4jStore(url(neo4j), project=f"acme{number}") for number in range(6)]
    outcomes = await asyncio.gather(*(store.open() for store in stores), return_exceptions=True)
    await asyncio.gather(*(store.close() for store in stores))
    assert outcomes.count(None) == 1
    assert all(outcome is None or isinstance(outcome, PermissionDenied) for outcome in outcomes)


async def test_what_one_project_writes_is_in_its_own_instance_alone(
    neo4j: testbed.Server, second_neo4j: testbed.Server
) -> None:
    async with (
        Neo4jStore(url(neo4j), project="acme") as ours,
        Neo4jStore(url(second_neo4j), project="acme2") as theirs,
    ):
        await ours.merge(City(code="A", name="secret"))
        assert await theirs.run("MATCH (n) WHERE NOT n:_KmpOwner RETURN n") == []
        assert await theirs.run("MATCH (n:_KmpOwner) RETURN n.project AS project") == [{"project": "acme2"}]


async def test_a_wrong_password_is_told_without_it(neo4j: testbed.Server) -> None:
    settings = Neo4jSettings.load(password=SecretStr("hunter2-hunter2"))
    with pytest.raises(Unauthenticated) as refused:
        await Neo4jStore(f"bolt://{neo4j.address}", project="acme", settings=settings).open()
    assert "hunter2" not in repr(refused.value)


async def test_community_has_no_database_of_ones_own(neo4j: testbed.Server) -> None:
    settings = Neo4jSettings.load(database="acme")
    with pytest.raises(ConfigurationError, match="KMP_STORAGE_NEO4J_DATABASE"):
        await Neo4jStore(url(neo4j), project="acme", settings=settings).open()


HOSTILE = (
    "A` {code: 'x'}) SET n:Owned //",
    "A`) DETACH DELETE (n) //",
    "A\\u0060) SET n:Owned //",
    "A\\u005cu0060",
    "A``B",
    "A B",
    "A:Owned",
    "Ａ",
    "A\u200b",
    "A\n",
)


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes that the models would refuse: the store is the second guard."""
    monkeypatch.setattr(models, "check_name", lambda *_: None)
    monkeypatch.setattr(fields, "_NAME", re.compile(".*", re.DOTALL))


def hostile_classes(text: str) -> dict[str, tuple[type[Node], list[Node | Edge]]]:
    """Classes that carry the text into each place of a statement where a name stands."""

    class Labelled(Node, label=text, key="code"):
        code: str

    class Typed(Edge, type=text, source=City, target=City):
        pass

    class Keyed(Node, label="Keyed", key="code"):
        code: str

    class Having(Node, label="ContractCity", key="code"):
        code: str
        size: int | None = None

    rename(Keyed, "code", text)
    rename(Having, "size", text)
    return {
        "label": (Labelled, [Labelled(code="A")]),
        "type": (City, [Typed(source="A", target="B")]),
        "key": (Keyed, [Keyed.model_construct({text}, **{text: "A"})]),
        # So many go as columns, whose names stand in the statement; the names of a few are parameters.
        "property": (Having, [Having.model_construct({"code", text}, code=f"A{n}", **{text: 1}) for n in range(250)]),
    }


def rename(model: type[Node], field: str, text: str) -> None:
    """Give a field a name that Python's syntax has not."""
    model.model_fields[text] = model.model_fields.pop(field)
    if model.__kmp_node__.key == field:
        model.__kmp_node__ = replace(model.__kmp_node__, key=text)


async def everything(store: Neo4jStore) -> dict[str, Any]:
    """All that is in the instance: nodes, edges, and the names of the schema."""
    return {
        "nodes": await store.run("MATCH (n) RETURN labels(n) AS labels, properties(n) AS has ORDER BY elementId(n)"),
        "edges": await store.run("MATCH ()-[r]->() RETURN type(r) AS type, properties(r) AS has ORDER BY elementId(r)"),
        "constraints": await store.run("SHOW CONSTRAINTS YIELD name RETURN name ORDER BY name"),
        "indexes": await store.run("SHOW INDEXES YIELD name RETURN name ORDER BY name"),
    }


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", ["label", "type", "key", "property"])
async def test_a_hostile_name_reaches_no_statement_of_the_server(
    neo4j: testbed.Server, monkeypatch: pytest.MonkeyPatch, place: str, text: str
) -> None:
    async with Neo4jStore(url(neo4j), project="acme") as store:
        await store.merge(City(code="A", name="mine"), flies("A", "B"))
        before = await everything(store)
        unchecked(monkeypatch)
        model, items = hostile_classes(text)[place]
        with pytest.raises(InvalidInput):
            await store.merge(*items)
        if place in ("label", "key"):
            for call in (store.get, store.delete):
                with pytest.raises(InvalidInput):
                    await call(model, "A")
            with pytest.raises(InvalidInput):
                await store.neighbours(items[0], via=Flies)
        if place == "type":
            with pytest.raises(InvalidInput):
                await store.edges(type(items[0]))
            with pytest.raises(InvalidInput):
                await store.neighbours(City(code="A"), via=type(items[0]))
        assert await everything(store) == before


async def test_without_the_allow_list_the_server_does_what_a_hostile_name_says(
    neo4j: testbed.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Neo4jStore(url(neo4j), project="acme") as store:
        await store.merge(City(code="A", name="mine"))
        unchecked(monkeypatch)
        monkeypatch.setattr(statements, "name", lambda text: f"`{text}`")
        model, _ = hostile_classes("ContractCity`) DETACH DELETE n //")["label"]
        await store.delete(model, "A")
        assert await store.get(City, "A") is None


@pytest.mark.parametrize("text", ["a`b", "a\\u0060b", "a b", "é", "", "1a", "a" * 200, "a\n", "A` SET n.x=1 //", None])
def test_a_name_that_could_be_read_as_cypher_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        statements.name(text)


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ("http://graph", "neo4j"),
        ("bolt:graph", "slashes"),
        ("bolt+ssc://u:hunter2@graph", "any certificate"),
        ("bolt://u:hunter2@graph:99999", "port"),
        ("neo4j://u:hunter2@graph/acme", "end with the host"),
        ("neo4j://u:hunter2@graph?x=1", "end with the host"),
    ],
)
def test_a_wrong_url_is_told_by_variable_and_fault_and_never_with_its_secret(wrong: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault) as refused:
        Neo4jStore(wrong, project="acme")
    assert refused.value.faults[0].field == "KMP_STORAGE_GRAPH_URL"
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["neo4j", "neo4j+s", "bolt", "bolt+s"])
def test_the_schemes_select_the_store(scheme: str) -> None:
    assert find(spec_of(GraphStore), f"{scheme}://graph") is Neo4jStore
