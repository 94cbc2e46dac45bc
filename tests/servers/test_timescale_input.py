"""What is wrong is told by its place, with what would be right and without secrets; nothing is written."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

import testbed
from kmp_core.errors import ConfigurationError, InvalidInput, NotFound, Unavailable
from kmp_core.postgres import Address, PoolOptions, PostgresPool
from kmp_storage.models import Measurement
from kmp_storage.timescale import TimescaleSettings, TimescaleStore
from kmp_storage.timescale.provisioning import Access, Quota, TimescaleProvisioner
from postgres_bed import admin, admin_url, own_database

START = datetime(2024, 1, 1, tzinfo=UTC)


class Reading(Measurement, series="readings", tags=("site",)):
    site: str
    value: float = 1.0


@pytest.fixture(params=[True, False], ids=["apache", "plain"])
async def access(request: pytest.FixtureRequest, timescaledb: testbed.Server) -> AsyncIterator[Access]:
    name = f"p-{secrets.token_hex(5)}"
    async with TimescaleProvisioner(admin_url(timescaledb), extension=request.param) as operator:
        yield await operator.provision(name, Quota(connections=3))
        await operator.deprovision(name, force=True)


@pytest.fixture
async def store(access: Access) -> AsyncIterator[TimescaleStore]:
    url = access.url.reveal()
    async with TimescaleStore(url, project=access.project, settings=TimescaleSettings(pool_size=2)) as opened:
        await opened.append(Reading(time=START, site="a"))
        yield opened


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("timescale:", "host: is missing"),
        ("timescale://:hunter2@db/acme", "user: is missing"),
        ("timescale://acme:hunter2@/acme", "host: is missing"),
        ("timescale://acme:hunter2@db", "database: is missing"),
        ("timescale://acme:hunter2@db:99999/acme", "cannot be read"),
        ("timescale://acme:hunter2@[::1/acme", "cannot be read"),
        ("timescale://acme:hunter2@db/acme?sslmode=prefer", "sslmode: must be verify-full or disable"),
        ("timescale://acme:hunter2@db/acme?sslmod=disable", "parameter sslmod: is unknown"),
    ],
)
def test_a_wrong_url_is_told_by_its_part(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as refused:
        Address.of(url)
    assert "hunter2" not in str(refused.value)
    assert "for example" in str(refused.value)


async def test_an_authority_that_is_none_is_told(tmp_path: Any) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for file in ("ca.pem", "missing.pem"):
        pool = PostgresPool(f"timescale://acme@127.0.0.1:1/acme?sslrootcert={tmp_path / file}")
        with pytest.raises(ConfigurationError, match="sslrootcert: cannot be read as certificates"):
            await pool.open()


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "acme.",
        "a*",
        "acme%",
        'acme"; DROP ROLE x --',
        "ACME",
        "аcme",
        "acme\0",
        "acme\n",
        "-a",
        "x" * 41,
    ],
)
async def test_a_name_that_is_no_project_reaches_no_server(timescaledb: testbed.Server, name: str) -> None:
    with pytest.raises(InvalidInput, match="project"):
        TimescaleStore("timescale://acme@127.0.0.1:1/acme", project=name)
    async with TimescaleProvisioner(admin_url(timescaledb)) as operator:
        for call in (operator.provision(name), operator.deprovision(name, force=True)):
            with pytest.raises(InvalidInput, match="project"):
                await call
        with pytest.raises((InvalidInput, NotFound)):
            await operator.set_password(name, access_password())


def access_password() -> Any:
    from kmp_core.secrets import Secret

    return Secret(secrets.token_hex(16))


async def test_a_wrong_question_is_told_by_its_part(store: TimescaleStore) -> None:
    naive = datetime(2024, 1, 1)  # noqa: DTZ001 - the point
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"start": naive}, "start: is a naive time"),
        ({"end": "2024-01-01"}, "end: must be a datetime, not str"),
        ({"end": date(2024, 1, 1)}, "end: must be a datetime, not date"),
        ({"where": {"site": "a\0"}}, "where, site: .*NUL"),
        ({"where": {"site": "\ud800"}}, "where, site: .*surrogate"),
        ({"where": {"site": b"a"}}, "where, site: must be str"),
        ({"where": {"site": ["a"]}}, "where, site: must be str"),
        ({"where": {'site" = site OR "site': "a"}}, "where"),
        ({"where": {"value": 1.0}}, "where: 'value' is declared neither"),
        ({"limit": -1}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": 2**64}, "limit"),
        ({"limit": "1; DROP TABLE readings"}, "limit"),
    ]
    for options, problem in wrong:
        with pytest.raises(InvalidInput, match=problem):
            [row async for row in store.read(Reading, **options)]
    assert await store.erase(Reading, where={"site": "a' OR true --"}) == 0
    assert [row.site async for row in store.read(Reading)] == ["a"]


async def test_times_at_the_ends_of_the_calendar_are_kept_or_refused(store: TimescaleStore) -> None:
    # The very first moment is the driver's word for '-infinity', which no chunk covers.
    first = datetime.min.replace(tzinfo=UTC) + timedelta(microseconds=1)
    for edge in (first, datetime.max.replace(tzinfo=UTC)):
        await store.append(Reading(time=edge, site="edge"))
        assert [row.time async for row in store.read(Reading, start=edge, end=edge + timedelta(0))] == []
        assert edge in [row.time async for row in store.read(Reading, where={"site": "edge"})]
    very_first = Reading(time=datetime.min.replace(tzinfo=UTC), site="b")
    for call in (store.append(Reading(time=START, site="b"), very_first), store.append_all([very_first])):
        with pytest.raises(InvalidInput, match=r"row [01], time: is the very first moment"):
            await call
    for beyond in (
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
    ):
        rows = [Reading(time=START, site="b"), Reading(time=beyond, site="b")]
        for call in (store.append, store.append_all):
            with pytest.raises(InvalidInput, match="row 1, time: lies outside"):
                await (call(*rows) if call == store.append else store.append_all(rows))
        with pytest.raises(InvalidInput, match="start"):
            [row async for row in store.read(Reading, start=beyond)]
    assert not await store.latest(Reading, where={"site": "b"})


async def test_a_task_that_is_cancelled_after_set_role_leaves_no_role(timescaledb: testbed.Server) -> None:
    async with own_database(timescaledb) as (name, password):
        async with admin(timescaledb) as connection:
            await connection.execute(f"GRANT pg_monitor TO {name}")
        url = f"timescale://{name}:{password}@{timescaledb.address}/{name}?sslmode=disable"
        async with PostgresPool(url, options=PoolOptions(size=1)) as pool:
            became = asyncio.Event()

            async def work() -> None:
                async with pool.acquire() as connection:
                    await connection.execute("SET ROLE pg_monitor")
                    became.set()
                    await connection.execute("SELECT pg_sleep(60)")

            task = asyncio.ensure_future(work())
            await became.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with pool.acquire() as connection:
                assert await connection.fetch_value("SELECT current_user::text") == name


async def test_a_quota_below_the_pool_is_told_as_the_server_s_refusal(access: Access) -> None:
    url, settings = access.url.reveal(), TimescaleSettings(pool_size=6)
    async with TimescaleStore(url, project=access.project, settings=settings) as store:

        async def hold() -> None:
            async with store.connection() as connection:
                await connection.fetch_value("SELECT pg_sleep(0.5)::text")

        outcomes = await asyncio.gather(*(hold() for _ in range(6)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {type(None), Unavailable}
        assert "gives no more connections" in str(next(o for o in outcomes if o is not None))
        await store.append(Reading(time=START, site="a"))
