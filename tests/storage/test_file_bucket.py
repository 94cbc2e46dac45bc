"""What the embedded bucket does beyond the contract: links, damage, leftovers, full disks, flat memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kmp_core.errors import ConfigurationError, Corrupt, InvalidInput, NotFound, PermissionDenied, Unavailable
from kmp_storage.embedded.bucket import BucketSettings, FileBucket
from kmp_storage.testing.bucket import pieces
from kmp_storage.testing.processes import child
from small_disks import mounted

MIB = 1 << 20


def stored(directory: Path) -> list[Path]:
    return sorted(path for part in ("incoming", "objects") for path in (directory / "bucket" / part).iterdir())


async def nothing_more_than(directory: Path, count: int) -> None:
    assert len(await asyncio.to_thread(stored, directory)) == count


# Links and damage


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
@pytest.mark.parametrize("original", [b"hello", b""])
async def test_what_is_planted_in_the_store_is_not_followed(tmp_path: Path, kind: str, original: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * len(original))
    async with FileBucket(directory=tmp_path) as bucket:
        await bucket.put("key", original)
        (content,) = stored(tmp_path)
        content.unlink()
        if kind == "link":
            content.symlink_to(secret)
        elif kind == "directory":
            content.mkdir()
        else:
            os.mkfifo(content)
        for call in (bucket.get("key"), anext(bucket.stream("key", chunk=1)), bucket.copy("key", "other")):
            with pytest.raises(Corrupt):
                await call
        await bucket.put("key", b"again")
        assert await bucket.get("key") == b"again"
    assert secret.read_bytes() == b"x" * len(original)


async def test_a_store_whose_directory_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bucket" / "objects").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Corrupt, match="link"):
        await FileBucket(directory=tmp_path).open()


async def test_links_among_the_leftovers_are_left_alone(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"kept")
    async with FileBucket(directory=tmp_path):
        pass
    (tmp_path / "bucket" / "incoming" / ("0" * 32)).symlink_to(secret)
    (tmp_path / "bucket" / "incoming" / "notes.txt").write_text("somebody's")
    async with FileBucket(directory=tmp_path) as bucket:
        await bucket.check()
    assert secret.read_bytes() == b"kept"
    await nothing_more_than(tmp_path, 2)


@pytest.mark.parametrize("damage", ["flipped", "shorter", "longer", "gone"])
async def test_damaged_content_is_never_handed_out(tmp_path: Path, damage: str) -> None:
    async with FileBucket(directory=tmp_path) as bucket:
        await bucket.put("key", b"a" * 1000)
        (content,) = stored(tmp_path)
        data = {"flipped": b"a" * 999 + b"b", "shorter": b"a" * 999, "longer": b"a" * 1001}.get(damage)
        content.unlink() if data is None else content.write_bytes(data)
        got = b""
        with pytest.raises(Corrupt, match="key"):
            await bucket.get("key")
        with pytest.raises(Corrupt):
            async for chunk in bucket.stream("key", chunk=100):
                got += chunk
        assert len(got) < 1000, "the last chunk came although the checksum is wrong"
        with pytest.raises(Corrupt):
            await bucket.copy("key", "copy")
        assert await bucket.head("copy") is None
        assert content.exists() == (damage != "gone")


async def test_a_damaged_index_is_reported_and_left_alone(tmp_path: Path) -> None:
    index = tmp_path / "bucket" / "index.db"
    index.parent.mkdir()
    index.write_bytes(b"no index" * 1000)
    with pytest.raises(Corrupt):
        await FileBucket(directory=tmp_path).open()
    assert index.read_bytes() == b"no index" * 1000


async def test_another_projects_store_is_refused(tmp_path: Path) -> None:
    async with FileBucket(project="acme", directory=tmp_path) as bucket:
        await bucket.put("key", b"1")
    with pytest.raises(PermissionDenied):
        await FileBucket(project="acme2", directory=tmp_path).open()


async def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="for example"):
        await FileBucket(f"file:{tmp_path}/file/bucket").open()


async def test_the_store_is_private_to_its_user(tmp_path: Path) -> None:
    async with FileBucket(directory=tmp_path / "new") as bucket:
        await bucket.put("key", b"1")
        for path in (tmp_path / "new", tmp_path / "new/bucket", *stored(tmp_path / "new")):
            assert path.stat().st_mode & 0o077 == 0, path


# What is left behind


@pytest.mark.parametrize("part", ["objects", "incoming"])
async def test_a_store_that_was_removed_fails_its_check(tmp_path: Path, part: str) -> None:
    async with FileBucket(directory=tmp_path) as bucket:
        await bucket.put("key", b"1")
        await bucket.check()
        shutil.rmtree(tmp_path / "bucket" / part)
        with pytest.raises(Unavailable, match="was removed while it was in use"):
            await bucket.check()


async def test_replaced_deleted_and_failed_puts_leave_no_file(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise LookupError

    async with FileBucket(directory=tmp_path) as bucket:
        for _ in range(5):
            await bucket.put("key", b"1")
            with pytest.raises(LookupError):
                await bucket.put("key", broken())
        await bucket.put("other", b"1")
        await bucket.delete("other")
        await nothing_more_than(tmp_path, 1)
        for turns in range(30):
            put = asyncio.ensure_future(bucket.put("cancelled", b"x" * 1000))
            await asyncio.sleep(0.0003 * turns)
            put.cancel()
            await asyncio.gather(put, return_exceptions=True)
        await bucket.delete("cancelled")
    await nothing_more_than(tmp_path, 1)


async def test_leftovers_of_the_killed_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    here = "kmp_storage.testing.shared_bucket:put_half"
    address = f"file:{tmp_path}/bucket"
    living = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"first "
        await living.wait()
        yield b"second"

    async with FileBucket(address, project="acme") as bucket:
        put = asyncio.ensure_future(bucket.put("slow", slow()))
        async with child(bucket, address, here) as other:
            assert await other.line() == "half"
            await nothing_more_than(tmp_path, 2)
            await other.kill()
        async with FileBucket(address, project="acme"):
            await nothing_more_than(tmp_path, 1)
        living.set()
        await put
        assert await bucket.get("slow") == b"first second"


async def test_a_content_named_but_not_yet_moved_is_read_and_then_moved(tmp_path: Path) -> None:
    async with FileBucket(directory=tmp_path) as bucket:
        await bucket.put("key", b"1")
        (content,) = stored(tmp_path)
        content.rename(
            tmp_path / "bucket" / "incoming" / content.name
        )  # as a process killed after its commit leaves it
        assert await bucket.get("key") == b"1"
    async with FileBucket(directory=tmp_path) as bucket:
        assert content.exists()
        assert await bucket.get("key") == b"1"


async def test_a_reader_that_comes_between_a_replacement_and_its_removal_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileBucket(directory=tmp_path) as bucket:
        await bucket.put("key", b"old")
        loop, real = asyncio.get_running_loop(), bucket._blobs.read

        def late(name: str) -> object:
            monkeypatch.undo()
            # The entry was read; before its content is opened, the object is replaced.
            asyncio.run_coroutine_threadsafe(bucket.put("key", b"new"), loop).result(20)
            return real(name)

        monkeypatch.setattr(bucket._blobs, "read", late)
        assert await bucket.get("key") == b"new"


async def test_a_put_that_was_swept_away_is_told(tmp_path: Path) -> None:
    async def sweeping() -> AsyncIterator[bytes]:
        yield b"x"
        for path in stored(tmp_path):
            path.unlink()
        yield b"y"

    async with FileBucket(directory=tmp_path) as bucket:
        with pytest.raises(Unavailable, match="swept"):
            await bucket.put("key", sweeping())
        assert await bucket.head("key") is None


async def test_the_content_of_what_expired_is_removed_by_the_next_write_or_open(tmp_path: Path) -> None:
    async def gone(bucket: FileBucket) -> None:
        async with asyncio.timeout(20):
            while await bucket.head("over") is not None:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)

    for write in (True, False):
        async with FileBucket(directory=tmp_path) as bucket:
            await bucket.put("over", b"1", expires="100ms")
            await gone(bucket)
            if write:
                await bucket.put("kept", b"2")
                await nothing_more_than(tmp_path, 1)
    async with FileBucket(directory=tmp_path) as bucket:
        await nothing_more_than(tmp_path, 1)
        assert await bucket.get("kept") == b"2"


async def test_a_put_over_what_expired_leaves_no_content_of_it(tmp_path: Path) -> None:
    async with FileBucket(directory=tmp_path) as bucket:
        for number in range(120):  # more than one write forgets
            await bucket.put(f"k/{number:03}", b"", expires="1d")
        with contextlib.closing(sqlite3.connect(tmp_path / "bucket" / "index.db")) as connection, connection:
            connection.execute("UPDATE object SET expires = 1")
        await bucket.put("k/119", b"new", if_absent=True)
        assert not await bucket.delete("k/000")
        assert [entry.key async for entry in bucket.list()] == ["k/119"]
        await nothing_more_than(tmp_path, 1)


# Limits


async def test_an_object_beyond_the_limit_leaves_nothing(tmp_path: Path) -> None:
    settings = BucketSettings.load(max_object_bytes=1000)
    async with FileBucket(directory=tmp_path, settings=settings) as bucket:
        await bucket.put("key", b"x" * 1000)
        for content in (b"x" * 1001, pieces(b"x" * 600, b"x" * 600)):
            with pytest.raises(InvalidInput, match="KMP_STORAGE_BUCKET_MAX_OBJECT_BYTES"):
                await bucket.put("key", content)
        assert len(await bucket.get("key")) == 1000
        await nothing_more_than(tmp_path, 1)


async def test_a_memory_bucket_has_an_end_and_gives_room_back() -> None:
    settings = BucketSettings.load(max_memory_bytes=10_000)
    async with FileBucket("memory:", settings=settings) as bucket:
        for _ in range(5):
            await bucket.put("key", b"x" * 4000)
            with pytest.raises(Unavailable, match="KMP_STORAGE_BUCKET_MAX_MEMORY_BYTES"):
                await bucket.put("other", pieces(b"x" * 4000, b"x" * 4000))
        assert await bucket.get("key") == b"x" * 4000
        await bucket.delete("key")
        await bucket.put("other", b"x" * 10_000)


async def test_streams_have_flat_memory(tmp_path: Path) -> None:
    async def large() -> AsyncIterator[bytes]:
        for number in range(64):
            yield bytes((number,)) * MIB

    async with FileBucket(directory=tmp_path) as bucket:
        tracemalloc.start()
        try:
            entry = await bucket.put("large", large())
            await bucket.copy("large", "copy")
            size = 0
            async for chunk in bucket.stream("copy"):
                size += len(chunk)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert size == entry.size == 64 * MIB
    assert peak < 24 * MIB


async def test_a_list_has_flat_memory_and_sees_every_key(tmp_path: Path) -> None:
    async with FileBucket("memory:") as bucket:
        for number in range(1200):
            await bucket.put(f"k/{number:05}", b"")
        keys = [entry.key async for entry in bucket.list("k/")]
        assert keys == [f"k/{number:05}" for number in range(1200)]
        assert len([entry async for entry in bucket.list(limit=501)]) == 501


async def test_files_are_read_and_written_off_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    threads = set()
    for name in ("fsync", "read", "write", "rename", "unlink"):
        real = getattr(os, name)

        def watched(*arguments: object, real: object = real, **named: object) -> object:
            threads.add(threading.current_thread().name.split("_")[0])
            return real(*arguments, **named)  # type: ignore[operator]

        monkeypatch.setattr(os, name, watched)
    async with FileBucket(directory=tmp_path) as bucket:
        await bucket.put("key", b"x")
        await bucket.put("key", b"y")
        await bucket.get("key")
        await bucket.delete("key")
    monkeypatch.undo()
    assert "kmp-bucket" in threads
    assert "MainThread" not in threads


async def test_content_and_its_directory_reach_the_disk_before_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    async with FileBucket(directory=tmp_path) as bucket:
        monkeypatch.setattr(os, "fsync", watched)
        entry = await bucket.put("key", b"x")
    incoming = f"{tmp_path}/bucket/incoming"
    assert synced == [f"{incoming}/{entry.etag}", incoming]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four mebibytes."""
    with mounted(tmp_path / "small", "size=4m") as place:
        yield place


