"""How access keys are provisioned, and what a bucket says of a wrong one; the leak test has what the server refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

import testbed
from kmp_core.errors import (
    AccessDenied,
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from kmp_storage.bucket import S3Bucket
from kmp_storage.bucket.address import Address
from kmp_storage.bucket.provisioning import VersityProvisioner
from kmp_storage.bucket.requests import Requests
from kmp_storage.bucket.signing import AccessKey
from kmp_storage.settings.s3 import S3Settings

Projects = dict[str, AccessKey]


@pytest.fixture
def administrator(s3: testbed.Server) -> str:
    return f"s3+http://admin:{s3.password}@{s3.address}"


@pytest.fixture
async def projects(administrator: str) -> AsyncIterator[Projects]:
    names = ("leak", "leak2")
    async with VersityProvisioner(administrator) as provisioner:
        keys = {name: await provisioner.provision(name) for name in names}
        yield keys
        for name in names:
            await provisioner.deprovision(name, force=True)


def url(s3: testbed.Server, key: AccessKey, bucket: str = "") -> str:
    return f"s3+http://{key.name}:{key.secret}@{s3.address}/{bucket}"


async def test_a_bucket_opened_on_the_neighbours_says_so(s3: testbed.Server, projects: Projects) -> None:
    foreign = S3Bucket(url(s3, projects["leak2"], "leak"), project="leak2")
    with pytest.raises(PermissionDenied):
        await foreign.open()
    wrong = AccessKey("leak", "not-the-secret-at-all")
    stranger = S3Bucket(url(s3, wrong), project="leak")
    with pytest.raises(Unauthenticated) as caught:
        await stranger.open()
    assert "not-the-secret" not in str(caught.value)


async def test_provisioning_again_changes_nothing_and_rotates_on_request(
    s3: testbed.Server, administrator: str, projects: Projects
) -> None:
    async with VersityProvisioner(administrator) as provisioner:
        async with S3Bucket(url(s3, projects["leak"]), project="leak") as bucket:
            await bucket.put("key", b"kept")
            again = await provisioner.provision("leak", secret=projects["leak"].secret)
            assert again == projects["leak"]
            assert await bucket.get("key") == b"kept"
        rotated = await provisioner.provision("leak")
    async with S3Bucket(url(s3, rotated), project="leak") as bucket:
        assert await bucket.get("key") == b"kept"
    with pytest.raises(Unauthenticated):
        await S3Bucket(url(s3, projects["leak"]), project="leak").open()


async def test_a_bucket_of_somebody_else_is_not_given_away(administrator: str, projects: Projects) -> None:
    address = Address.read(administrator, settings=S3Settings.load())
    root, bucket = Requests(address, "", connections=1), Requests(address, "backups", connections=1)
    async with VersityProvisioner(administrator) as provisioner:
        try:
            await bucket.send("PUT")
            await provisioner.provision("backups")  # empty and the administrator's: an earlier call ended there
            await provisioner.deprovision("backups")

            await bucket.send("PUT")
            await bucket.send("PUT", "dump", content=b"all")
            with pytest.raises(Conflict, match="'backups' is there already and belongs to 'admin'"):
                await provisioner.provision("backups")
            assert (await bucket.send("GET", "dump")).content == b"all"

            await root.send("PATCH", "change-bucket-owner", query={"bucket": "backups", "owner": "leak2"})
            with pytest.raises(Conflict, match="belongs to 'leak2'"):
                await provisioner.provision("backups")
            users = (await root.send("PATCH", "list-users")).content
            assert b"<Access>leak2</Access>" in users
            assert b"<Access>backups</Access>" not in users
        finally:
            await provisioner.deprovision("backups", force=True)
            await root.close()
            await bucket.close()


async def test_deprovisioning_refuses_while_there_are_objects(s3: testbed.Server, administrator: str) -> None:
    async with VersityProvisioner(administrator) as provisioner:
        key = await provisioner.provision("doomed")
        try:
            async with S3Bucket(url(s3, key), project="doomed") as bucket:
                await bucket.put("a/key", b"1")
                with pytest.raises(Conflict):
                    await provisioner.deprovision("doomed")
                assert await bucket.get("a/key") == b"1", "a refused removal took the access key"
                await provisioner.deprovision("doomed", force=True)
                with pytest.raises((AccessDenied, NotFound)):
                    await bucket.head("a/key")
                    pytest.fail("the removed access key still works")
        finally:
            with suppress(NotFound):
                await provisioner.deprovision("doomed", force=True)
        await provisioner.deprovision("doomed")


async def test_a_provisioner_refuses_a_short_secret_and_a_wrong_project(administrator: str) -> None:
    async with VersityProvisioner(administrator) as provisioner:
        with pytest.raises(InvalidInput, match=r"^secret: "):
            await provisioner.provision("leak", secret="short")
        with pytest.raises(InvalidInput, match=r"^project: "):
            await provisioner.provision("../leak")
