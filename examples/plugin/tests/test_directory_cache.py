"""The provider keeps every promise of a cache, over several processes too."""

from __future__ import annotations

from pathlib import Path

import pytest
from directory_cache import DirectoryCache

from kmp_core.testing import Make
from kmp_storage.testing.shared_cache import SharedCacheContract


class TestDirectoryCache(SharedCacheContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        return lambda project="acme": DirectoryCache(f"directory:{tmp_path}/cache", project=project)

    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return f"directory:{tmp_path}/cache"
