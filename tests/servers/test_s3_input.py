"""What surroundings and callers get wrong about buckets on a real server: refused or ignored, nothing is written."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import s3_bed
import testbed
from kmp_core.errors import InvalidInput
from kmp_storage.bucket import S3Bucket
from kmp_storage.bucket.provisioning import VersityProvisioner
from s3_bed import S3Project

NO_PROJECTS = ["", " ", ".", "..", "acme.", "a*", "acme/../b", "ACME", "\u0430cme", "acme\0", "acme\n", "-a", "x" * 41]


@pytest.fixture
async def project(s3: testbed.Server) -> AsyncIterator[S3Project]:
    async with s3_bed.own_project(s3) as made:
        yield made


async def test_no_request_goes_where_the_environment_says(project: S3Project, thief: list[bytes]) -> None:
    """Each request carries a signature, and most carry or ask for the content itself."""
    async with project.bucket() as bucket:
        await bucket.put("key", b"content")
        assert await bucket.get("key") == b"content"
        assert await bucket.head("key")
        assert [entry.key async for entry in bucket.list()] == ["key"]
        await bucket.copy("key", "other")
        assert await bucket.delete("key")
        await bucket.check()
    assert thief == []


@pytest.mark.parametrize("name", NO_PROJECTS)
async def test_a_name_that_is_no_project_reaches_no_server(s3: testbed.Server, name: str) -> None:
    with pytest.raises(InvalidInput, match="project"):
        S3Bucket("s3+http://name:secret@127.0.0.1:1", project=name)
    async with VersityProvisioner(s3_bed.admin_url(s3)) as operator:
        for call in (operator.provision(name), operator.deprovision(name, force=True)):
            with pytest.raises(InvalidInput, match="project"):
                await call
