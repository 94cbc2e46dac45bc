"""A graph in Neo4j: typed nodes and edges for everyone, Cypher of your own where the instance is your project's."""

from kmp_storage.neo4j.store import Neo4jStore
from kmp_storage.settings.neo4j import Neo4jSettings

__all__ = ["Neo4jSettings", "Neo4jStore"]
