"""A project's graph is in an instance of its own: the server refuses a neighbour, and the store a wrong instance."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from neo4j import GraphDatabase
from pydantic import SecretStr

import testbed
from kmp_core.capability import spec_of
from kmp_core.errors import ConfigurationError, InvalidInput, PermissionDenied, Unauthenticated
from kmp_core.plugins import find
from kmp_storage import GraphStore
from kmp_storage.neo4j import Neo4jSettings, Neo4jStore, statements
from kmp_storage.testing.graph import City

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
