"""The S3 bucket keeps the contract against the real server, in one process and over several."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import testbed
from kmp_core.errors import NotFound
from kmp_core.testing import Make
from kmp_storage.bucket import S3Bucket, S3Settings
from kmp_storage.bucket.address import Address
from kmp_storage.bucket.requests import Requests, texts
from kmp_storage.testing.shared_bucket import SharedBucketContract

PROJECTS = ("acme", "acme2")


@pytest.fixture
def url(s3: testbed.Server) -> Iterator[str]:
    address = f"s3+http://admin:{s3.password}@{s3.address}"
    asyncio.run(make_buckets(address))
    yield address
    asyncio.run(remove_buckets(address))


async def make_buckets(url: str) -> None:
    for bucket in PROJECTS:
        requests = Requests(Address.read(url, settings=S3Settings.load()), bucket, connections=1)
        await requests.send("PUT")
        await requests.close()


async def remove_buckets(url: str) -> None:
    for bucket in PROJECTS:
        requests = Requests(Address.read(url, settings=S3Settings.load()), bucket, connections=1)
        uploads = await requests.send("GET", query={"uploads": ""})
        for key, upload in zip(texts(uploads, "Key"), texts(uploads, "UploadId"), strict=True):
            await requests.send("DELETE", key, query={"uploadId": upload})
        for key in texts(await requests.send("GET", query={"list-type": "2"}), "Key"):
            await requests.send("DELETE", key)
        await requests.send("DELETE")
        with pytest.raises(NotFound):
            await requests.send("HEAD")
        await requests.close()


class TestS3Bucket(SharedBucketContract):
    keeps_files = True  # the test bed's server does; Amazon's does not

    @pytest.fixture
    def make(self, url: str) -> Make:
        return lambda project="acme": S3Bucket(url, project=project)

    @pytest.fixture
    def address(self, url: str) -> str:
        return url
