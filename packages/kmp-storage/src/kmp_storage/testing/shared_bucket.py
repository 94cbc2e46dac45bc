"""What a bucket promises that several processes share; each test runs real ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from kmp_core.errors import Conflict
from kmp_core.testing import Make
from kmp_storage.protocols import Bucket
from kmp_storage.testing.bucket import BucketContract, pieces
from kmp_storage.testing.processes import child

__all__ = ["SharedBucketContract"]

_HERE = __name__


class SharedBucketContract(BucketContract):
    """`BucketContract` for a provider that declares `shared` and `durable`; define the fixture `address` too."""

    @pytest.fixture
    def address(self) -> str:
        """A URL with which the provider's `from_url` opens, in another process, the data of `make("acme")`."""
        raise NotImplementedError("define a fixture `address` that returns the URL of what `make` opens")

    async def test_declares_what_this_suite_tests(self, make: Make) -> None:
        assert {"durable", "shared"} <= make().abilities

    async def test_objects_survive_a_restart(self, make: Make) -> None:
        async with make() as bucket:
            entry = await bucket.put("key", b"kept", content_type="text/plain", metadata={"a": "b"})
        async with make() as bucket:
            assert await bucket.get("key") == b"kept"
            assert await bucket.head("key") == entry

    async def test_what_a_killed_process_put_stays(self, make: Make, address: str) -> None:
        async with make() as bucket, child(bucket, address, f"{_HERE}:put_and_wait") as other:
            assert await other.line() == "put"
            await other.kill()
            assert await bucket.get("key") == b"put"

    @pytest.mark.parametrize("old", [None, b"old"])
    async def test_a_put_killed_half_way_leaves_what_was_there(
        self, make: Make, address: str, old: bytes | None
    ) -> None:
        async with make() as bucket:
            if old is not None:
                await bucket.put("key", old)
            async with child(bucket, address, f"{_HERE}:put_half") as other:
                assert await other.line() == "half"
                await other.kill()
            if old is None:
                assert await bucket.head("key") is None
            else:
                assert await bucket.get("key") == old
        async with make() as bucket:
            assert (await bucket.head("key") is not None) == (old is not None)
            await bucket.put("key", b"new")
            assert await bucket.get("key") == b"new"

    async def test_processes_killed_at_any_point_leave_whole_objects(self, make: Make, address: str) -> None:
        async with make() as bucket:
            for moment in range(4):
                async with child(bucket, address, f"{_HERE}:put_without_end") as other:
                    assert await other.line() == "putting"
                    await asyncio.sleep(0.01 * moment)
                    await other.kill()
                async for entry in bucket.list():
                    content = await bucket.get(entry.key)
                    assert len(content) == entry.size
                    assert len(set(content)) == 1
        async with make() as bucket:
            async for entry in bucket.list():
                assert len(await bucket.get(entry.key)) == entry.size

    async def test_one_process_wins_each_conditional_put(self, make: Make, address: str) -> None:
        async with make() as bucket:
            won: Counter[str] = Counter()

            async def one(name: str) -> None:
                async with child(bucket, address, f"{_HERE}:claim_all", name) as other:
                    assert await other.line() == "ready"
                    won.update((await other.line()).split())
                    await other.end()

            async with asyncio.TaskGroup() as group:
                for name in ("one", "two", "three"):
                    group.create_task(one(name))
            assert won == Counter({f"claim/{i}": 1 for i in range(20)})

    async def test_processes_change_an_object_without_losing_a_change(self, make: Make, address: str) -> None:
        async with make() as bucket:
            await bucket.put("counter", b"0")
            async with asyncio.TaskGroup() as group:

                async def one() -> None:
                    async with child(bucket, address, f"{_HERE}:count_up") as other:
                        await other.end()

                for _ in range(3):
                    group.create_task(one())
            assert await bucket.get("counter") == b"30"


# What the other processes do


async def put_and_wait(bucket: Bucket) -> None:
    await bucket.put("key", b"put")
    _say("put")
    await asyncio.Event().wait()


async def put_half(bucket: Bucket) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        yield b"x" * 1_000_000
        _say("half")
        await asyncio.Event().wait()

    await bucket.put("key", half(), timeout="10m")


async def put_without_end(bucket: Bucket) -> None:
    _say("putting")
    for number in range(1_000_000):
        digit = b"%d" % (number % 10)
        await bucket.put(f"key/{number % 3}", pieces(digit * 100_000, digit * 50_000))
        if number % 5 == 4:
            await bucket.delete(f"key/{number % 3}")


async def claim_all(bucket: Bucket, name: str) -> None:
    _say("ready")
    won: list[str] = []
    for number in range(20):
        try:
            await bucket.put(f"claim/{number}", name.encode(), if_absent=True)
        except Conflict:
            continue
        won.append(f"claim/{number}")
    _say(" ".join(won) or " ")


async def count_up(bucket: Bucket) -> None:
    done = 0
    while done < 10:
        entry = await bucket.head("counter")
        assert entry is not None
        value = int(await bucket.get("counter"))
        try:
            await bucket.put("counter", b"%d" % (value + 1), if_match=entry.etag)
        except Conflict:
            continue
        done += 1


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the other end of a pipe