async def test_a_full_disk_is_a_typed_error_and_nothing_is_lost(small_disk: Path) -> None:
    async with FileBucket(directory=small_disk) as bucket:
        await bucket.put("first", b"a" * MIB)
        for content in (b"x" * 5 * MIB, pieces(*[b"x" * MIB] * 5)):
            with pytest.raises(Unavailable, match="full"):
                await bucket.put("large", content)
            with pytest.raises(Unavailable, match="full"):
                await bucket.put("first", b"x" * 5 * MIB)
        assert await bucket.get("first") == b"a" * MIB
        with pytest.raises(NotFound):
            await bucket.get("large")
        await nothing_more_than(small_disk, 1)
        await bucket.put("fits", b"b" * MIB)
    async with FileBucket(directory=small_disk) as bucket:
        assert await bucket.get("first") == b"a" * MIB
        assert await bucket.get("fits") == b"b" * MIB


async def test_a_disk_without_room_for_the_index_loses_nothing(small_disk: Path) -> None:
    async with FileBucket(directory=small_disk) as bucket:
        await bucket.put("first", b"a" * 1000)
        filler = small_disk / "filler"
        filler.write_bytes(b"")
        with contextlib.suppress(OSError):
            while True:
                with filler.open("ab", buffering=0) as file:
                    file.write(b"x" * 4096)
        failed = 0
        for number in range(200):
            try:
                await bucket.put(f"tiny/{number}", b"", metadata={"a": "x" * 2000})
            except Unavailable:
                failed += 1
        assert failed
        assert await bucket.get("first") == b"a" * 1000
        filler.unlink()
        await bucket.put("after", b"there is room again")
    async with FileBucket(directory=small_disk) as bucket:
        assert await bucket.get("first") == b"a" * 1000
        assert await bucket.get("after") == b"there is room again"
        assert len([entry async for entry in bucket.list("tiny/")]) == 200 - failed


@pytest.mark.parametrize("url", ["s3://bucket", "file", "", "memory"])
def test_a_url_of_another_scheme_is_refused(url: str):
    with pytest.raises(ConfigurationError, match=r"url: must begin with 'file:' or 'memory:'"):
        FileBucket(url)


def test_a_url_with_a_host_is_refused_and_told_its_right_form():
    with pytest.raises(ConfigurationError, match=r"names a host.*file:///absolute/path or file:relative/path"):
        FileBucket("file://data/bucket")


async def test_a_space_in_a_url_is_written_as_in_every_url(tmp_path: Path):
    async with FileBucket(f"file://{tmp_path}/a%20b") as bucket:
        await bucket.put("key", b"1")
    assert (tmp_path / "a b" / "index.db").exists()


async def test_every_directory_that_is_made_is_its_owners_alone(tmp_path: Path):
    async with FileBucket(f"file:{tmp_path}/above/bucket"):
        pass
    for directory in ("above", "above/bucket", "above/bucket/objects"):
        assert (tmp_path / directory).stat().st_mode & 0o777 == 0o700
