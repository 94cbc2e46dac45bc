"""The embedded bucket keeps the contract, in files and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmp_core.testing import Make
from kmp_storage.embedded.bucket import FileBucket
from kmp_storage.testing.bucket import BucketContract
from kmp_storage.testing.shared_bucket import SharedBucketContract


class TestFileBucket(SharedBucketContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        return lambda project="acme": FileBucket(project=project, directory=tmp_path / project)

    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return f"file:{tmp_path}/acme/bucket"


class TestMemoryBucket(BucketContract):
    @pytest.fixture
    def make(self) -> Make:
        return lambda project="acme": FileBucket("memory:", project=project)
