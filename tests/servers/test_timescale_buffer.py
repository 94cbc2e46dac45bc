"""The buffered writer over the real TimescaleDB: bounded, nothing lost or hidden, whatever becomes of the server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import faults
import testbed
from kmp_core.errors import BackendError, Conflict, DeadlineExceeded, InvalidInput, KmpError, LifecycleError
from kmp_core.testing.faults import SLACK_SECONDS, lateness
from kmp_storage.buffer import BufferedWriter, Receipt
from kmp_storage.models import Measurement
from kmp_storage.timescale import TimescaleSettings, TimescaleStore
from kmp_storage.timescale.provisioning import Access, TimescaleProvisioner
from postgres_bed import admin_url, until, url_at

START = datetime(2024, 1, 1, tzinfo=UTC)
NEVER = "1h"
"""An age that no test reaches."""


class Reading(Measurement, series="readings", tags=("site",)):
    site: str
    value: float


class Delay(Measurement, series="delays", unique=("flight",)):
    flight: str
    minutes: float = 1.0


def reading(number: int, site: str = "a") -> Reading:
    return Reading(time=START + timedelta(seconds=number), site=site, value=float(number))


def delay(number: int, minutes: float = 1.0) -> Delay:
    return Delay(time=START + timedelta(seconds=number), flight=f"KM{number}", minutes=minutes)


@pytest.fixture
async def access(timescaledb: testbed.Server) -> AsyncIterator[Access]:
    name = f"p-{secrets.token_hex(5)}"
    async with TimescaleProvisioner(admin_url(timescaledb)) as operator:
        yield await operator.provision(name)
        await timescaledb.wait_until_ready()
        await operator.deprovision(name, force=True)


def store_of(access: Access, port: int | None = None, **settings: Any) -> TimescaleStore:
    url = access.url.reveal() if port is None else url_at(access.url.reveal(), port)
    return TimescaleStore(url, project=access.project, settings=TimescaleSettings(**settings))


@pytest.fixture
async def store(access: Access) -> AsyncIterator[TimescaleStore]:
    async with store_of(access) as opened:
        await opened.append(reading(-1), delay(-1))
        yield opened


async def stored(store: TimescaleStore) -> list[float]:
    return [row.value async for row in store.read(Reading, start=START)]


async def flights(store: TimescaleStore) -> list[str]:
    return [row.flight async for row in store.read(Delay, start=START)]


async def transactions(store: TimescaleStore) -> int:
    """How many transactions brought the readings."""
    async with store.connection() as connection:
        sql = "SELECT count(DISTINCT xmin::text) FROM readings WHERE time >= $1"
        return int(await connection.fetch_value(sql, START))


# Its bounds


async def test_rows_come_together_until_they_are_enough(store: TimescaleStore) -> None:
    async with BufferedWriter(store, rows=10, age=NEVER) as writer:
        receipts = [await writer.submit(reading(number)) for number in range(9)]
        assert writer.pending == 9
        assert await stored(store) == []
        await writer.append(reading(9), timeout="20s")
        await asyncio.gather(*receipts)
        assert await stored(store) == list(range(10))
        assert await transactions(store) == 1


async def test_bytes_come_together_until_they_are_enough(store: TimescaleStore) -> None:
    async with BufferedWriter(store, bytes_=10_000, age=NEVER) as writer:
        first = await writer.submit(reading(0, "x" * 6_000))
        assert await stored(store) == []
        await writer.append(reading(1, "x" * 6_000), timeout="20s")
        await first
        assert await stored(store) == [0.0, 1.0]
        assert await transactions(store) == 1


async def test_a_row_waits_for_others_no_longer_than_its_age(store: TimescaleStore) -> None:
    async with BufferedWriter(store, age="50ms") as writer:
        await writer.append(reading(0), timeout="20s")
        assert await stored(store) == [0.0]


async def test_whoever_appends_waits_while_the_server_swallows_what_is_sent(
    access: Access, store: TimescaleStore, timescaledb: testbed.Server, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:
        async with store_of(access, proxy.port) as far, BufferedWriter(far, rows=10, age="1ms") as writer:
            await writer.append(delay(0))
            proxy.black_hole()
            handing = [asyncio.ensure_future(writer.submit(delay(number))) for number in range(1, 100)]

            async def full() -> bool:
                return writer.pending >= 20

            await until(full)
            for _ in range(50):  # whoever could go on would
                await asyncio.sleep(0)
            assert writer.pending == 20
            assert sum(task.done() for task in handing) == 20
            with pytest.raises(DeadlineExceeded) as over:
                await writer.submit(delay(1000), timeout="50ms")
            assert not over.value.outcome_unknown
            proxy.heal()
            await asyncio.gather(*await asyncio.gather(*handing))
    assert await flights(store) == [f"KM{number}" for number in range(100)]


# The server's faults


async def test_what_a_paused_server_was_to_store_is_stored_when_it_goes_on(
    store: TimescaleStore, timescaledb: testbed.Server
) -> None:
    async with BufferedWriter(store, rows=10, age="1ms") as writer:
        timescaledb.pause()
        try:
            calls = [asyncio.ensure_future(writer.append(reading(number))) for number in range(25)]

            async def on_the_way() -> bool:
                return store.pool.in_use == 1 and writer.pending >= 20

            await until(on_the_way)
            assert not any(call.done() for call in calls), "nothing is acknowledged that is not stored"
        finally:
            timescaledb.unpause()
        await asyncio.gather(*calls)
        assert await stored(store) == list(range(25))


async def test_a_killed_server_loses_nothing_acknowledged_and_each_caller_hears_what_it_lost(
    store: TimescaleStore, timescaledb: testbed.Server
) -> None:
    acknowledged: list[int] = []
    failed: dict[int, BackendError] = {}
    async with BufferedWriter(store, rows=20, age="1ms") as writer:

        async def write(number: int) -> None:
            try:
                await writer.append(reading(number))
                acknowledged.append(number)
            except BackendError as error:
                failed[number] = error

        async def keep_writing() -> None:
            for begin in range(0, 1_000_000, 50):
                await asyncio.gather(*map(write, range(begin, begin + 50)))
                if failed:
                    return

        writing = asyncio.ensure_future(keep_writing())

        async def enough() -> bool:
            return len(acknowledged) > 200

        await until(enough)
        timescaledb.kill()
        await writing
        timescaledb.start_again()
        await timescaledb.wait_until_ready()

        async def back() -> bool:
            with suppress(BackendError):
                await writer.append(reading(2_000_000))
                return True
            return False

        await until(back, 20)
    found = await stored(store)
    assert len(found) == len(set(found)), "nothing is doubled"
    assert {float(number) for number in acknowledged} <= set(found)
    assert not {float(number) for number, error in failed.items() if not error.outcome_unknown} & set(found)


@pytest.mark.parametrize("fault", ["black hole", "cut"])
async def test_leaving_without_the_server_is_bounded_and_says_what_was_not_written(
    access: Access, store: TimescaleStore, timescaledb: testbed.Server, proxies: faults.Proxies, fault: str
) -> None:
    rows = [reading(number) for number in range(15)]
    with proxies.before(timescaledb) as proxy:
        async with store_of(access, proxy.port) as far:
            await far.append(reading(-2))
            writer = BufferedWriter(far, rows=10, age=NEVER, timeout="1s")
            await writer.__aenter__()
            receipts = [await writer.submit(row) for row in rows[:10]]
            waiting = asyncio.ensure_future(writer.append(reading(1000)))
            (proxy.black_hole if fault == "black hole" else proxy.cut)()
            receipts += [await writer.submit(row) for row in rows[10:]]
            leaving: list[BaseException] = []

            async def leave() -> None:
                try:
                    await writer.__aexit__(None, None, None)
                except KmpError as error:
                    leaving.append(error)

            late = await lateness({"leave": leave}, 1.0)
            assert late["leave"] <= SLACK_SECONDS
            assert isinstance(leaving[0], BackendError)
            assert "15 rows" in leaving[0].__notes__[0]
            assert sorted(writer.not_stored, key=lambda row: row.time) == rows
            awaited: list[Awaitable[None]] = [*receipts, waiting]
            for told in awaited:
                with pytest.raises(BackendError):
                    await asyncio.wait_for(told, 5)
            with pytest.raises(LifecycleError):
                await writer.submit(reading(0))
            proxy.heal()
    assert await stored(store) == []


async def test_whoever_is_cancelled_while_leaving_leaves_at_once_and_all_hear_of_it(
    access: Access, store: TimescaleStore, timescaledb: testbed.Server, proxies: faults.Proxies
) -> None:
    receipts: list[Receipt] = []
    with proxies.before(timescaledb) as proxy:
        async with store_of(access, proxy.port) as far:
            await far.append(reading(-2))

            async def work() -> None:
                async with BufferedWriter(far, age=NEVER) as writer:
                    receipts.append(await writer.submit(reading(0)))
                    proxy.black_hole()

            task = asyncio.ensure_future(work())

            async def leaving() -> bool:
                return far.pool.in_use == 1

            await until(leaving)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 10)
            assert receipts[0].done()
            with pytest.raises(DeadlineExceeded) as lost:
                await receipts[0]
            assert lost.value.outcome_unknown
            assert far.pool.in_use == 0
            proxy.heal()


async def test_a_failure_that_nobody_was_told_is_told_by_flush_and_at_the_end(
    access: Access, store: TimescaleStore, timescaledb: testbed.Server, proxies: faults.Proxies
) -> None:
    with proxies.before(timescaledb) as proxy:
        async with store_of(access, proxy.port) as far:
            await far.append(reading(-2))
            with pytest.raises(BackendError) as lost:
                async with BufferedWriter(far, age="1ms") as writer:
                    proxy.cut()
                    receipts = [await writer.submit(reading(number)) for number in range(3)]

                    async def known() -> bool:
                        return all(receipt.done() for receipt in receipts)

                    await until(known)
                    proxy.heal()
                    with pytest.raises(BackendError):
                        await receipts[0]
                    with pytest.raises(BackendError):
                        await writer.flush()
                    await writer.flush()  # each is told once

                    async def back() -> bool:
                        try:
                            await writer.append(reading(7))
                        except BackendError:
                            return False
                        return True

                    await until(back, 20)
                    proxy.cut()
                    late = await writer.submit(reading(4))

                    async def lost_too() -> bool:
                        return late.done()

                    await until(lost_too)
            assert "1 rows" in lost.value.__notes__[-1]
            with pytest.raises(RuntimeError) as own:
                async with BufferedWriter(far, age="1ms") as writer:
                    await writer.submit(reading(5))
                    raise RuntimeError("the caller's own")
            assert "1 rows" in own.value.__notes__[0]
            proxy.heal()
    assert await stored(store) == [7.0]


# Bad rows


async def test_a_wrong_row_hurts_only_its_own_caller(store: TimescaleStore) -> None:
    await store.append(delay(100, minutes=7.0))
    wrong = delay(50).model_copy(update={"minutes": "hunter2"})
    rows = [*map(delay, range(50)), wrong, *map(delay, range(51, 200))]
    async with BufferedWriter(store, age=NEVER) as writer:
        calls = [asyncio.ensure_future(writer.append(row)) for row in rows]

        async def handed_over() -> bool:
            return writer.pending == 200

        await until(handed_over)
        with pytest.raises(InvalidInput, match="minutes"):
            await writer.flush()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {n: type(found) for n, found in enumerate(outcomes) if found} == {50: InvalidInput, 100: Conflict}
        assert "hunter2" not in str(outcomes[50])
    assert await flights(store) == [f"KM{number}" for number in range(200) if number != 50]


async def test_leaving_stores_what_is_left(store: TimescaleStore, access: Access) -> None:
    async with BufferedWriter(store, age=NEVER) as writer:
        receipts = [await writer.submit(reading(number)) for number in range(7)]
    assert all(receipt.done() for receipt in receipts)
    assert await stored(store) == list(range(7))
