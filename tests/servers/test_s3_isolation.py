"""The server refuses a project's access key everything of its neighbour, to a bare client too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import obstore
import pytest
from obstore.exceptions import BaseError, PermissionDeniedError
from obstore.store import S3Store

import testbed
from kmp_core.errors import (
    AccessDenied,
    BackendError,
    Conflict,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from kmp_storage.bucket import S3Bucket, S3Settings
from kmp_storage.bucket.address import Address
from kmp_storage.bucket.provisioning import VersityProvisioner
from kmp_storage.bucket.requests import Requests, texts
from kmp_storage.bucket.signing import AccessKey

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


def bare(s3: testbed.Server, key: AccessKey, bucket: str) -> S3Store:
    return S3Store(
        bucket,
        endpoint=f"http://{s3.address}",
        region="us-east-1",
        access_key_id=key.name,
        secret_access_key=key.secret,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


def requests_of(s3: testbed.Server, key: AccessKey, bucket: str) -> Requests:
    return Requests(Address.read(url(s3, key), settings=S3Settings.load()), bucket, connections=2)


async def listed(store: S3Store) -> list[Any]:
    return [entry async for page in obstore.list(store) for entry in page]


async def test_a_bare_client_with_the_neighbours_key_is_refused(s3: testbed.Server, projects: Projects) -> None:
    ours, theirs = projects["leak"], projects["leak2"]
    async with S3Bucket(url(s3, ours), project="leak") as bucket:
        await bucket.put("secret", b"ours")
        own, foreign = bare(s3, ours, "leak"), bare(s3, theirs, "leak")
        assert [entry["path"] for entry in await listed(own)] == ["secret"]  # the client itself works
        attempts: dict[str, Callable[[], Awaitable[Any]]] = {
            "list": lambda: listed(foreign),
            "get": lambda: obstore.get_async(foreign, "secret"),
            "head": lambda: obstore.head_async(foreign, "secret"),
            "put": lambda: obstore.put_async(foreign, "planted", b"x", use_multipart=False),
            "put in parts": lambda: obstore.put_async(foreign, "planted", b"x" * (6 << 20), use_multipart=True),
            "overwrite": lambda: obstore.put_async(foreign, "secret", b"x", use_multipart=False),
            "delete": lambda: obstore.delete_async(foreign, "secret"),
            "copy within": lambda: obstore.copy_async(foreign, "secret", "planted"),
        }
        for name, attempt in attempts.items():
            with pytest.raises(BaseError) as caught:
                await attempt()
                pytest.fail(f"the server allowed: {name}")
            # obstore has a class for it in some calls only; elsewhere it repeats the server's words.
            assert isinstance(caught.value, PermissionDeniedError) or "AccessDenied" in str(caught.value)
        assert await bucket.get("secret") == b"ours"
        assert [entry.key async for entry in bucket.list()] == ["secret"]


async def test_the_server_refuses_what_obstore_has_no_call_for(s3: testbed.Server, projects: Projects) -> None:
    ours, theirs = projects["leak"], projects["leak2"]
    async with S3Bucket(url(s3, ours), project="leak") as bucket:
        await bucket.put("secret", b"ours")
        own, foreign = requests_of(s3, theirs, "leak2"), requests_of(s3, theirs, "leak")
        source = {"x-amz-copy-source": foreign.path("secret")}
        traversal = {"x-amz-copy-source": "/leak2/../leak/secret"}
        policy = b'{"Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::leak/*"}]}'
        attempts: list[Callable[[], Awaitable[Any]]] = [
            lambda: own.send("PUT", "stolen", headers=source),
            lambda: own.send("PUT", "stolen", headers=traversal),
            lambda: own.send("GET", "../leak/secret"),
            lambda: foreign.send("POST", "planted", query={"uploads": ""}),
            lambda: foreign.send("GET", query={"uploads": ""}),
            lambda: foreign.send("PUT", query={"policy": ""}, content=policy),
            lambda: foreign.send("GET", query={"policy": ""}),
            lambda: foreign.send("PUT", query={"acl": ""}, headers={"x-amz-acl": "public-read-write"}),
            lambda: foreign.send("DELETE"),
        ]
        for number, attempt in enumerate(attempts):
            with pytest.raises((AccessDenied, NotFound, InvalidInput, BackendError)) as caught:
                await attempt()
                pytest.fail(f"the server allowed attempt {number}")
            assert not isinstance(caught.value, Unavailable)
        server = requests_of(s3, theirs, "")
        assert texts(await server.send("GET"), "Name") == ["leak2"], "a neighbour's bucket is listed"
        for request in (own, foreign, server):
            await request.close()
        assert [entry.key async for entry in bucket.list()] == ["secret"]


async def test_a_service_has_no_administrators_rights(s3: testbed.Server, projects: Projects) -> None:
    server = requests_of(s3, projects["leak"], "")
    user = b"<Account><Access>evil</Access><Secret>evilevilevil</Secret><Role>admin</Role></Account>"
    for path, query, content in (
        ("create-user", {}, user),
        ("update-user", {"access": "leak2"}, b"<MutableProps><Secret>stolen-secret</Secret></MutableProps>"),
        ("delete-user", {"access": "leak2"}, b""),
        ("list-users", {}, b""),
        ("change-bucket-owner", {"bucket": "leak2", "owner": "leak"}, b""),
    ):
        with pytest.raises(PermissionDenied):
            await server.send("PATCH", path, query=query, content=content)
    await server.close()


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
