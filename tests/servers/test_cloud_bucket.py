"""What the bucket in Azure Blob Storage does beyond the contract, seen at its emulator."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import sys
from collections.abc import AsyncIterator

import httpx
import pytest

import azure_bed
import testbed
from azure_bed import CloudProject
from kmp_core.errors import (
    AccessDenied,
    BackendError,
    ConfigurationError,
    Conflict,
    Corrupt,
    DeadlineExceeded,
    InvalidInput,
    KmpError,
    NotFound,
    Unsupported,
)
from kmp_storage.bucket.cloud import CloudBucket, CloudSettings
from kmp_storage.bucket.server_url import ServerUrl
from relay import Relay

MIB = 1 << 20
LARGE = bytes(range(256)) * (3 * MIB // 256) + b"end"


@pytest.fixture
async def project(azurite: testbed.Server) -> AsyncIterator[CloudProject]:
    async with azure_bed.own_project(azurite) as made:
        yield made


async def slices(content: bytes, size: int = MIB // 2 - 7) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


# Large objects


async def test_a_long_stream_goes_up_in_parts_and_comes_back_whole(project: CloudProject) -> None:
    async with project.bucket() as bucket:
        entry = await bucket.put("large", slices(LARGE), content_type="text/x", metadata={"a": "ü"})
        assert (entry.size, entry.checksum) == (len(LARGE), None)
        assert await bucket.head("large") == entry
        blocks = await project.send("GET", "large", query="comp=blocklist")
        assert blocks.text.count("<Block>") == 4, "it did not go up in four parts"
        assert await bucket.get("large") == LARGE
        assert b"".join([chunk async for chunk in bucket.stream("large", chunk=700_001)]) == LARGE
        copy = await bucket.copy("large", "copy")
        assert (copy.size, copy.content_type, copy.metadata) == (len(LARGE), "text/x", {"a": "ü"})
        await bucket.put("edge", slices(LARGE[:MIB]))
        assert await bucket.get("edge") == LARGE[:MIB]


async def test_bytes_go_up_in_one_request_with_a_checksum_and_a_condition(project: CloudProject) -> None:
    async with project.bucket() as bucket:
        entry = await bucket.put("key", LARGE, if_absent=True)
        assert entry.checksum == hashlib.sha256(LARGE).hexdigest()
        blocks = await project.send("GET", "key", query="comp=blocklist")
        assert "<Block>" not in blocks.text
        with pytest.raises(Conflict):
            await bucket.put("key", LARGE, if_absent=True)
        await bucket.put("key", LARGE[1:], if_match=entry.etag)
        with pytest.raises(Conflict):
            await bucket.put("key", LARGE, if_match=entry.etag)
        assert await bucket.get("key") == LARGE[1:]


@pytest.mark.parametrize("condition", [{"if_absent": True}, {"if_match": "0x1.2"}])
async def test_a_condition_on_a_long_stream_is_unsupported_and_says_what_to_do(
    project: CloudProject, condition: dict[str, bool | str]
) -> None:
    async with project.bucket() as bucket:
        with pytest.raises(Unsupported, match="as bytes, or raise KMP_STORAGE_CLOUD_PART_BYTES"):
            await bucket.put("key", slices(LARGE), **condition)  # type: ignore[arg-type]
        assert await bucket.head("key") is None


async def test_a_long_stream_that_fails_leaves_what_was_there(project: CloudProject) -> None:
    begun = asyncio.Event()

    async def then_fails() -> AsyncIterator[bytes]:
        yield LARGE
        raise LookupError("the source broke")

    async def then_hangs() -> AsyncIterator[bytes]:
        yield LARGE
        begun.set()
        await asyncio.Event().wait()

    async with project.bucket() as bucket:
        for there in (None, b"old"):
            if there is not None:
                await bucket.put("key", there)
            with pytest.raises(LookupError):
                await bucket.put("key", then_fails())
            with pytest.raises(DeadlineExceeded):
                await bucket.put("key", then_hangs(), timeout=0.3)
            begun.clear()
            put = asyncio.ensure_future(bucket.put("key", then_hangs()))
            await begun.wait()
            put.cancel()
            with pytest.raises(asyncio.CancelledError):
                await put
            entry = await bucket.head("key")
            assert (None if entry is None else await bucket.get("key")) == there


async def test_a_long_stream_cancelled_at_any_point_is_whole_or_nothing(project: CloudProject) -> None:
    async with project.bucket() as bucket:
        for step in range(15):
            put = asyncio.ensure_future(bucket.put("key", slices(LARGE)))
            await asyncio.sleep(0.006 * step)
            put.cancel()
            await asyncio.gather(put, return_exceptions=True)
            if await bucket.head("key") is not None:
                assert await bucket.get("key") == LARGE
                await bucket.delete("key")


# Integrity and metadata


@pytest.mark.parametrize("content", [b"x" * 1000, LARGE], ids=["small", "large"])
async def test_content_that_is_not_what_was_put_is_never_handed_out_whole(
    project: CloudProject, content: bytes
) -> None:
    async with project.bucket() as bucket:
        await bucket.put("key", content)
        assert await bucket.get("key") == content
        head = await project.send("HEAD", "key")
        kept = {name: value for name, value in head.headers.items() if name.startswith("x-ms-meta-")}
        other = bytearray(content)
        other[500] ^= 255
        await project.send("PUT", "key", content=bytes(other), headers={"x-ms-blob-type": "BlockBlob", **kept})
        with pytest.raises(Corrupt) as caught:
            await bucket.get("key")
        assert caught.value.key == "key"
        got = 0
        with pytest.raises(Corrupt):
            async for chunk in bucket.stream("key", chunk=100):
                got += len(chunk)
        assert got < len(content)


async def test_names_of_metadata_that_azure_does_not_take_come_back_as_they_were(project: CloudProject) -> None:
    metadata = {"run-id": "1", "7": "2", "_x": "3", "_x002d_": "4", "a_b": "5", "-": "6"}
    async with project.bucket() as bucket:
        entry = await bucket.put("key", b"1", metadata=metadata)
        assert entry.metadata == metadata
        assert await bucket.head("key") == entry
        assert (await bucket.copy("key", "copy")).metadata == metadata
        head = await project.send("HEAD", "key")
        assert head.headers["x-ms-meta-run_x002d_id"] == "1"
        assert head.headers["x-ms-meta-a_b"] == "5"


async def test_objects_of_other_programs_are_read_as_they_are(project: CloudProject) -> None:
    headers = {"x-ms-blob-type": "BlockBlob", "content-type": "text/csv", "x-ms-meta-origin": "100%41"}
    await project.send("PUT", "theirs", content=b"content", headers=headers)
    async with project.bucket() as bucket:
        entry = await bucket.head("theirs")
        assert entry is not None
        assert (entry.content_type, entry.metadata, entry.checksum) == ("text/csv", {"origin": "100%41"}, None)
        assert await bucket.get("theirs") == b"content"
        assert [found async for found in bucket.list()] == [entry]
        await bucket.put("theirs", b"ours", if_match=entry.etag)
        with pytest.raises(Conflict):
            await bucket.put("theirs", b"again", if_match=entry.etag)


@pytest.mark.parametrize("metadata", [{"kmp": "1"}, {"a": "é" * 900}])
async def test_metadata_that_headers_cannot_hold_is_refused(project: CloudProject, metadata: dict[str, str]) -> None:
    async with project.bucket() as bucket:
        with pytest.raises(InvalidInput, match=r"^metadata: "):
            await bucket.put("key", b"1", metadata=metadata)
        assert await bucket.head("key") is None


async def test_lists_more_than_one_page_in_order(project: CloudProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmp_storage.bucket.cloud_objects._PAGE", 7)
    keys = [f"k/{number:03}" for number in range(40)]
    async with project.bucket() as bucket:
        await asyncio.gather(*(bucket.put(key, b"") for key in (*keys, "k-", "l/1")))
        assert [entry.key async for entry in bucket.list("k/0")] == keys
        assert [entry.key async for entry in bucket.list("k/01", limit=3)] == keys[10:13]


# Credentials


async def test_a_signed_url_gets_and_puts_one_object_until_it_expires(project: CloudProject) -> None:
    url = azure_bed.url(project.server, azure_bed.key(project.server))
    async with CloudBucket(url, project=project.name) as bucket, httpx.AsyncClient() as anyone:
        await bucket.put("a b/é%41", b"content")
        get = await bucket.sign("a b/é%41", expires="1m")
        answer = await anyone.get(get)
        assert (answer.status_code, answer.content) == (200, b"content")
        blob = {"x-ms-blob-type": "BlockBlob"}
        assert (await anyone.put(get, content=b"x", headers=blob)).status_code == 403
        assert (await anyone.get(get.replace("a%20b", "other"))).status_code == 403
        assert project.server.password not in get
        put = await bucket.sign("uploaded", expires="1m", method="PUT")
        assert (await anyone.put(put, content=b"theirs", headers=blob)).status_code == 201
        assert (await anyone.get(put)).status_code == 403
        assert await bucket.get("uploaded") == b"theirs"
        short = await bucket.sign("uploaded", expires="1s")
        async with asyncio.timeout(10):
            while (refused := (await anyone.get(short)).status_code) == 200:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.2)
        assert refused == 403


async def test_a_token_cannot_sign_and_says_what_can(project: CloudProject) -> None:
    async with project.bucket() as bucket:
        assert "sign" not in bucket.abilities
        with pytest.raises(Unsupported, match="storage account's key"):
            await bucket.sign("key", expires="1m")


@pytest.mark.parametrize("whose", ["token", "key"])
async def test_no_credential_of_the_environment_is_used(
    project: CloudProject, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    stranger = azure_bed.container_token(project.server, "another")
    monkeypatch.setenv("AZURE_STORAGE_TOKEN", "a-bearer-token")
    monkeypatch.setenv("AZURE_STORAGE_SAS_KEY", stranger)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"another").decode())
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "another")
    monkeypatch.setenv("AZURE_CONTAINER_NAME", "another")
    credential = project.token if whose == "token" else azure_bed.key(project.server)
    async with CloudBucket(azure_bed.url(project.server, credential), project=project.name) as bucket:
        await bucket.put("key", b"1")
        assert await bucket.get("key") == b"1"
    assert (await project.send("GET", "key")).content == b"1"


async def test_a_rotated_credential_is_used_without_reopening(project: CloudProject) -> None:
    current = project.token

    async def credentials() -> str:
        return current

    async with project.bucket(credentials=credentials) as bucket:
        await bucket.put("key", b"1")
        current = azure_bed.container_token(project.server, "another")

        for call in (
            *(bucket.head("key"), bucket.get("key"), bucket.put("key", b"2")),
            *(bucket.delete("key"), bucket.copy("key", "copy")),
        ):
            with pytest.raises(AccessDenied):
                await call
        current = azure_bed.key(project.server)
        assert await bucket.get("key") == b"1"


async def test_a_container_that_is_the_neighbours_or_not_there_says_so_at_open(project: CloudProject) -> None:
    async with azure_bed.own_project(project.server) as neighbour:
        foreign = CloudBucket(
            azure_bed.url(project.server, project.token, container=neighbour.name), project=project.name
        )
        with pytest.raises(AccessDenied) as refused:
            await foreign.open()
        signature = project.token.rpartition("sig=")[2]
        assert signature not in f"{refused.value} {refused.value.__cause__}"
    url = azure_bed.url(project.server, azure_bed.key(project.server), container="not-there")
    with pytest.raises(NotFound, match="provision"):
        await CloudBucket(url, project=project.name).open()
    wrong = base64.b64encode(secrets.token_bytes(32)).decode()
    with pytest.raises(AccessDenied) as caught:
        await CloudBucket(azure_bed.url(project.server, wrong), project=project.name).open()
    assert wrong not in f"{caught.value} {caught.value.__cause__}"


async def test_a_token_that_may_not_list_is_refused_at_open(project: CloudProject) -> None:
    token = azure_bed.container_token(project.server, project.name, "rwd")
    with pytest.raises(KmpError, match="may not be listed"):
        await CloudBucket(azure_bed.url(project.server, token), project=project.name).open()


@pytest.mark.parametrize(("call", "request_line"), [("put", b"PUT /"), ("copy", b"PUT /"), ("delete", b"POST /")])
async def test_a_change_whose_answer_is_lost_has_an_unknown_outcome(
    project: CloudProject, call: str, request_line: bytes
) -> None:
    async with Relay(project.server.port) as relay:
        url = azure_bed.url(project.server, azure_bed.key(project.server), port=relay.port)
        async with CloudBucket(url, project=project.name) as bucket:
            await bucket.put("source", b"1")
            calls = {
                "put": lambda: bucket.put("key", b"1", if_absent=True),
                "copy": lambda: bucket.copy("source", "key"),
                "delete": lambda: bucket.delete("source"),
            }
            relay.lose = request_line
            with pytest.raises(BackendError) as caught:
                await calls[call]()
            assert relay.lose is None, "no answer was lost"
            assert caught.value.outcome_unknown
            there = [entry.key async for entry in bucket.list()]
            assert there == ([] if call == "delete" else ["key", "source"])


ENDS_AT_ONCE = """
import asyncio, sys
from kmp_storage.bucket.cloud import CloudBucket

