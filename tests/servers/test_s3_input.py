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


ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "another",
    "AWS_BUCKET": "another",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
    "AWS_REGION": "eu-west-1",
    "AWS_REQUEST_PAYER": "true",
    "AWS_S3_EXPRESS": "true",
    "AWS_SECRET_ACCESS_KEY": "another",
    "AWS_SESSION_TOKEN": "another",
    "AWS_SKIP_SIGNATURE": "true",
    "AWS_UNSIGNED_PAYLOAD": "true",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
}


@pytest.mark.parametrize("variable", [*ENVIRONMENT, "all"])
async def test_the_environment_has_no_say_in_how_a_bucket_is_reached(
    project: S3Project, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name, value in ENVIRONMENT.items():
        if variable in (name, "all"):
            monkeypatch.setenv(name, value)
    async with project.bucket() as bucket:
        await bucket.put("key", b"content")
        assert await bucket.get("key") == b"content"
        assert await bucket.head("key")
        assert (await bucket.sign("key", expires="1m")).startswith(
            f"http://{project.server.address}/{project.name}/key?"
        )
        assert await bucket.delete("key")


@pytest.mark.parametrize("name", NO_PROJECTS)
async def test_a_name_that_is_no_project_reaches_no_server(s3: testbed.Server, name: str) -> None:
    with pytest.raises(InvalidInput, match="project"):
        S3Bucket("s3+http://name:secret@127.0.0.1:1", project=name)
    async with VersityProvisioner(s3_bed.admin_url(s3)) as operator:
        for call in (operator.provision(name), operator.deprovision(name, force=True)):
            with pytest.raises(InvalidInput, match="project"):
                await call
