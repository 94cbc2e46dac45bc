"""The Neo4j store keeps the contract against real servers: an instance per project, as Community has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from neo4j import GraphDatabase

import testbed
from kmp_core.testing import Make
from kmp_storage.neo4j import Neo4jStore
from kmp_storage.testing.shared_graph import SharedGraphStoreContract


def empty(server: testbed.Server) -> None:
    with GraphDatabase.driver(f"bolt://{server.address}", auth=("neo4j", server.password)) as driver:
        driver.execute_query("MATCH (n) DETACH DELETE n")


@pytest.fixture
def urls(neo4j: testbed.Server, second_neo4j: testbed.Server) -> Iterator[dict[str, str]]:
    empty(neo4j)
    empty(second_neo4j)
    yield {
        project: f"bolt://neo4j:{server.password}@{server.address}"
        for project, server in (("acme", neo4j), ("acme2", second_neo4j))
    }
    empty(neo4j)
    empty(second_neo4j)


class TestNeo4jStore(SharedGraphStoreContract):
    @pytest.fixture
    def make(self, urls: dict[str, str]) -> Make:
        return lambda project="acme": Neo4jStore(urls[project], project=project)

    @pytest.fixture
    def address(self, urls: dict[str, str]) -> str:
        return urls["acme"]
