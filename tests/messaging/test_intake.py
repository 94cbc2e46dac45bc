"""Intake that meets what nobody foresaw is never silent: it says so, fails the check, and heals by itself."""

import asyncio
import logging

import pytest

from kmp_core.errors import Unavailable
from kmp_messaging import BusSettings, Event
from kmp_messaging.embedded import SqliteBus
from kmp_messaging.testing.samples import until

QUICK = {"retry_delay": 0.005, "retry_delay_limit": 0.02, "lease": 1.0, "drain_timeout": 5.0}


class Met(Event, topic="test.met", key="who"):
    who: str
    number: int = 0


def bus_in(directory, **settings) -> SqliteBus:
    return SqliteBus(project="acme", directory=directory, settings=BusSettings(**{**QUICK, **settings}))


async def check_fails(bus: SqliteBus, words: str) -> None:
    with pytest.raises(Unavailable, match=words):
        while True:
            await bus.check()
            await asyncio.sleep(0.002)


async def check_recovers(bus: SqliteBus) -> None:
    while True:
        try:
            await bus.check()
        except Unavailable:
            await asyncio.sleep(0.005)
        else:
            return


async def test_an_unforeseen_error_of_the_intake_fails_the_check_and_heals(tmp_path, caplog):
    seen = []
    async with bus_in(tmp_path) as bus:

        async def handle(event: Met) -> None:
            seen.append(event.number)

        bus.subscribe(Met, handle, group="g")
        await bus.start()
        await bus.publish(Met(who="ann", number=1))
        await until(lambda: seen == [1])
        # A fault of ours, as a missing column is: SQL that SQLite does not understand.
        await bus._store.write(lambda c: c.execute("ALTER TABLE progress RENAME COLUMN dispatched TO mislaid"))
        await bus.publish(Met(who="ann", number=2))
        with caplog.at_level(logging.ERROR):
            await check_fails(bus, "begins anew")
        assert any("OperationalError" in record.getMessage() and record.exc_info for record in caplog.records)
        await bus._store.write(lambda c: c.execute("ALTER TABLE progress RENAME COLUMN mislaid TO dispatched"))
        await until(lambda: seen[-1] == 2)
        await check_recovers(bus)
        await bus.publish(Met(who="ann", number=3))
        await until(lambda: seen[-1] == 3)
        await bus.drain()
        assert (await bus.lag(Met, group="g")).events == 0


async def test_a_worker_that_breaks_is_replaced_and_its_event_is_handled(tmp_path, caplog):
    seen = []
    async with bus_in(tmp_path) as bus:

        async def handle(event: Met) -> None:
            if event.number == 1 and 0 not in seen:
                seen.append(0)
                raise ValueError("counts an attempt")
            seen.append(event.number)

        bus.subscribe(Met, handle, group="g", concurrency=1)
        await bus.start()
        await bus.publish(Met(who="ann", number=9))
        await until(lambda: seen == [9])  # so the slots are taken, which reads the table too
        await bus._store.write(lambda c: c.execute("ALTER TABLE attempt RENAME COLUMN count TO mislaid"))
        with caplog.at_level(logging.ERROR):
            await bus.publish(Met(who="ann", number=1), Met(who="ann", number=2))
            await check_fails(bus, "begins anew")
        assert seen[:2] == [9, 0]
        await bus._store.write(lambda c: c.execute("ALTER TABLE attempt RENAME COLUMN mislaid TO count"))
        await until(lambda: seen[-1] == 2)
        assert seen[-2:] == [1, 2]
        await check_recovers(bus)


async def test_a_look_for_others_that_fails_is_noticed_and_begun_again(tmp_path, monkeypatch, caplog):
    seen = []
    async with bus_in(tmp_path) as bus, bus_in(tmp_path) as other:

        async def handle(event: Met) -> None:
            seen.append(event.number)

        bus.subscribe(Met, handle, group="g")
        await bus.start()
        await other.publish(Met(who="ann", number=1))
        await until(lambda: seen == [1])
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
            patch.setattr(bus._store, "changed", lambda: 1 // 0)
            await check_fails(bus, "ZeroDivisionError")
        assert any("ZeroDivisionError" in record.getMessage() for record in caplog.records)
        await other.publish(Met(who="ann", number=2))
        await until(lambda: seen == [1, 2])
        await check_recovers(bus)


async def test_intake_that_was_cancelled_by_somebody_fails_the_check(tmp_path):
    async with bus_in(tmp_path) as bus:

        async def handle(event: Met) -> None:
            raise AssertionError

        bus.subscribe(Met, handle, group="g")
        await bus.start()
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "kmp-bus-g"]
        task.cancel()
        await check_fails(bus, "was cancelled")