async def main():
    async with CloudBucket(sys.argv[1], project=sys.argv[2]) as bucket:
        await asyncio.gather(*(bucket.put(f"key/{number}", b"1") for number in range(8)))

asyncio.run(main())
"""


async def test_processes_that_end_right_after_their_last_call_end_well(project: CloudProject) -> None:
    command = (sys.executable, "-c", ENDS_AT_ONCE, project.url(), project.name)
    for _ in range(3):
        processes = [await asyncio.create_subprocess_exec(*command) for _ in range(4)]
        assert await asyncio.gather(*(process.wait() for process in processes)) == [0] * 4


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("az:", "storage account"),
        ("az://", "storage account"),
        ("az:host", "slashes"),
        ("az://store@host", "no key and no SAS token"),
        ("az://store.blob.core.windows.net", "no key and no SAS token"),
        ("az://:hunter2@host", "storage account"),
        ("az://UPPER:hunter2@host", "storage account"),
        ("http://a:hunter2@host", "begin with az://"),
        ("az://store:hunter2@host:port", "no number"),
        ("az://store:hunter2@host/one/two", "one container"),
        ("az://store:hunter2@host/UPPER", "one container"),
        ("az://store:hunter2@host/a--b", "one container"),
        ("az://store:hunter2@host/b?sig=hunter2", "no parameters"),
        ("az://store:hunter2@[::1/b", "no URL"),
    ],
)
def test_a_wrong_url_is_a_fault_of_the_configuration_that_shows_no_secret(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        CloudBucket(url, project="acme", settings=CloudSettings.load())
    assert "KMP_STORAGE_BUCKET_URL" in str(caught.value)
    assert "az://" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("project", ["ab", "a--b"])
def test_a_project_that_no_container_can_be_called_like_needs_one_in_the_url(project: str) -> None:
    with pytest.raises(ConfigurationError, match="must name a container"):
        CloudBucket("az://store:key=@host", project=project)
    assert CloudBucket("az://store:key=@host/named", project=project).address.container == "named"


async def test_a_credential_that_is_none_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigurationError, match="neither an account's key") as caught:
        await CloudBucket("az://store:hunter2!@host", project="acme").open()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "endpoint", "account"),
    [
        ("az://store.blob.core.windows.net", "https://store.blob.core.windows.net", "store"),
        ("az://store:k@store.blob.core.usgovcloudapi.net", "https://store.blob.core.usgovcloudapi.net", "store"),
        ("az+http://store@127.0.0.1:10000", "http://127.0.0.1:10000/store", "store"),
        ("az:", "https://named.blob.core.windows.net", "named"),
    ],
)
def test_the_account_is_in_the_host_or_in_the_path(url: str, endpoint: str, account: str) -> None:
    settings = CloudSettings.load(credential="key=", account="named" if url == "az:" else None)
    address = CloudBucket(url, project="acme", settings=settings).address
    assert (address.endpoint, address.account, address.container) == (endpoint, account, "acme")


def test_no_repr_shows_the_credential() -> None:
    bucket = CloudBucket("az://store:hunter2@host", project="acme")
    settings = CloudSettings.load(account="store", credential="hunter2")
    parts = ServerUrl.read("az://store:hunter2@host", schemes=("az",), prefix="", example="")
    for shown in (bucket, bucket.address, settings, parts):
        assert "hunter2" not in f"{shown!r} {shown!s}"
