"""A graph store that needs no server."""

from kmp_storage.embedded.graph.provider import SqliteGraphStore
from kmp_storage.embedded.graph.settings import GraphSettings

__all__ = ["GraphSettings", "SqliteGraphStore"]
