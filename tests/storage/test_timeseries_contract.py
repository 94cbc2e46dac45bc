"""The embedded time-series store keeps the contract, in a file and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmp_core.testing import Make
from kmp_storage.embedded.timeseries import SqliteTimeSeriesStore
from kmp_storage.testing.shared_timeseries import SharedTimeSeriesContract
from kmp_storage.testing.timeseries import TimeSeriesContract


class TestSqliteTimeSeriesStore(SharedTimeSeriesContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        return lambda project="acme": SqliteTimeSeriesStore(project=project, directory=tmp_path / project)

    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return f"sqlite:{tmp_path}/acme/timeseries.db"


class TestMemoryTimeSeriesStore(TimeSeriesContract):
    @pytest.fixture
    def make(self) -> Make:
        return lambda project="acme": SqliteTimeSeriesStore("memory:", project=project)
