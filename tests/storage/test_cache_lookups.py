"""Look-ups of the embedded cache that come together share a job, and nothing else: each keeps its own deadline."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from kmp_core.deadlines import Timeout, deadline
from kmp_core.errors import DeadlineExceeded, LifecycleError
from kmp_core.project import Project
from kmp_core.sqlite import Database
from kmp_storage.embedded.cache import SqliteCache
from kmp_storage.embedded.cache.entries import MIGRATIONS, Entries
from kmp_storage.embedded.cache.lookups import Lookups

T = TypeVar("T")

KEYS = [f"k{number}" for number in range(50)]


class Watched(Database):
    """Counts reads, and holds them up while `gate` is closed."""

    reads = 0

    def __init__(self, path: Path | None) -> None:
        super().__init__(path, project=Project("acme"), capability="storage.cache", migrations=MIGRATIONS)
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, work: Callable[[sqlite3.Connection], T], *, timeout: Timeout = None) -> T:
        self.reads += 1
        await self.gate.wait()
        return await super().read(work, timeout=timeout)


@asynccontextmanager
async def filled(path: Path | None) -> AsyncIterator[Watched]:
    database = Watched(path)
    await database.open()

    def fill(connection: sqlite3.Connection) -> None:
        for key in KEYS:
            Entries(1 << 20, 1 << 20).put(connection, key, key.encode(), now=0, expires=None)

    await database.write(fill)
    try:
        yield database
    finally:
        await database.close()


async def value(lookups: Lookups, key: str, seconds: float | None = 20) -> bytes | None:
    found = await lookups.find(key, 1, seconds)
    return None if found is None else found.value


async def test_look_ups_of_one_tick_share_a_job_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    async with filled(tmp_path / "cache.db") as database:
        lookups = Lookups(database)
        answers = await asyncio.gather(*(value(lookups, key) for key in [*KEYS, "missing"]))
        assert answers == [*(key.encode() for key in KEYS), None]
        assert database.reads == 2, "the first goes at once, and the others together"


async def test_look_ups_that_come_one_by_one_wait_for_nobody(tmp_path: Path) -> None:
    async with filled(tmp_path / "cache.db") as database:
        lookups = Lookups(database)
        for key in KEYS[:5]:
            assert await value(lookups, key) == key.encode()
        assert database.reads == 5


async def test_each_look_up_of_a_shared_job_keeps_its_deadline(tmp_path: Path) -> None:
    async with filled(tmp_path / "cache.db") as database:
        lookups = Lookups(database)
        database.gate.clear()
        patient = [asyncio.ensure_future(value(lookups, key)) for key in KEYS[:3]]
        hurried = asyncio.ensure_future(value(lookups, "k7", 0.02))
        endless = asyncio.ensure_future(value(lookups, "k8", None))
        with pytest.raises(DeadlineExceeded):
            await hurried
        database.gate.set()
        assert await asyncio.gather(*patient, endless) == [b"k0", b"k1", b"k2", b"k8"]


async def test_a_cancelled_look_up_takes_nobody_with_it(tmp_path: Path) -> None:
    async with filled(tmp_path / "cache.db") as database:
        lookups = Lookups(database)
        for turns in range(8):
            calls = [asyncio.ensure_future(value(lookups, key)) for key in KEYS[:4]]
            for _ in range(turns):
                await asyncio.sleep(0)
            calls[0].cancel()
            calls[2].cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert answers[1::2] == [b"k1", b"k3"]


async def test_the_deadline_of_one_task_does_not_bind_those_that_share_its_job(tmp_path: Path) -> None:
    async with filled(tmp_path / "cache.db") as database:
        lookups = Lookups(database)
        database.gate.clear()

        async def hurried() -> None:
            async with deadline(0.02):
                await value(lookups, "k1")

        alone = asyncio.ensure_future(value(lookups, "k0"))
        await asyncio.sleep(0)
        first = asyncio.ensure_future(hurried())  # it is this one that sends the job of both
        second = asyncio.ensure_future(value(lookups, "k2"))
        with pytest.raises(DeadlineExceeded):
            await first
        database.gate.set()
        assert [await alone, await second] == [b"k0", b"k2"]


async def test_closing_tells_everybody_who_waits(tmp_path: Path) -> None:
    async with filled(tmp_path / "cache.db") as database:
        lookups = Lookups(database)
        database.gate.clear()
        calls = [asyncio.ensure_future(value(lookups, key)) for key in KEYS[:4]]
        await asyncio.sleep(0)
        await database.close()
        database.gate.set()
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, LifecycleError)


async def test_a_hit_in_memory_is_answered_on_the_spot() -> None:
    async with SqliteCache("memory:") as cache:
        await cache.set("key", b"1")
        with pytest.raises(StopIteration) as ended:
            cache.get("key").send(None)
        assert ended.value.value == b"1"


async def test_a_look_up_in_memory_keeps_away_from_a_connection_at_work() -> None:
    begun, release = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        Entries(1 << 20, 1 << 20).put(connection, "k0", b"half", now=0, expires=None)
        begun.set()
        assert release.wait(30)
        Entries(1 << 20, 1 << 20).put(connection, "k0", b"whole", now=0, expires=None)

    async with filled(None) as database:
        lookups = Lookups(database)
        write = asyncio.ensure_future(database.write(work))
        await asyncio.to_thread(begun.wait)
        calls = [asyncio.ensure_future(value(lookups, key)) for key in ("k0", "k1")]
        await asyncio.sleep(0.01)
        assert not any(call.done() for call in calls)
        release.set()
        assert await asyncio.gather(*calls) == [b"whole", b"k1"]
        await write


@pytest.mark.parametrize("url", ["sqlite:", "memory:"])
async def test_no_look_up_begins_when_the_time_is_over(url: str, tmp_path: Path) -> None:
    async def load() -> bytes:
        raise AssertionError("too late")

    async with SqliteCache(url, directory=tmp_path) as cache:
        await cache.set("key", b"1")
        calls = [partial(cache.get, "key"), partial(cache.get_or_load, "key", load, ttl=1)]
        for call in calls:
            with pytest.raises(DeadlineExceeded):
                async with deadline(0):
                    await call()
