"""The bucket in Azure Blob Storage keeps the contract against its emulator, in one process and over several."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import azure_bed
import testbed
from kmp_core.testing import Make
from kmp_storage.bucket.cloud import CloudBucket
from kmp_storage.testing.shared_bucket import SharedBucketContract

PROJECTS = ("acme", "acme2")


@pytest.fixture
def url(azurite: testbed.Server) -> Iterator[str]:
    for project in PROJECTS:
        asyncio.run(azure_bed.make_container(azurite, project))
    yield azure_bed.url(azurite, azure_bed.key(azurite))
    for project in PROJECTS:
        asyncio.run(azure_bed.remove_container(azurite, project))


class TestCloudBucket(SharedBucketContract):
    @pytest.fixture
    def make(self, url: str) -> Make:
        return lambda project="acme": CloudBucket(url, project=project)

    @pytest.fixture
    def address(self, url: str) -> str:
        return url
