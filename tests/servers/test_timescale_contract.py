"""The TimescaleDB store keeps the contract: on TimescaleDB's Apache-2 tier, on plain PostgreSQL, behind PgBouncer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

import testbed
from kmp_core.testing import Make
from kmp_storage.testing.shared_timeseries import SharedTimeSeriesContract
from kmp_storage.timescale import TimescaleSettings, TimescaleStore
from kmp_storage.timescale.provisioning import Access, Quota, TimescaleProvisioner
from postgres_bed import admin, admin_url, pooler_before, url_at

PROJECTS = ("acme", "acme2")


class Contract(SharedTimeSeriesContract):
    extension: bool

    @pytest.fixture(scope="class")
    @classmethod
    def places(cls, timescaledb: testbed.Server) -> Iterator[dict[str, Access]]:
        async def make() -> dict[str, Access]:
            async with TimescaleProvisioner(admin_url(timescaledb), extension=cls.extension) as operator:
                return {name: await operator.provision(name, Quota(connections=30)) for name in PROJECTS}

        async def drop() -> None:
            async with TimescaleProvisioner(admin_url(timescaledb)) as operator:
                for name in PROJECTS:
                    await operator.deprovision(name, force=True)

        yield asyncio.run(make())
        asyncio.run(drop())

    @pytest.fixture(autouse=True)
    async def empty(self, timescaledb: testbed.Server, places: dict[str, Access]) -> AsyncIterator[None]:
        yield
        for access in places.values():
            async with admin(timescaledb, access.database) as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", access.role
                )
                for row in await connection.fetch(
                    "SELECT tablename FROM pg_tables WHERE schemaname = $1", access.schema
                ):
                    await connection.execute(f'DROP TABLE "{access.schema}"."{row[0]}" CASCADE')

    @pytest.fixture
    def make(self, places: dict[str, Access]) -> Make:
        def make(project: str = "acme") -> TimescaleStore:
            return TimescaleStore(places[project].url.reveal(), project=project, settings=TimescaleSettings())

        return make

    @pytest.fixture
    def address(self, places: dict[str, Access]) -> str:
        return places["acme"].url.reveal()


class TestTimescaleStoreApache(Contract):
    extension = True

    async def test_the_tier_is_apache(self, make: Make) -> None:
        async with make() as store:
            assert store.tier == "apache"


class TestTimescaleStorePlain(Contract):
    extension = False

    async def test_the_tier_is_plain(self, make: Make) -> None:
        async with make() as store:
            assert store.tier == "plain"


class TestTimescaleStoreBehindAPooler(Contract):
    extension = True
    # What is asked is the same SQL as without a pooler, and takes its time.
    test_buckets_follow_the_local_clock_when_it_changes = None
    test_filled_buckets_follow_the_local_clock_when_it_changes = None

    @pytest.fixture(scope="class")
    @classmethod
    def pooler(cls, timescaledb: testbed.Server) -> Iterator[testbed.Server]:
        with pooler_before(timescaledb) as started:
            yield started

    @pytest.fixture(autouse=True)
    def told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KMP_STORAGE_TIMESCALE_TRANSACTION_POOLER", "true")  # to other processes too

    @pytest.fixture
    def make(self, places: dict[str, Access], pooler: testbed.Server) -> Make:
        def make(project: str = "acme") -> TimescaleStore:
            return TimescaleStore(url_at(places[project].url.reveal(), pooler.port), project=project)

        return make

    @pytest.fixture
    def address(self, places: dict[str, Access], pooler: testbed.Server) -> str:
        return url_at(places["acme"].url.reveal(), pooler.port)
