"""The embedded graph keeps the contract, in a file and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmp_core.testing import Make
from kmp_storage.embedded.graph import SqliteGraphStore
from kmp_storage.testing.graph import GraphStoreContract
from kmp_storage.testing.shared_graph import SharedGraphStoreContract


class TestSqliteGraphStore(SharedGraphStoreContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        return lambda project="acme": SqliteGraphStore(project=project, directory=tmp_path / project)

    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return f"sqlite:{tmp_path}/acme/graph.db"


class TestMemoryGraphStore(GraphStoreContract):
    @pytest.fixture
    def make(self) -> Make:
        return lambda project="acme": SqliteGraphStore("memory:", project=project)
