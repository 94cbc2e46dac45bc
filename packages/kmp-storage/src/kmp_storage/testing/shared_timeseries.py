"""What a time-series store promises that several processes share; each test runs real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kmp_core.testing import Make
from kmp_storage.protocols import TimeSeriesStore
from kmp_storage.testing.processes import child
from kmp_storage.testing.timeseries import Flight, Reading, TimeSeriesContract, count, flight, reading

__all__ = ["SharedTimeSeriesContract"]

_HERE = __name__


class SharedTimeSeriesContract(TimeSeriesContract):
    """`TimeSeriesContract` for a provider that declares `shared` and `durable`; define the fixture `address` too."""

    @pytest.fixture
    def address(self) -> str:
        """A URL with which the provider's `from_url` opens, in another process, the data of `make("acme")`."""
        raise NotImplementedError("define a fixture `address` that returns the URL of what `make` opens")

    async def test_declares_what_this_suite_tests(self, make: Make) -> None:
        assert {"durable", "shared"} <= make().abilities

    async def test_rows_survive_a_restart(self, make: Make) -> None:
        async with make() as store:
            await store.append(*map(reading, range(10)))
        async with make() as store:
            assert [row async for row in store.read(Reading)] == [reading(number) for number in range(10)]

    async def test_processes_append_side_by_side(self, make: Make, address: str) -> None:
        provider = make()
        async with (
            child(provider, address, f"{_HERE}:append_many", "0") as one,
            child(provider, address, f"{_HERE}:append_many", "1") as other,
        ):
            # Neither begins before both are there; the table is made by whoever comes first.
            assert [await one.line(), await other.line()] == ["open", "open"]
            await asyncio.gather(one.end(), other.end())
        async with make() as store:
            assert [row.count async for row in store.read(Reading)] == sorted(range(4000))

    async def test_the_same_rows_from_two_processes_are_stored_once(self, make: Make, address: str) -> None:
        provider = make()
        async with (
            child(provider, address, f"{_HERE}:append_flights") as one,
            child(provider, address, f"{_HERE}:append_flights") as other,
        ):
            new = int(await one.line()) + int(await other.line())
            await asyncio.gather(one.end(), other.end())
        async with make() as store:
            assert new == 2000
            assert [row async for row in store.read(Flight)] == [flight(number) for number in range(2000)]

    async def test_a_killed_process_leaves_whole_calls(self, make: Make, address: str) -> None:
        provider = make()
        for action in ("append_until_killed", "stream_until_killed"):
            async with make() as store:
                before = await count(store)
            async with child(provider, address, f"{_HERE}:{action}") as other:
                acknowledged = 0
                while acknowledged < 3:
                    acknowledged = int(await other.line())
                await other.kill()
            async with make() as store:
                rows = await count(store) - before
                assert rows % 3000 == 0
                assert rows >= acknowledged * 3000
                assert await store.append(reading(0)) == 1
                await store.erase(Reading, where={"site": "s0"})
                await store.erase(Reading, where={"site": "s1"})

    async def test_a_process_killed_while_it_streams_leaves_nothing(self, make: Make, address: str) -> None:
        async with make() as store, child(store, address, f"{_HERE}:stream_and_wait") as other:
            assert await other.line() == "streaming"
            assert await store.append(reading(0), timeout="30s") == 1
            await other.kill()
            assert await count(store) == 1


# What the other processes do


async def append_many(store: TimeSeriesStore, parity: str) -> None:
    _say("open")
    numbers = range(int(parity), 4000, 2)
    for begin in range(0, len(numbers), 50):
        await store.append(*map(reading, numbers[begin : begin + 50]))


async def append_flights(store: TimeSeriesStore) -> None:
    new = 0
    for begin in range(0, 2000, 50):
        new += await store.append(*map(flight, range(begin, begin + 50)))
    _say(str(new))


async def append_until_killed(store: TimeSeriesStore) -> None:
    rows = [reading(number) for number in range(3000)]
    for call in range(1, 1_000_000):
        await store.append(*rows)
        _say(str(call))


async def stream_until_killed(store: TimeSeriesStore) -> None:
    rows = [reading(number) for number in range(3000)]
    for call in range(1, 1_000_000):
        await store.append_all(rows)
        _say(str(call))


async def stream_and_wait(store: TimeSeriesStore) -> None:
    async def source() -> AsyncIterator[Reading]:
        for number in range(50_000):
            yield reading(number)
        _say("streaming")
        await asyncio.Event().wait()

    await store.append_all(source())


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the other end of a pipe
