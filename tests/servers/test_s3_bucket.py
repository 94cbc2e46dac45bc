"""What the S3 bucket does beyond the contract, seen at the server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import obstore
import pytest
from obstore.store import S3Store

import s3_bed
import testbed
from kmp_core.errors import (
    AccessDenied,
    BackendError,
    ConfigurationError,
    Conflict,
    Corrupt,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Unauthenticated,
)
from kmp_storage.bucket import S3Bucket, S3Settings
from kmp_storage.bucket.provisioning import VersityProvisioner
from kmp_storage.bucket.signing import AccessKey
from s3_bed import SMALL_PARTS, S3Project

MIB = 1 << 20
LARGE = bytes(range(256)) * (12 * MIB // 256) + b"end"


@pytest.fixture
async def project(s3: testbed.Server) -> AsyncIterator[S3Project]:
    async with s3_bed.own_project(s3) as made:
        yield made


async def slices(content: bytes, size: int = MIB - 7) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def until_no_upload(project: S3Project) -> None:
    async with asyncio.timeout(20):
        while await project.uploads():  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.05)


# Large objects


async def test_a_large_object_goes_up_in_parts_and_comes_back_verified(project: S3Project) -> None:
    async with project.bucket() as bucket:
        entry = await bucket.put("large", slices(LARGE), content_type="text/x", metadata={"a": "ü"})
        assert entry.size == len(LARGE)
        assert await bucket.head("large") == entry
        head = await project.requests.send("HEAD", "large", headers={"x-amz-checksum-mode": "ENABLED"})
        assert head.headers["x-amz-checksum-sha256"].endswith("-3"), "it did not go up in three parts"
        assert await bucket.get("large") == LARGE
        assert b"".join([chunk async for chunk in bucket.stream("large", chunk=700_001)]) == LARGE
        copy = await bucket.copy("large", "copy")
        assert (copy.content_type, copy.metadata) == ("text/x", {"a": "ü"})
        assert await bucket.get("copy") == LARGE
        await bucket.put("bytes", LARGE)
        assert await bucket.get("bytes") == LARGE
        await bucket.put("edge", LARGE[: 5 * MIB])
        assert await bucket.get("edge") == LARGE[: 5 * MIB]
    assert await project.uploads() == []


async def test_conditions_hold_for_large_objects_too(project: S3Project) -> None:
    async with project.bucket() as bucket:
        puts = (bucket.put("key", slices(LARGE + bytes((i,))), if_absent=True) for i in range(3))
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["BucketEntry", "Conflict", "Conflict"]
        seen = await bucket.head("key")
        assert seen is not None
        await bucket.put("key", slices(LARGE), if_match=seen.etag)
        for key in ("key", "absent"):
            with pytest.raises(Conflict):
                await bucket.put(key, slices(LARGE), if_match=seen.etag)
        assert await bucket.get("key") == LARGE
    assert await project.uploads() == []


async def test_a_large_put_that_fails_leaves_nothing_at_the_server(project: S3Project) -> None:
    async def then_fails() -> AsyncIterator[bytes]:
        yield LARGE
        raise LookupError("the source broke")

    async def then_hangs() -> AsyncIterator[bytes]:
        yield LARGE
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    async with project.bucket() as bucket:
        with pytest.raises(LookupError):
            await bucket.put("key", then_fails())
        assert await project.uploads() == []
        with pytest.raises(DeadlineExceeded):
            await bucket.put("key", then_hangs(), timeout=1)
        await until_no_upload(project)  # a call whose time is over does not wait for its clean-up
        begun.clear()
        put = asyncio.ensure_future(bucket.put("key", then_hangs()))
        await begun.wait()
        while not await project.uploads():  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        assert await project.uploads() == []
        assert await bucket.head("key") is None


async def test_a_large_put_cancelled_at_any_point_is_whole_or_nothing(project: S3Project) -> None:
    async with project.bucket() as bucket:
        for step in range(25):
            put = asyncio.ensure_future(bucket.put("key", slices(LARGE)))
            await asyncio.sleep(0.006 * step)
            put.cancel()
            await asyncio.gather(put, return_exceptions=True)
            if await bucket.head("key") is not None:
                assert await bucket.get("key") == LARGE
                await bucket.delete("key")
        await until_no_upload(project)


async def test_uploads_of_killed_processes_are_removed_when_they_are_old(project: S3Project) -> None:
    await project.requests.send("POST", "left", query={"uploads": ""})
    async with project.bucket():
        assert await project.uploads() == ["left"], "a young upload may be alive"
    old = SMALL_PARTS.model_copy(update={"abandoned_after": timedelta(seconds=-5)})
    async with project.bucket(settings=old):
        assert await project.uploads() == []


# Integrity


@pytest.mark.parametrize("content", [b"x" * 1000, LARGE], ids=["small", "in parts"])
async def test_a_damaged_object_is_never_handed_out_whole(project: S3Project, content: bytes) -> None:
    async with project.bucket() as bucket:
        await bucket.put("key", content)
        assert await bucket.get("key") == content
        project.damage("key", 500)
        with pytest.raises(Corrupt) as caught:
            await bucket.get("key")
        assert caught.value.key == "key"
        got = 0
        with pytest.raises(Corrupt):
            async for chunk in bucket.stream("key", chunk=100):
                got += len(chunk)
        assert got < len(content)
        assert await bucket.head("key") is not None, "the damaged object was removed"


async def test_the_server_refuses_content_that_was_changed_on_its_way(project: S3Project) -> None:
    with pytest.raises(BackendError):
        await project.requests.send("PUT", "key", content=b"changed", headers={"x-amz-checksum-sha256": "A" * 43 + "="})
    assert await project.bucket_is_empty()


ENDS_AT_ONCE = """
import asyncio, sys
from kmp_storage.bucket import S3Bucket

