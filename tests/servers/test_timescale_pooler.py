"""Behind a real PgBouncer in transaction mode the store works, and what lives in a session is refused with a reason."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import testbed
from kmp_core.errors import Conflict, DeadlineExceeded, Unavailable, Unsupported
from kmp_storage.models import Measurement
from kmp_storage.timescale import TimescaleSettings, TimescaleStore
from kmp_storage.timescale.migrations import migrate
from kmp_storage.timescale.provisioning import Access, TimescaleProvisioner
from postgres_bed import admin, admin_url, pooler_before, url_at

START = datetime(2024, 1, 1, tzinfo=UTC)
SIZE = 3
"""Connections of the server that all clients of a project share: fewer than a store's pool has."""


class Delay(Measurement, series="delays", tags=("origin",), unique=("flight",)):
    flight: str
    origin: str = "JFK"
    minutes: float | None = None


class Reading(Measurement, series="readings", tags=("site",)):
    site: str
    value: float


def delay(number: int) -> Delay:
    return Delay(time=START + timedelta(minutes=number), flight=f"KM{number}", minutes=float(number))


def reading(number: int) -> Reading:
    return Reading(time=START + timedelta(seconds=number), site=f"s{number % 3}", value=float(number))


@pytest.fixture(scope="module")
def pooler(timescaledb: testbed.Server) -> Iterator[testbed.Server]:
    with pooler_before(timescaledb, size=SIZE) as started:
        yield started


@pytest.fixture(params=[True, False], ids=["apache", "plain"])
async def access(request: pytest.FixtureRequest, timescaledb: testbed.Server) -> AsyncIterator[Access]:
    name = f"p-{secrets.token_hex(5)}"
    async with TimescaleProvisioner(admin_url(timescaledb), extension=request.param) as operator:
        yield await operator.provision(name)
        await operator.deprovision(name, force=True)


def store_of(access: Access, pooler: testbed.Server, **settings: Any) -> TimescaleStore:
    chosen = TimescaleSettings(**{"transaction_pooler": True, **settings})
    return TimescaleStore(url_at(access.url.reveal(), pooler.port), project=access.project, settings=chosen)


async def test_many_callers_share_few_connections_and_get_their_own_answers(
    access: Access, pooler: testbed.Server, timescaledb: testbed.Server
) -> None:
    async with store_of(access, pooler, pool_size=12) as one, store_of(access, pooler, pool_size=12) as other:
        await one.append(delay(0), reading(0))

        async def write(number: int) -> int:
            store = (one, other)[number % 2]
            few = await store.append(*map(delay, range(20)))  # as arrays
            many = await store.append_all(map(delay, range(20, 1000)))  # through a temporary table
            return few + many + await store.append_all(map(reading, range(number * 1000 + 1, number * 1000 + 1001)))

        async def ask(number: int) -> None:
            site = f"s{number % 3}"
            store = (one, other)[number % 2]
            for _ in range(10):
                assert {row.site for row in await store.latest(Reading, where={"site": site})} <= {site}
                async for row in store.read(Reading, where={"site": site}):
                    assert row.site == site

        new, *_ = await asyncio.gather(asyncio.gather(*map(write, range(8))), asyncio.gather(*map(ask, range(6))))
        assert sum(new) == 999 + 8000
        assert len([row async for row in one.read(Delay)]) == 1000
        assert len([row async for row in one.read(Reading)]) == 8001
    async with admin(timescaledb) as connection:
        sessions = await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usename = $1", access.role)
        assert 1 <= sessions <= SIZE


async def test_transactions_and_migrations_work_and_leave_no_trace(
    access: Access, pooler: testbed.Server, tmp_path: Path
) -> None:
    (tmp_path / "0001_gates.sql").write_text(
        "CREATE TABLE gates (name text PRIMARY KEY); INSERT INTO gates VALUES ('B7')"
    )
    async with store_of(access, pooler) as store:
        applied = await asyncio.gather(*(migrate(store, tmp_path) for _ in range(4)))
        assert sorted(map(len, applied)) == [0, 0, 0, 1]
        async with store.transaction() as transaction:
            await transaction.execute("SET LOCAL statement_timeout = '7s'; SET LOCAL search_path = pg_catalog")
            await store.append(delay(1), transaction=transaction)
        with pytest.raises(Conflict, match="KM1"):
            await store.append(delay(1).model_copy(update={"minutes": 99.0}))
        for _ in range(3 * SIZE):
            async with store.transaction() as transaction:
                assert await transaction.fetch_value("SHOW statement_timeout") != "7s"
                assert await transaction.fetch_value("SELECT count(*) FROM gates") == 1


async def test_a_cancelled_call_leaves_every_later_answer_right(access: Access, pooler: testbed.Server) -> None:
    async with store_of(access, pooler, pool_size=4) as store:
        await store.append_all(map(reading, range(300)))
        for round_ in range(20):
            calls = [asyncio.ensure_future(store.latest(Reading, where={"site": f"s{n % 3}"})) for n in range(12)]
            await asyncio.sleep(0.001 * (round_ % 8))
            for call in calls[::2]:
                call.cancel()
            for number, outcome in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
                if isinstance(outcome, BaseException):
                    assert isinstance(outcome, asyncio.CancelledError)
                else:
                    assert [row.site for row in outcome] == [f"s{number % 3}"]
        with pytest.raises(DeadlineExceeded):
            async with store.transaction() as transaction:
                await transaction.execute("SELECT pg_sleep(60)", timeout="200ms")
        assert await store.append(reading(1000)) == 1


async def test_a_session_is_refused_with_what_to_use_instead(access: Access, pooler: testbed.Server) -> None:
    async with store_of(access, pooler) as store:
        with pytest.raises(Unsupported, match=r"transaction pooler.*use transaction\(\)"):
            async with store.connection():
                pass


async def test_a_pooler_that_nobody_told_of_is_named(access: Access, pooler: testbed.Server) -> None:
    with pytest.raises(Unavailable, match="transaction_pooler=true"):
        await store_of(access, pooler, transaction_pooler=False).open()
