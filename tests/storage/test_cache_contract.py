"""The embedded cache keeps the contract, in a file and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmp_core.testing import Make
from kmp_storage.embedded.cache import SqliteCache
from kmp_storage.testing.cache import CacheContract
from kmp_storage.testing.shared_cache import SharedCacheContract


class TestSqliteCache(SharedCacheContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        return lambda project="acme": SqliteCache(project=project, directory=tmp_path / project)

    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return f"sqlite:{tmp_path}/acme/cache.db"


class TestMemoryCache(CacheContract):
    @pytest.fixture
    def make(self) -> Make:
        return lambda project="acme": SqliteCache("memory:", project=project)