async def main():
    async with S3Bucket(sys.argv[1], project=sys.argv[2]) as bucket:
        await asyncio.gather(*(bucket.head(f"key/{number}") for number in range(8)))

asyncio.run(main())
"""


async def test_processes_that_end_right_after_their_last_call_end_well(project: S3Project) -> None:
    command = (sys.executable, "-c", ENDS_AT_ONCE, project.url(), project.name)
    for _ in range(5):
        processes = [await asyncio.create_subprocess_exec(*command) for _ in range(4)]
        assert await asyncio.gather(*(process.wait() for process in processes)) == [0] * 4


# Signed URLs


async def test_a_signed_url_gets_and_puts_one_object_until_it_expires(project: S3Project) -> None:
    async with project.bucket() as bucket, httpx.AsyncClient() as anyone:
        await bucket.put("a b/é%41", b"content", content_type="text/plain")
        get = await bucket.sign("a b/é%41", expires="1m")
        answer = await anyone.get(get)
        assert (answer.status_code, answer.content) == (200, b"content")
        assert (await anyone.put(get, content=b"x")).status_code == 403
        assert (await anyone.get(get.replace("a%20b", "other"))).status_code == 403
        assert project.key.secret not in get
        put = await bucket.sign("uploaded", expires="1m", method="PUT")
        assert (await anyone.put(put, content=b"theirs")).status_code == 200
        assert (await anyone.get(put)).status_code == 403
        assert await bucket.get("uploaded") == b"theirs"
        short = await bucket.sign("uploaded", expires="1s")
        async with asyncio.timeout(10):
            while (refused := (await anyone.get(short)).status_code) == 200:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.2)
        assert refused == 403
        assert await bucket.get("uploaded") == b"theirs"


@pytest.mark.parametrize("expires", ["0s", "8d", None, "soon"])
async def test_a_signature_needs_a_sensible_end(project: S3Project, expires: str | None) -> None:
    async with project.bucket() as bucket:
        with pytest.raises(InvalidInput, match=r"^expires: "):
            await bucket.sign("key", expires=expires)


# Other programs, metadata, credentials


async def test_objects_of_other_programs_are_read_as_they_are(project: S3Project) -> None:
    bare = S3Store(
        project.name,
        endpoint=f"http://{project.server.address}",
        region="us-east-1",
        access_key_id=project.key.name,
        secret_access_key=project.key.secret,
        client_options={"allow_http": True},
    )
    attributes = {"Content-Type": "text/csv", "origin": "100%41"}
    await obstore.put_async(bare, "theirs", b"content", attributes=attributes)
    async with project.bucket() as bucket:
        entry = await bucket.head("theirs")
        assert entry is not None
        assert (entry.content_type, entry.metadata, entry.checksum) == ("text/csv", {"origin": "100%41"}, None)
        assert await bucket.get("theirs") == b"content"
        assert [found async for found in bucket.list()] == [entry]
        copy = await bucket.copy("theirs", "copy")
        assert (copy.content_type, copy.metadata) == ("text/csv", {"origin": "100%41"})
        await bucket.put("theirs", b"ours", if_match=entry.etag)
        with pytest.raises(Conflict):
            await bucket.put("theirs", b"again", if_match=entry.etag)
        result = await obstore.get_async(bare, "theirs")
        assert bytes(await result.bytes_async()) == b"ours"


@pytest.mark.parametrize(
    "mark",
    [
        f"1;v;{'9' * 30};;;1",
        f"1;v;{'9' * 18};;;1",
        f"1;v;{'9' * 1800};;;1",
        f"1;v;1;;{'9' * 1800};1",
        "1;v;1;no hex;;1",
        f"1;v;1;{'a' * 63};;1",
        f"1;v;1;{'A b ' * 16};;1",
        ";;;;;",
        "1",
    ],
    ids=ascii,
)
async def test_a_mark_that_is_none_of_ours_hides_no_object(project: S3Project, mark: str) -> None:
    await project.requests.send("PUT", "theirs", content=b"content", headers={"x-amz-meta-kmp": mark})
    async with project.bucket() as bucket:
        entry = await bucket.head("theirs")
        assert entry is not None
        assert (entry.size, entry.checksum) == (7, None)
        assert [found async for found in bucket.list()] == [entry]
        assert await bucket.get("theirs") == b"content"


@pytest.mark.parametrize("metadata", [{"kmp": "1"}, {"a": "é" * 900}])
async def test_metadata_that_headers_cannot_hold_is_refused(project: S3Project, metadata: dict[str, str]) -> None:
    async with project.bucket() as bucket:
        with pytest.raises(InvalidInput, match=r"^metadata: "):
            await bucket.put("key", b"1", metadata=metadata)
        assert await bucket.head("key") is None


async def test_lists_more_than_one_page_in_order(project: S3Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmp_storage.bucket.s3._PAGE", 20)
    keys = [f"k/{number:04}" for number in range(70)]
    gate = asyncio.Semaphore(16)

    async def put(key: str) -> None:
        async with gate:
            await project.requests.send("PUT", key)

    await asyncio.gather(*map(put, keys))
    async with project.bucket() as bucket:
        assert [entry.key async for entry in bucket.list("k/")] == keys


async def test_a_rotated_secret_is_used_without_reopening(project: S3Project) -> None:
    current = project.key

    async def keys() -> AccessKey:
        return current

    async with project.bucket(keys=keys) as bucket:
        await bucket.put("key", b"1")
        assert await bucket.get("key") == b"1"
        async with VersityProvisioner(s3_bed.admin_url(project.server)) as provisioner:
            new = await provisioner.provision(project.name)
        with pytest.raises(Unauthenticated):
            await bucket.put("key", b"2")
        for call in (bucket.get, bucket.head, bucket.delete):
            with pytest.raises(AccessDenied):
                await call("key")
        current = new
        await bucket.put("key", b"2")
        assert await bucket.get("key") == b"2"


async def test_a_large_content_is_refused_for_its_reason(project: S3Project) -> None:
    # The server answers before it has read it, and closes the connection.
    content = b"x" * (8 * MIB - 1)
    async with project.bucket(settings=S3Settings.load()) as bucket:
        seen = await bucket.put("key", b"old")
        await bucket.put("key", b"now")
        for _ in range(3):
            with pytest.raises(Conflict):
                await bucket.put("key", content, if_absent=True)
            with pytest.raises(Conflict):
                await bucket.put("key", content, if_match=seen.etag)
        async with VersityProvisioner(s3_bed.admin_url(project.server)) as provisioner:
            await provisioner.provision(project.name)
        with pytest.raises(AccessDenied):
            await bucket.put("key", content)


async def test_a_bucket_that_is_not_there_says_what_to_do(project: S3Project) -> None:
    missing = S3Bucket(f"{s3_bed.admin_url(project.server)}/not-there", project=project.name)
    with pytest.raises(NotFound, match="provision"):
        await missing.open()


@pytest.mark.parametrize(
    "url",
    [
        "s3:",
        "s3://",
        "s3:host",
        "s3://hunter2@host",
        "s3://:hunter2@host",
        "http://a:hunter2@host",
        "s3://a:hunter2@host:port",
        "s3://a:hunter2@host/one/two",
        "s3://a:hunter2@host/UPPER",
        "s3://a:hunter2@host/b?region=x",
        "s3://a:hunter2@[::1/b",
    ],
)
def test_a_wrong_url_is_a_fault_of_the_configuration_that_shows_no_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        S3Bucket(url, settings=S3Settings.load())
    assert "KMP_STORAGE_BUCKET_URL" in str(caught.value)
    assert "s3://" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_no_repr_shows_the_secret() -> None:
    bucket = S3Bucket("s3://name:hunter2@host", project="acme")
    settings = S3Settings.load(access_key="name", secret_key="hunter2")
    for shown in (bucket, bucket.address, settings, AccessKey("name", "hunter2")):
        assert "hunter2" not in f"{shown!r} {shown!s}"
