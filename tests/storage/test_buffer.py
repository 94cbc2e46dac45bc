"""The buffered writer: bounded, nothing lost on close, and each failure told to the caller whose rows they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kmp_core.errors import DeadlineExceeded, InvalidInput, LifecycleError, Unavailable
from kmp_storage.buffer import BufferedWriter
from kmp_storage.embedded.timeseries import SqliteTimeSeriesStore
from kmp_storage.models import Measurement


class Sample(Measurement, series="buffered"):
    number: int
    text: str = ""


def sample(number: int, text: str = "") -> Sample:
    return Sample(time=datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=number), number=number, text=text)


class Counting(SqliteTimeSeriesStore):
    """The embedded store, which also tells how often it was asked, waits when told to, and fails when told to."""

    def __init__(self) -> None:
        super().__init__("memory:")
        self.calls: list[int] = []
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.failure: Exception | None = None

    async def append(self, *measurements: Measurement, timeout: Any = None) -> int:
        self.calls.append(len(measurements))
        await self.may_go.wait()
        if self.failure is not None:
            raise self.failure
        return await super().append(*measurements, timeout=timeout)


@pytest.fixture
async def store() -> AsyncIterator[Counting]:
    async with Counting() as opened:
        yield opened


async def numbers(store: Counting) -> list[int]:
    return [row.number async for row in store.read(Sample)]


async def test_many_calls_become_few(store: Counting) -> None:
    async with BufferedWriter(store, rows=100, age="60s") as writer:
        await asyncio.gather(*(writer.append(sample(number)) for number in range(1000)))
    assert await numbers(store) == list(range(1000))
    assert len(store.calls) <= 20


async def test_an_old_row_does_not_wait_for_others(store: Counting) -> None:
    async with BufferedWriter(store, age="20ms") as writer:
        await writer.append(sample(1), timeout="10s")
        assert await numbers(store) == [1]


async def test_bytes_are_a_bound_too(store: Counting) -> None:
    async with BufferedWriter(store, bytes_=10_000, age="60s") as writer:
        await writer.append(sample(1, "x" * 20_000), timeout="10s")


async def test_leaving_stores_what_is_left(store: Counting) -> None:
    async with BufferedWriter(store, age="60s") as writer:
        handed = [await writer.submit(sample(number)) for number in range(7)]
    assert await numbers(store) == list(range(7))
    assert all(stored.done() for stored in handed)
    with pytest.raises(LifecycleError):
        await writer.append(sample(8))


async def test_who_appends_waits_while_there_is_no_room(store: Counting) -> None:
    store.may_go.clear()
    async with BufferedWriter(store, rows=10, age="1ms") as writer:
        handed = [asyncio.ensure_future(writer.submit(sample(number))) for number in range(100)]
        for _ in range(200):
            await asyncio.sleep(0)
        assert writer.pending <= 20
        assert not all(task.done() for task in handed)
        store.may_go.set()
        await asyncio.gather(*handed)
    assert await numbers(store) == list(range(100))


async def test_a_wrong_row_fails_its_own_caller_alone(store: Counting) -> None:
    wrong = sample(2).model_copy(update={"number": "two"})
    async with BufferedWriter(store, age="60s") as writer:
        calls = [asyncio.ensure_future(writer.append(row)) for row in (sample(1), wrong, sample(3))]
        await asyncio.sleep(0.01)
        with pytest.raises(InvalidInput):
            await writer.flush()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), InvalidInput, type(None)]
    assert await numbers(store) == [1, 3]


async def test_a_failing_backend_is_told_to_all_and_not_asked_for_each(store: Counting) -> None:
    store.failure = Unavailable("gone")
    async with BufferedWriter(store, age="1ms") as writer:
        outcomes = await asyncio.gather(*(writer.append(sample(n)) for n in range(50)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        assert len(store.calls) < 10
        store.failure = None
        await writer.append(sample(7))
    assert await numbers(store) == [7]


async def test_a_cancelled_caller_takes_nothing_back(store: Counting) -> None:
    store.may_go.clear()
    async with BufferedWriter(store, age="1ms") as writer:
        call = asyncio.ensure_future(writer.append(sample(1)))
        async with asyncio.timeout(30):
            while not store.calls:  # noqa: ASYNC110 - until the row is on its way
                await asyncio.sleep(0.001)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        store.may_go.set()
    assert await numbers(store) == [1]


async def turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_flush_waits_for_what_is_being_stored(store: Counting) -> None:
    store.may_go.clear()
    async with BufferedWriter(store, rows=1) as writer:
        receipt = await writer.submit(sample(1))
        await turns()
        assert store.calls == [1]
        flushing = asyncio.ensure_future(writer.flush())
        await turns()
        assert not flushing.done()
        store.may_go.set()
        await flushing
        assert receipt.done()


async def test_what_a_receipt_told_is_not_told_again(store: Counting) -> None:
    store.failure = Unavailable("gone")
    async with BufferedWriter(store, rows=1) as writer:
        receipt = await writer.submit(sample(1))
        with pytest.raises(Unavailable):
            await receipt
        await writer.flush()
        assert writer.not_stored == (sample(1),)


async def test_failures_that_nobody_looks_at_stay_few_and_are_told_at_the_end(store: Counting) -> None:
    store.failure = Unavailable("gone")
    with pytest.raises(Unavailable) as lost:
        async with BufferedWriter(store, rows=5, age="1ms") as writer:
            await writer.submit(sample(0))
            for number in range(1, 100):
                with pytest.raises(Unavailable):
                    await (await writer.submit(sample(number)))
            assert len(writer.not_stored) == 10
    assert lost.value.__notes__ == ["1 rows that were handed to the buffered writer were not stored"]


async def test_a_wrong_row_is_found_in_few_calls(store: Counting) -> None:
    wrong = sample(700).model_copy(update={"number": "two"})
    async with BufferedWriter(store, age="60s") as writer:
        receipts = [await writer.submit(wrong if number == 700 else sample(number)) for number in range(1000)]
        with pytest.raises(InvalidInput):
            await writer.flush()
        assert all(receipt.done() for receipt in receipts)
    assert len(await numbers(store)) == 999
    assert len(store.calls) <= 2 * 10 + 1


async def test_nobody_waits_for_a_writer_that_ended(store: Counting) -> None:
    async with BufferedWriter(store, rows=1, age="1ms") as writer:
        store.may_go.clear()
        handing = [asyncio.ensure_future(writer.append(sample(number))) for number in range(9)]
        await turns()
        assert writer._writer is not None
        writer._writer.cancel()
        store.may_go.set()
        outcomes = await asyncio.wait_for(asyncio.gather(*handing, return_exceptions=True), 5)
        assert {type(outcome) for outcome in outcomes} == {DeadlineExceeded, LifecycleError}
        with pytest.raises(LifecycleError):
            await writer.append(sample(9))


async def test_who_appends_waits_while_too_many_bytes_are_on_their_way(store: Counting) -> None:
    store.may_go.clear()
    async with BufferedWriter(store, bytes_=1_000, age="1ms") as writer:
        handed = [asyncio.ensure_future(writer.submit(sample(number, "x" * 600))) for number in range(20)]
        await turns()
        assert 2 <= sum(task.done() for task in handed) <= 4
        store.may_go.set()
        await asyncio.gather(*handed)
    assert await numbers(store) == list(range(20))
