"""The near cache is bounded, true to what others write, and empty as soon as it no longer hears of changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as bare

import faults
import testbed
from kmp_core.errors import LifecycleError
from kmp_core.secrets import Secret
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.redis.entries import Found
from kmp_storage.redis.near import Near
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.cache import eventually

PASSWORD = Secret("near")


@pytest.fixture
async def port(redis_server: testbed.Server) -> AsyncIterator[int]:
    async with RedisProvisioner(f"redis://default:{redis_server.password}@{redis_server.address}") as admin:
        await admin.provision("nearby", password=PASSWORD)
        yield redis_server.port
        await admin.deprovision("nearby", force=True)


@pytest.fixture
def proxy(port: int, redis_server: testbed.Server, proxies: faults.Proxies) -> Any:
    with proxies.before(redis_server) as proxy:
        yield proxy


def cache_at(port: int, *, near_max_bytes: int = 1 << 20, near_ttl: str = "1h", **settings: Any) -> RedisCache:
    loaded = RedisSettings.load(near_max_bytes=near_max_bytes, near_ttl=near_ttl, **settings)
    return RedisCache(f"redis://nearby:{PASSWORD.reveal()}@127.0.0.1:{port}", project="nearby", settings=loaded)


async def live(cache: RedisCache) -> None:
    """Return once the cache hears of changes."""

    async def is_live() -> bool:
        assert cache._near is not None
        return cache._near.live

    await eventually(is_live)


async def kept(cache: RedisCache, key: str, value: bytes) -> None:
    """Have this process keep the value near."""
    near = cache._near
    assert near is not None

    async def holds() -> bool:
        return await cache.get(key) == value and near.find(key) == value

    await eventually(holds)


async def load() -> bytes:
    return b"loaded"


async def test_a_hit_asks_nobody(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, outage="error") as cache:
        await live(cache)
        await cache.set("key", b"1", ttl="1h")
        await kept(cache, "key", b"1")
        proxy.black_hole()
        for _ in range(10):
            assert await cache.get("key", timeout=0.5) == b"1"
            assert await cache.get_or_load("key", load, ttl="1h", timeout=0.5) == b"1"


@pytest.mark.parametrize("change", ["set", "delete", "increment", "load"])
async def test_what_another_process_changes_is_seen(port: int, change: str) -> None:
    async with cache_at(port) as ours, cache_at(port) as theirs:
        await live(ours)
        await ours.set("key", b"1")
        await kept(ours, "key", b"1")
        expected: bytes | None = b"2"
        if change == "set":
            await theirs.set("key", b"2")
        elif change == "increment":
            await theirs.increment("key")
        elif change == "delete":
            await theirs.delete("key")
            expected = None
        else:
            await theirs._connections.ask(("DEL", theirs._keys.value("key")), seconds=1)
            await theirs.get_or_load("key", load, ttl="1h")
            expected = b"loaded"

        async def seen() -> bool:
            return await ours.get("key") == expected

        await eventually(seen, within=5)


@pytest.fixture
async def tracking_port(redis_server: testbed.Server) -> AsyncIterator[int]:
    """A server that the project has for itself."""
    async with RedisProvisioner(f"redis://default:{redis_server.password}@{redis_server.address}") as admin:
        await admin.provision("nearby", password=PASSWORD, placement="dedicated")
        yield redis_server.port
        await admin.deprovision("nearby", force=True)


@pytest.mark.parametrize("change", ["SET {0} 2", "DEL {0}", "PEXPIRE {0} 1", "INCRBY {0} 1"])
async def test_on_a_server_of_its_own_the_server_says_what_changed(tracking_port: int, change: str) -> None:
    async with cache_at(tracking_port, near_tracking=True) as cache:
        await live(cache)
        await cache.set("key", b"1")
        await kept(cache, "key", b"1")
        # By somebody who says nothing on the channel.
        await cache._connections.ask(tuple(change.format("nearby:v:{.key}").split()), seconds=1)

        async def seen() -> bool:
            return await cache.get("key") != b"1"

        await eventually(seen, within=5)


async def test_a_flushed_server_empties_it(tracking_port: int, redis_server: testbed.Server) -> None:
    async with cache_at(tracking_port, near_tracking=True) as cache:
        await live(cache)
        await cache.set("key", b"1")
        await kept(cache, "key", b"1")
        async with bare.Redis(port=redis_server.port, password=redis_server.password) as root:
            await root.flushdb()

        async def seen() -> bool:
            return await cache.get("key") is None

        await eventually(seen, within=5)


async def test_tracking_on_a_shared_server_is_refused_and_nothing_is_kept(port: int) -> None:
    async with cache_at(port, near_tracking=True) as cache:
        await cache.set("key", b"1")
        for _ in range(20):
            assert await cache.get("key") == b"1"
            await asyncio.sleep(0.01)
        near = cache._near
        assert near is not None
        assert not near.live and near.bytes_used == 0


async def test_our_own_change_is_seen_at_once(port: int) -> None:
    async with cache_at(port) as cache:
        await live(cache)
        near, hearing = cache._near, cache._hearing
        assert near is not None and hearing is not None
        hearing.cancel()
        await asyncio.wait((hearing,))
        near.live = True  # though nobody tells it: our own changes need no message
        for number in range(50):
            await cache.set("key", b"value%d" % number)
            assert await cache.get("key") == b"value%d" % number
        await cache.delete("key")
        assert await cache.get("key") is None


async def test_an_answer_from_before_a_change_is_not_kept(proxy: faults.Proxy, port: int) -> None:
    async with cache_at(proxy.port) as ours, cache_at(port) as theirs:
        await live(ours)
        await theirs.set("key", b"old")
        near = ours._near
        assert near is not None
        reservation = near.reserve("key")  # as a read does before it is sent, whose answer is late
        await theirs.set("key", b"new")

        async def heard() -> bool:
            return reservation.spoilt

        await eventually(heard, within=5)
        assert await ours.get("key") == b"new"


async def test_an_answer_from_before_changes_were_heard_is_not_kept(proxy: faults.Proxy) -> None:
    proxy.cut()
    async with cache_at(proxy.port) as ours:
        near = ours._near
        assert near is not None and not near.live
        reservation = near.reserve("key")  # as a read does whose answer came at once, and is looked at late
        proxy.heal()
        await live(ours)
        near.settle("key", reservation, Found(b"old"))
        assert near.find("key") is None


async def test_nothing_is_kept_longer_than_its_own_time(port: int) -> None:
    async with cache_at(port) as cache:
        await live(cache)
        await cache.set("key", b"1", ttl="2s")
        await kept(cache, "key", b"1")

        async def gone() -> bool:
            return await cache.get("key") is None

        await eventually(gone, within=5)


async def test_a_lost_message_is_made_good_by_the_short_time(port: int) -> None:
    async with cache_at(port, near_ttl="500ms") as cache:
        await live(cache)
        await cache.set("key", b"1")
        await kept(cache, "key", b"1")
        # Written without a word on the channel, as if the message had been lost.
        await cache._connections.ask(("SET", cache._keys.value("key"), b"\x012"), seconds=1)

        async def seen() -> bool:
            return await cache.get("key") == b"2"

        await eventually(seen, within=5)


async def test_it_is_emptied_when_changes_are_no_longer_heard(proxy: faults.Proxy, port: int) -> None:
    async with cache_at(proxy.port) as ours, cache_at(port) as theirs:
        await live(ours)
        await ours.set("key", b"1")
        await kept(ours, "key", b"1")
        near = ours._near
        assert near is not None
        proxy.cut()

        async def empty() -> bool:
            return not near.live and near.bytes_used == 0

        await eventually(empty, within=5)
        assert await ours.get("key") is None
        await theirs.set("key", b"2")
        proxy.heal()

        async def seen() -> bool:
            return near.live and await ours.get("key") == b"2"

        await eventually(seen, within=10)


async def test_what_another_process_makes_good_is_seen(proxy: faults.Proxy, port: int) -> None:
    async with cache_at(proxy.port, near_max_bytes=0) as ours, cache_at(port) as theirs:
        await live(theirs)
        await theirs.set("key", b"1")
        await kept(theirs, "key", b"1")
        proxy.cut()
        assert await ours.delete("key") == 0
        proxy.heal()

        async def back() -> bool:
            return await ours.set("again", b"1")

        await eventually(back)

        async def seen() -> bool:
            return await theirs.get("key") is None

        await eventually(seen, within=5)


async def test_a_silent_peer_is_found_out(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, near_ttl="300ms") as cache:
        await live(cache)
        near = cache._near
        assert near is not None
        proxy.black_hole()

        async def noticed() -> bool:
            return not near.live

        await eventually(noticed, within=5)


async def test_it_keeps_to_its_bytes(port: int) -> None:
    async with cache_at(port, near_max_bytes=100_000) as cache:
        await live(cache)
        near = cache._near
        assert near is not None
        for number in range(300):
            await cache.set(f"key{number}", b"x" * 1000)
            await cache.get(f"key{number}")
            assert near.bytes_used <= 100_000
        assert near.bytes_used > 20_000
        await cache.set("large", b"x" * 90_000)
        await cache.set("marker", b"1")
        await kept(cache, "marker", b"1")  # so our own messages of both have come
        assert await cache.get("large") == b"x" * 90_000
        assert near.find("large") is None


def test_what_is_used_outlives_what_is_not() -> None:
    near = Near(max_bytes=20_000, ttl=60)
    near.live = True
    near.settle("used", near.reserve("used"), Found(b"1"))
    for number in range(500):
        assert near.find("used") == b"1"
        near.settle(f"key{number}", near.reserve(f"key{number}"), Found(b"x" * 100))
    assert near.find("key0") is None


async def test_a_closed_cache_serves_nothing_of_it(port: int) -> None:
    cache = cache_at(port)
    async with cache:
        await live(cache)
        await cache.set("key", b"1")
        await kept(cache, "key", b"1")
    with pytest.raises(LifecycleError):
        await cache.get("key")


async def test_processes_that_write_and_read_agree_in_the_end(port: int) -> None:
    async with cache_at(port) as first, cache_at(port) as second, cache_at(port) as third:
        caches = (first, second, third)
        for cache in caches:
            await live(cache)

        async def work(cache: RedisCache, seed: int) -> None:
            for number in range(200):
                key = f"key{(number * seed) % 7}"
                await cache.get(key)
                if number % 5 == seed:
                    await cache.set(key, b"%d of %d" % (number, seed))
                if number % 50 == 0:
                    await cache.delete(key)

        await asyncio.gather(*(work(cache, seed) for seed, cache in enumerate(caches, 1)))

        async def agree() -> bool:
            found = [[await cache.get(f"key{number}") for number in range(7)] for cache in caches]
            return found[0] == found[1] == found[2]

        await eventually(agree, within=5)
