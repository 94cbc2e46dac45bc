"""What the embedded cache does beyond the contract: bounds, eviction, spread ends, leases that a clock cannot hold."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from kmp_core.errors import BackendError, Conflict, Corrupt, DeadlineExceeded, InvalidInput, PermissionDenied
from kmp_core.testing import ManualClock
from kmp_storage.embedded.cache import CacheSettings, SqliteCache

SMALL = CacheSettings.load(max_bytes=1 << 16, max_value_bytes=4096)


@pytest.fixture(params=["sqlite:", "memory:"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock() -> Iterator[ManualClock]:
    yield ManualClock()


async def test_stays_within_its_bytes_and_drops_what_was_not_used(url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with SqliteCache(url, directory=tmp_path, settings=SMALL, clock=clock.time) as cache:
        await cache.set("wanted", b"x" * 1000)
        for number in range(300):
            clock.advance(1)
            await cache.set(f"k{number}", b"x" * 1000)
            assert await cache.get("wanted") is not None, f"evicted after {number} although it was read all the time"
            assert (await cache.statistics()).bytes_used <= SMALL.max_bytes
        statistics = await cache.statistics()
        assert statistics.evictions > 200
        assert await cache.get("k0") is None
        assert await cache.get("k299") is not None


async def test_what_expired_goes_before_what_is_live(url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with SqliteCache(url, directory=tmp_path, settings=SMALL, clock=clock.time) as cache:
        await cache.set("oldest", b"live")
        for number in range(50):
            await cache.set(f"short{number}", b"x" * 1000, ttl=10)
        clock.advance(11)
        for number in range(40):
            await cache.set(f"new{number}", b"x" * 1000)
        assert await cache.get("oldest") == b"live"
        assert (await cache.statistics()).evictions == 0


async def test_expired_entries_do_not_pile_up(url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with SqliteCache(url, directory=tmp_path, clock=clock.time) as cache:
        for number in range(100):
            await cache.set(f"k{number}", b"x" * 100, ttl=1)
        full = (await cache.statistics()).bytes_used
        clock.advance(2)
        for _ in range(5):
            await cache.set("other", b"x")
        assert (await cache.statistics()).bytes_used < full / 20


async def test_usage_is_right_after_every_kind_of_change(tmp_path: Path) -> None:
    async with SqliteCache("memory:", directory=tmp_path) as cache:
        await cache.set("key", b"x" * 100)
        one = (await cache.statistics()).bytes_used
        await cache.set("key", b"x" * 150)
        assert (await cache.statistics()).bytes_used == one + 50
        await cache.set("other", b"")
        await cache.delete("key", "other")
        assert (await cache.statistics()).bytes_used == 0


async def test_refuses_a_value_beyond_the_limit(url: str, tmp_path: Path) -> None:
    async def load() -> bytes:
        return b"x" * 4097

    async with SqliteCache(url, directory=tmp_path, settings=SMALL) as cache:
        await cache.set("key", b"x" * 4096)
        with pytest.raises(InvalidInput, match="KMP_STORAGE_CACHE_MAX_VALUE_BYTES"):
            await cache.set("key", b"x" * 4097)
        with pytest.raises(InvalidInput, match=r"^value: "):
            await cache.get_or_load("loaded", load, ttl=1)
        assert await cache.get("key") == b"x" * 4096


async def test_loaded_values_end_at_different_moments(url: str, tmp_path: Path, clock: ManualClock) -> None:
    async def load() -> bytes:
        return b"x"

    settings = CacheSettings.load(jitter=0.5, refresh_after=1)
    async with SqliteCache(url, directory=tmp_path, settings=settings, clock=clock.time) as cache:
        for number in range(60):
            await cache.get_or_load(f"k{number}", load, ttl=100)
            await cache.set(f"exact{number}", b"x", ttl=100)
        clock.advance(75)
        loaded = [await cache.get(f"k{number}") for number in range(60)]
        exact = [await cache.get(f"exact{number}") for number in range(60)]
        assert 5 < loaded.count(None) < 55
        assert exact.count(None) == 0


async def test_refreshes_at_the_set_share_of_the_time(url: str, tmp_path: Path, clock: ManualClock) -> None:
    loads = 0

    async def load() -> bytes:
        nonlocal loads
        loads += 1
        return b"%d" % loads

    settings = CacheSettings.load(jitter=0, refresh_after=0.5)
    async with SqliteCache(url, directory=tmp_path, settings=settings, clock=clock.time) as cache:
        assert await cache.get_or_load("key", load, ttl=100) == b"1"
        clock.advance(49)
        assert await cache.get_or_load("key", load, ttl=100) == b"1"
        clock.advance(2)
        assert await cache.get_or_load("key", load, ttl=100) == b"2"
        assert await cache.get_or_load("key", load, ttl=100) == b"2"


async def test_a_source_that_is_down_is_not_asked_by_every_caller(url: str, tmp_path: Path, clock: ManualClock) -> None:
    asked = 0

    async def load() -> bytes:
        return b"old"

    async def broken() -> bytes:
        nonlocal asked
        asked += 1
        raise LookupError

    settings = CacheSettings.load(jitter=0, refresh_after=0.5)
    async with SqliteCache(url, directory=tmp_path, settings=settings, clock=clock.time) as cache:
        await cache.get_or_load("key", load, ttl=100)
        clock.advance(60)
        assert [await cache.get_or_load("key", broken, ttl=100) for _ in range(10)] == [b"old"] * 10
        assert asked == 1
        clock.advance(25)
        assert await cache.get_or_load("key", broken, ttl=100) == b"old"
        assert asked == 2
        clock.advance(20)
        with pytest.raises(LookupError):
            await cache.get_or_load("key", broken, ttl=100)


async def test_callers_of_one_process_share_a_failing_load(url: str, tmp_path: Path) -> None:
    loads = 0

    async def broken() -> bytes:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.05)
        raise LookupError

    async with SqliteCache(url, directory=tmp_path) as cache:
        calls = (cache.get_or_load("key", broken, ttl="1m") for _ in range(20))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LookupError] * 20
    assert loads == 1


async def test_a_loader_that_ran_out_of_time_is_tried_anew_by_the_next_caller(url: str, tmp_path: Path) -> None:
    loading, second_waits = asyncio.Event(), asyncio.Event()

    async def late() -> bytes:
        loading.set()
        await second_waits.wait()
        raise DeadlineExceeded("the source took too long for this caller")

    async def load() -> bytes:
        return b"second"

    async with SqliteCache(url, directory=tmp_path) as cache:
        first = asyncio.ensure_future(cache.get_or_load("key", late, ttl="1m"))
        await loading.wait()
        second = asyncio.ensure_future(cache.get_or_load("key", load, ttl="1m"))
        await asyncio.sleep(0.05)
        second_waits.set()
        assert await second == b"second"
        with pytest.raises(DeadlineExceeded):
            await first


@pytest.mark.parametrize("end", ["fails", "cancelled", "late"])
async def test_a_loader_that_ended_badly_frees_its_lease_at_once(tmp_path: Path, end: str) -> None:
    loading = asyncio.Event()

    async def first() -> bytes:
        loading.set()
        if end == "fails":
            raise LookupError
        await asyncio.Event().wait()
        return b"never"

    async def second() -> bytes:
        return b"second"

    settings = CacheSettings.load(load_lease="1h")
    async with SqliteCache(directory=tmp_path, settings=settings) as cache:
        call = asyncio.ensure_future(cache.get_or_load("key", first, ttl="1m", timeout=0.2 if end == "late" else None))
        await loading.wait()
        if end == "cancelled":
            call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        async with SqliteCache(directory=tmp_path, settings=settings) as other:
            assert await other.get_or_load("key", second, ttl="1m", timeout="10s") == b"second"


async def test_a_slow_refresh_leaves_time_for_the_old_value(tmp_path: Path, clock: ManualClock) -> None:
    async def load() -> bytes:
        return b"old"

    async def never() -> bytes:
        await asyncio.Event().wait()
        return b"never"

    async with SqliteCache("memory:", directory=tmp_path, clock=clock.time) as cache:
        await cache.get_or_load("key", load, ttl=100)
        clock.advance(90)
        assert await cache.get_or_load("key", never, ttl=100, timeout=0.5) == b"old"


async def test_a_clock_set_back_does_not_hold_a_dead_lease(tmp_path: Path, clock: ManualClock) -> None:
    async with SqliteCache(directory=tmp_path, clock=clock.time) as other:
        holder = other.lock("job", ttl=10)
        lease = await holder.__aenter__()
        past = ManualClock(start=clock.now() - timedelta(hours=1))
        async with SqliteCache(directory=tmp_path, clock=past.time) as cache, cache.lock("job", timeout=5) as taken:
            assert taken.token > lease.token
        with pytest.raises(Conflict, match="went to another holder"):
            await holder.__aexit__(None, None, None)


async def test_a_holder_that_lost_its_lock_is_told(tmp_path: Path, clock: ManualClock) -> None:
    async with SqliteCache(directory=tmp_path, clock=clock.time) as cache:
        with pytest.raises(Conflict, match="went to another holder"):
            async with cache.lock("job", ttl=10):
                clock.advance(11)
                async with cache.lock("job", timeout=5):
                    pass


async def test_tokens_grow_although_the_file_was_deleted(tmp_path: Path) -> None:
    tokens = []
    for number in range(3):
        async with SqliteCache(directory=tmp_path / str(number)) as cache, cache.lock("job") as lease:
            tokens.append(lease.token)
    assert tokens == sorted(set(tokens))


async def test_a_damaged_file_is_reported_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "cache.db"
    file.write_bytes(b"this is no database" * 1000)
    with pytest.raises(Corrupt):
        await SqliteCache(directory=tmp_path).open()
    assert file.read_bytes() == b"this is no database" * 1000


async def test_another_projects_file_is_refused(tmp_path: Path) -> None:
    async with SqliteCache(project="acme", directory=tmp_path) as cache:
        await cache.set("key", b"1")
    with pytest.raises(PermissionDenied):
        await SqliteCache(project="acme2", directory=tmp_path).open()


async def test_a_failing_file_raises_typed_errors(tmp_path: Path) -> None:
    async with SqliteCache(directory=tmp_path) as cache:
        await cache.set("key", b"1")
        blocker = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(BackendError) as caught:
                await cache.set("key", b"2", timeout=0.2)
            assert caught.value.retryable
            assert await cache.get("key") == b"1"
        finally:
            blocker.close()
        await cache.set("key", b"2")


async def test_memory_caches_are_private() -> None:
    async with SqliteCache("memory:") as one, SqliteCache("memory:") as other:
        await one.set("key", b"1")
        assert await other.get("key") is None
