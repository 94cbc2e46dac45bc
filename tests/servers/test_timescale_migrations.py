"""Migrations run once, in order, by one of many, and never differ from what ran before."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import testbed
from kmp_core.errors import Conflict, InvalidInput
from kmp_storage.timescale import TimescaleSettings, TimescaleStore
from kmp_storage.timescale.migrations import migrate
from kmp_storage.timescale.provisioning import Access, TimescaleProvisioner
from postgres_bed import admin_url


@pytest.fixture
async def access(timescaledb: testbed.Server) -> AsyncIterator[Access]:
    name = f"m-{secrets.token_hex(5)}"
    async with TimescaleProvisioner(admin_url(timescaledb), extension=False) as operator:
        yield await operator.provision(name)
        await operator.deprovision(name, force=True)


def store_of(access: Access) -> TimescaleStore:
    return TimescaleStore(access.url.reveal(), project=access.project, settings=TimescaleSettings(pool_size=2))


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    (tmp_path / "0001_gates.sql").write_text("CREATE TABLE gates (name text); INSERT INTO gates VALUES ('B7');\n")
    (tmp_path / "0002_more.sql").write_text("INSERT INTO gates VALUES ('B8');\n")
    return tmp_path


async def gates(store: TimescaleStore) -> list[str]:
    async with store.connection() as connection:
        return [row["name"] for row in await connection.fetch("SELECT name FROM gates ORDER BY name")]


async def test_steps_run_in_order_and_once(access: Access, steps: Path) -> None:
    async with store_of(access) as store:
        assert await migrate(store, steps) == ["0001_gates.sql", "0002_more.sql"]
        assert await migrate(store, steps) == []
        (steps / "0003_third.sql").write_text("INSERT INTO gates VALUES ('B9')")
        assert await migrate(store, steps) == ["0003_third.sql"]
        assert await gates(store) == ["B7", "B8", "B9"]


async def test_replicas_that_start_at_once_run_each_step_once(access: Access, steps: Path) -> None:
    stores = [store_of(access) for _ in range(6)]
    await asyncio.gather(*(store.open() for store in stores))
    try:
        applied = await asyncio.gather(*(migrate(store, steps) for store in stores))
        assert sorted(name for names in applied for name in names) == ["0001_gates.sql", "0002_more.sql"]
        assert await gates(stores[0]) == ["B7", "B8"]
    finally:
        await asyncio.gather(*(store.close() for store in stores))


async def test_a_changed_or_missing_step_stops_all(access: Access, steps: Path) -> None:
    async with store_of(access) as store:
        await migrate(store, steps)
        (steps / "0002_more.sql").write_bytes(b"INSERT INTO gates VALUES ('B8');\r\n")
        assert await migrate(store, steps) == [], "line ends are no change"
        (steps / "0002_more.sql").write_text("INSERT INTO gates VALUES ('other')")
        (steps / "0003_third.sql").write_text("INSERT INTO gates VALUES ('B9')")
        with pytest.raises(Conflict, match=r"0002_more.sql was changed"):
            await migrate(store, steps)
        for name in ("0002_more.sql", "0003_third.sql"):
            (steps / name).unlink()
        with pytest.raises(Conflict, match=r"0002_more.sql .* missing"):
            await migrate(store, steps)
        assert await gates(store) == ["B7", "B8"]


async def test_a_step_that_fails_is_undone_whole(access: Access, steps: Path) -> None:
    (steps / "0003_broken.sql").write_text("INSERT INTO gates VALUES ('B9'); SELECT nonsense")
    async with store_of(access) as store:
        with pytest.raises(InvalidInput):
            await migrate(store, steps)
        assert await gates(store) == ["B7", "B8"]
        (steps / "0003_broken.sql").write_text("INSERT INTO gates VALUES ('B9')")
        assert await migrate(store, steps) == ["0003_broken.sql"]


async def test_names_and_numbers_are_checked(access: Access, steps: Path) -> None:
    async with store_of(access) as store:
        (steps / "0004_gap.sql").write_text("SELECT 1")
        with pytest.raises(InvalidInput, match="0003"):
            await migrate(store, steps)
        (steps / "Third.sql").write_text("SELECT 1")
        with pytest.raises(InvalidInput, match=r"0001_gates\.sql"):
            await migrate(store, steps)
