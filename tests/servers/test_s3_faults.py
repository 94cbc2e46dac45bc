"""The S3 bucket behind a slow, silent and killed server: bounded, typed, never a wrong answer, and used again after."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import faults
import s3_bed
import testbed
from kmp_core.errors import BackendError, DeadlineExceeded, KmpError
from relay import Relay
from s3_bed import SMALL_PARTS, S3Project

MIB = 1 << 20
STALL_SECONDS = 0.5
"""What two busy cores may add to a deadline; behind a black hole the alternative is for ever."""


@pytest.fixture
async def project(s3: testbed.Server) -> AsyncIterator[S3Project]:
    async with s3_bed.own_project(s3) as made:
        yield made


async def parts(content: bytes, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield content


async def consume(chunks: AsyncIterator[Any]) -> None:
    async for _ in chunks:
        continue


async def until(works: Callable[[], Awaitable[Any]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            await works()
        except KmpError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)
        else:
            return


async def test_every_call_ends_in_time_behind_a_black_hole(project: S3Project, proxies: faults.Proxies) -> None:
    with proxies.before(project.server) as proxy:
        async with project.bucket(port=proxy.port) as bucket:
            await bucket.put("key", b"1")
            proxy.black_hole()
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "put": lambda: bucket.put("key", b"2", timeout=0.5),
                "conditional put": lambda: bucket.put("new", b"2", if_absent=True, timeout=0.5),
                "large put": lambda: bucket.put("large", parts(b"x" * MIB, 7), timeout=0.5),
                "put of many bytes": lambda: bucket.put("large", b"x" * (7 * MIB), timeout=0.5),
                "get": lambda: bucket.get("key", timeout=0.5),
                "stream": lambda: consume(bucket.stream("key", timeout=0.5)),
                "head": lambda: bucket.head("key", timeout=0.5),
                "list": lambda: consume(bucket.list(timeout=0.5)),
                "copy": lambda: bucket.copy("key", "copy", timeout=0.5),
                "delete": lambda: bucket.delete("key", timeout=0.5),
            }
            for name, call in calls.items():
                began = time.monotonic()
                with pytest.raises(BackendError):
                    await call()
                assert time.monotonic() - began < 0.5 + STALL_SECONDS, name
            proxy.heal()
            await until(lambda: bucket.get("key"), 5)
            assert await bucket.get("key") in {b"1", b"2"}


async def test_a_put_in_parts_that_is_caught_half_way_ends_in_time(project: S3Project, proxies: faults.Proxies) -> None:
    began = 0.0
    with proxies.before(project.server) as proxy:

        async def caught() -> AsyncIterator[bytes]:
            nonlocal began
            yield b"x" * (6 * MIB)
            while not await project.uploads():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            proxy.black_hole()
            began = time.monotonic()
            yield b"x" * (6 * MIB)

        async with project.bucket(port=proxy.port) as bucket:
            with pytest.raises(BackendError):
                await bucket.put("large", caught(), timeout=1)
            # Its own clean-up does not hold it up.
            assert time.monotonic() - began < 1 + STALL_SECONDS
            proxy.heal()
            async with asyncio.timeout(60):
                while await project.uploads():  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.05)


async def test_a_download_that_stops_half_way_ends_in_time(project: S3Project) -> None:
    async with project.bucket() as bucket:
        await bucket.put("key", b"x" * (64 * MIB), timeout="1m")
        stream = bucket.stream("key", chunk=MIB, timeout=1)
        assert len(await anext(stream)) == MIB
        await asyncio.to_thread(project.server.pause)
        try:
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await consume(stream)
            # What was under way still comes; each wait for a chunk has the deadline.
            assert time.monotonic() - began < 10
        finally:
            await asyncio.to_thread(project.server.unpause)
        await until(lambda: bucket.head("key"), 5)


async def test_a_slow_server_is_waited_for(project: S3Project, proxies: faults.Proxies) -> None:
    with proxies.before(project.server) as proxy:
        async with project.bucket(port=proxy.port) as bucket:
            proxy.slow(300)
            await bucket.put("key", b"1", timeout=20)
            assert await bucket.get("key", timeout=20) == b"1"
            with pytest.raises(DeadlineExceeded):
                await bucket.get("key", timeout=0.1)
            assert await bucket.get("key", timeout=20) == b"1"


async def test_no_cancelled_call_leaves_its_answer_to_another(project: S3Project, proxies: faults.Proxies) -> None:
    with proxies.before(project.server) as proxy:
        async with project.bucket(port=proxy.port) as bucket:
            keys = [f"key/{number:02}" for number in range(20)]
            for key in keys:
                await bucket.put(key, key.encode() * 50)
            proxy.slow(20)
            chance = random.Random(7)
            late = 0
            # Two clients do these: obstore the first two, httpx the others.
            calls: tuple[Callable[[str], Awaitable[Any]], ...] = (
                bucket.get,
                bucket.head,
                lambda key: bucket.put(key, key.encode() * 50),
                lambda key: consume(bucket.list(key)),
            )

            async def cancelled(key: str) -> None:
                nonlocal late
                call = asyncio.ensure_future(chance.choice(calls)(key))
                await asyncio.sleep(chance.uniform(0.004, 0.016))
                late += not call.done()
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)

            async def checked(key: str) -> None:
                assert await bucket.get(key) == key.encode() * 50
                entry = await bucket.head(key)
                assert entry is not None
                assert (entry.key, entry.size) == (key, len(key) * 50)
                assert [found.key async for found in bucket.list(key)] == [key]
                assert (await bucket.put(key, key.encode() * 50)).size == len(key) * 50

            for _ in range(50):
                await asyncio.gather(*(cancelled(chance.choice(keys)) for _ in range(20)))
                await checked(chance.choice(keys))
            assert late >= 900, "too few were cancelled between send and reply to show anything"
            await asyncio.gather(*map(checked, keys))


async def test_acknowledged_objects_survive_the_servers_kill(project: S3Project) -> None:
    server = project.server
    async with project.bucket() as bucket:
        acknowledged: list[str] = []

        async def write(writer: int) -> None:
            for number in range(10_000):
                key = f"{writer}/{number}"
                content = key.encode() * 100
                await bucket.put(key, parts(content, 2) if number % 2 else content + content, timeout=5)
                acknowledged.append(key)

        writers = [asyncio.ensure_future(write(writer)) for writer in range(4)]
        while len(acknowledged) < 80:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.kill)
        try:
            outcomes = await asyncio.gather(*writers, return_exceptions=True)
            assert all(isinstance(outcome, KmpError) for outcome in outcomes), outcomes
            with pytest.raises(KmpError):
                await bucket.check()
        finally:
            await asyncio.to_thread(server.start_again)
        await server.wait_until_ready()
        await until(lambda: bucket.get(acknowledged[0]), 5)
        for key in acknowledged:
            assert await bucket.get(key) == key.encode() * 200
        await bucket.check()


async def test_close_is_bounded_with_the_server_gone(project: S3Project, proxies: faults.Proxies) -> None:
    with proxies.before(project.server) as proxy:
        bucket = project.bucket(port=proxy.port)
        await bucket.open()
        stuck = asyncio.ensure_future(bucket.put("large", parts(b"x" * MIB, 50), timeout=30))
        while not await project.uploads():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        proxy.black_hole()
        began = time.monotonic()
        await bucket.close()
        assert time.monotonic() - began < 5 + STALL_SECONDS
        stuck.cancel()
        (outcome,) = await asyncio.gather(stuck, return_exceptions=True)
        assert isinstance(outcome, KmpError | asyncio.CancelledError)


async def test_a_thousand_callers_share_a_few_connections(project: S3Project) -> None:
    async with project.bucket() as bucket:
        await asyncio.gather(*(bucket.put(f"k/{number % 50}", b"%d" % (number % 50)) for number in range(1000)))
        got = await asyncio.gather(*(bucket.get(f"k/{number % 50}") for number in range(1000)))
        assert got == [b"%d" % (number % 50) for number in range(1000)]


async def test_reads_keep_to_the_connections_they_are_given(project: S3Project) -> None:
    settings = SMALL_PARTS.model_copy(update={"connections": 3})
    async with Relay(project.server.port) as relay, project.bucket(port=relay.port, settings=settings) as bucket:
        await bucket.put("key", b"1")
        before = relay.opened
        await asyncio.gather(*(call("key") for _ in range(50) for call in (bucket.get, bucket.head)))
        assert relay.opened - before <= 3


@pytest.mark.parametrize("count", [1, 6], ids=["small", "in parts"])
async def test_a_put_whose_answer_is_lost_is_found_to_be_done(project: S3Project, count: int) -> None:
    async with Relay(project.server.port) as relay, project.bucket(port=relay.port) as bucket:
        relay.lose = b"POST /" if count > 1 else b"PUT /"
        relay.spare = 1 if count > 1 else 0  # the first POST begins an upload, the second completes it
        entry = await bucket.put("key", parts(b"x" * MIB, count), if_absent=True)
        assert relay.lose is None, "no answer was lost"
        assert await bucket.head("key") == entry
        assert await project.uploads() == []
