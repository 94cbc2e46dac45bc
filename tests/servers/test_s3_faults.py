"""The S3 bucket behind a slow and silent server, beyond the fault stage of every bucket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import faults
import s3_bed
import testbed
from kmp_core.errors import BackendError, Conflict, DeadlineExceeded, KmpError, OutcomeUnknown
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


@pytest.mark.parametrize("condition", [{}, {"if_absent": True}], ids=["plain", "if absent"])
@pytest.mark.parametrize("count", [1, 6], ids=["small", "in parts"])
async def test_a_put_that_may_have_been_overtaken_is_not_put_again(
    project: S3Project, count: int, condition: dict[str, bool]
) -> None:
    content = b"x" * (count * MIB)
    async with (
        Relay(project.server.port) as relay,
        project.bucket(port=relay.port) as bucket,
        project.bucket() as other,
    ):

        async def overtake() -> None:
            assert await other.get("key") == content
            await other.put("key", b"theirs")

        relay.meanwhile, relay.spare = overtake, min(count - 1, 1)
        relay.lose = b"POST /" if count > 1 else b"PUT /"
        with pytest.raises(OutcomeUnknown) as caught:
            await bucket.put("key", content, **condition)
        assert relay.lose is None, "no answer was lost"
        assert not caught.value.retryable
        assert await other.get("key") == b"theirs"


async def test_a_put_is_not_repeated_before_it_is_known_what_became_of_it(project: S3Project) -> None:
    async with (
        Relay(project.server.port) as relay,
        project.bucket(port=relay.port) as bucket,
        project.bucket() as other,
    ):

        async def overtake() -> None:
            await other.put("key", b"theirs")
            relay.cut = b"HEAD /"

        relay.meanwhile, relay.lose = overtake, b"PUT /"
        with pytest.raises(OutcomeUnknown):
            await bucket.put("key", b"ours")
        assert relay.cut is None, "it was not asked what became of it"
        assert await other.get("key") == b"theirs"


@pytest.mark.parametrize("there", [None, b"old"], ids=["nothing", "older"])
async def test_a_put_that_never_arrived_is_put_again(project: S3Project, there: bytes | None) -> None:
    async with Relay(project.server.port) as relay, project.bucket(port=relay.port) as bucket:
        if there is not None:
            await bucket.put("key", there)
            project.age("key")
        relay.cut = b"PUT /"
        entry = await bucket.put("key", b"new")
        assert relay.cut is None, "no request was lost"
        assert await bucket.head("key") == entry
        assert await bucket.get("key") == b"new"


async def test_a_lost_put_is_a_conflict_where_what_is_there_is_older(project: S3Project) -> None:
    async with Relay(project.server.port) as relay, project.bucket(port=relay.port) as bucket:
        await bucket.put("key", b"old")
        project.age("key")
        relay.cut = b"PUT /"
        with pytest.raises(Conflict):
            await bucket.put("key", b"new", if_absent=True)
        assert relay.cut is None, "no request was lost"
        assert await bucket.get("key") == b"old"


async def test_a_lost_put_over_what_somebody_deleted_meanwhile_may_have_been_done(project: S3Project) -> None:
    async with (
        Relay(project.server.port) as relay,
        project.bucket(port=relay.port) as bucket,
        project.bucket() as other,
    ):
        seen = await bucket.put("key", b"old")

        async def delete() -> None:
            assert await other.get("key") == b"new"
            await other.delete("key")

        relay.meanwhile, relay.lose = delete, b"PUT /"
        with pytest.raises(OutcomeUnknown):
            await bucket.put("key", b"new", if_match=seen.etag)
        assert relay.lose is None, "no answer was lost"


async def test_of_what_was_put_in_parts_nobody_knows_how_old_it_is(project: S3Project) -> None:
    async with Relay(project.server.port) as relay, project.bucket(port=relay.port) as bucket:
        await bucket.put("key", parts(b"x" * MIB, 6))
        project.age("key")  # Amazon's tells when the upload was begun, which may be long before it took effect
        relay.cut = b"PUT /"
        with pytest.raises(OutcomeUnknown):
            await bucket.put("key", b"new")
        assert relay.cut is None, "no request was lost"
        assert (await bucket.get("key")) == b"x" * (6 * MIB)
