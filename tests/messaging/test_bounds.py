"""Bounds in time and memory: how long events are kept, how many bytes are held, how long a commit may wait."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import pytest

from kmp_messaging import BusSettings, Event
from kmp_messaging.embedded import SqliteBus, upkeep
from kmp_messaging.testing.samples import until

QUICK = {"lease": 5.0, "drain_timeout": 5.0}


class Kept(Event, topic="test.kept", key="who"):
    who: str
    number: int = 0
    text: str = ""


def bus_in(directory: Path, **settings) -> SqliteBus:
    return SqliteBus(project="acme", directory=directory, settings=BusSettings(**{**QUICK, **settings}))


async def kept(bus: SqliteBus) -> int:
    return (await bus.lag(Kept, group="nobody")).events


async def keeps(bus: SqliteBus, events: int) -> None:
    """Wait until so many are kept."""
    ends = time.monotonic() + 10.0
    while (found := await kept(bus)) != events:
        assert time.monotonic() < ends, f"{found} events are kept, and not {events}"
        await asyncio.sleep(0.01)


async def age(bus: SqliteBus, by: timedelta) -> None:
    """Have everything that was published so far be older."""
    seconds = by.total_seconds()
    await bus._store.write(lambda c: c.execute("UPDATE log SET published = published - ?", (seconds,)))


@pytest.fixture
def tidy(monkeypatch):
    """House is kept all the time, not once a minute."""
    monkeypatch.setattr(upkeep, "_HOUSEKEEPING", 0.01)


async def test_events_older_than_the_retention_go_and_younger_ones_stay(tmp_path, tidy):
    async with bus_in(tmp_path, retention="1h") as bus:
        await bus.publish(*(Kept(who=f"k{n}") for n in range(30)))
        await age(bus, timedelta(hours=2))
        await bus.publish(*(Kept(who=f"k{n}") for n in range(7)))
        await keeps(bus, 7)
        await asyncio.sleep(0.05)
        assert await kept(bus) == 7


async def test_old_events_that_a_group_has_not_handled_stay(tmp_path, tidy):
    hold, seen = asyncio.Event(), []
    async with bus_in(tmp_path, retention="1h") as bus:

        async def handle(event: Kept) -> None:
            await hold.wait()
            seen.append(event.number)

        bus.subscribe(Kept, handle, group="slow")
        await bus.start()
        await bus.publish(*(Kept(who=f"k{n}", number=n) for n in range(30)))
        await until(lambda: all(c._membership is not None for c in bus._consumers.values()))
        await age(bus, timedelta(hours=2))
        await asyncio.sleep(0.1)
        assert (await bus.lag(Kept, group="slow")).events == 30
        assert await kept(bus) == 30
        hold.set()
        await until(lambda: len(seen) == 30)
        await keeps(bus, 0)


async def test_the_bytes_that_a_slow_group_holds_are_bounded(tmp_path):
    hold, seen = asyncio.Event(), []
    async with bus_in(tmp_path, in_flight_size=20_000, in_flight_events=100_000) as bus:

        async def handle(event: Kept) -> None:
            await hold.wait()
            seen.append(event.number)

        for start in range(0, 400, 4):
            await bus.publish(*(Kept(who=f"k{n}", number=n, text="x" * 1000) for n in range(start, start + 4)))
        bus.subscribe(Kept, handle, group="g", concurrency=4)
        await bus.start()
        (consumer,) = bus._consumers.values()
        await until(lambda: consumer._membership is not None and consumer._membership.size > 0)
        await until(lambda: consumer._membership.size > 10_000)
        largest = 0
        for _ in range(50):
            await asyncio.sleep(0.002)
            largest = max(largest, consumer._membership.size)
        # The row that crosses the bound is taken whole: up to the four events of one publication.
        assert largest <= 20_000 + 4 * 1500
        hold.set()
        await until(lambda: len(seen) == 400)
    assert sorted(seen) == list(range(400))


async def test_what_was_handled_is_committed_within_the_interval_though_nothing_follows(tmp_path):
    async with bus_in(tmp_path, commit_interval=0.05, lease=3600.0) as bus:
        seen = []

        async def handle(event: Kept) -> None:
            seen.append(event.number)

        bus.subscribe(Kept, handle, group="g")
        await bus.start()
        await bus.publish(Kept(who="ann"))
        await until(lambda: len(seen) == 1)
        ends = time.monotonic() + 30.0
        while (await bus.lag(Kept, group="g")).events:
            assert time.monotonic() < ends, "the commit waits for another event, or for the lease"
            await asyncio.sleep(0.005)


async def test_a_longer_interval_lets_what_was_handled_wait(tmp_path):
    async with bus_in(tmp_path, commit_interval=3600.0, lease=60.0) as bus:
        seen = []

        async def handle(event: Kept) -> None:
            seen.append(event.number)

        bus.subscribe(Kept, handle, group="g")
        await bus.start()
        await bus.publish(Kept(who="ann"))
        await until(lambda: len(seen) == 1)
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert (await bus.lag(Kept, group="g")).events == 1, "committed before the interval was over"
        await bus.drain()
        assert (await bus.lag(Kept, group="g")).events == 0, "the last commit waits for nothing"
