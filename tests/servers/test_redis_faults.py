"""The Redis cache while its server stalls, vanishes and comes back, beyond the fault stage of every cache."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import NoOpTracerProvider

import faults
import testbed
from kmp_core.deadlines import deadline
from kmp_core.errors import BackendError, DeadlineExceeded, PoolExhausted, Unavailable
from kmp_core.secrets import Secret
from kmp_core.telemetry import reporting_to
from kmp_core.testing import Wire
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.redis.channel import Channel
from kmp_storage.redis.connections import Connections
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.cache import eventually

PASSWORD = Secret("staple")


@pytest.fixture
async def admin(redis_server: testbed.Server) -> AsyncIterator[RedisProvisioner]:
    url = f"redis://default:{redis_server.password}@{redis_server.address}"
    async with RedisProvisioner(url) as admin:
        await admin.provision("faulty", password=PASSWORD)
        yield admin
        await admin.deprovision("faulty", force=True)


def cache_at(port: int, **settings: Any) -> RedisCache:
    url = f"redis://faulty:{PASSWORD.reveal()}@127.0.0.1:{port}"
    return RedisCache(url, project="faulty", settings=RedisSettings.load(**settings))


@pytest.fixture
def proxy(admin: RedisProvisioner, redis_server: testbed.Server, proxies: faults.Proxies) -> Any:
    with proxies.before(redis_server) as proxy:
        yield proxy


async def taken(call: Awaitable[Any]) -> float:
    """Seconds until the call ended, net of the loop's own worst stall meanwhile, however it ended."""
    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(0.005)
            worst = max(worst, loop.time() - began - 0.005)

    watcher = asyncio.create_task(watch())
    began = time.monotonic()
    await asyncio.gather(call, return_exceptions=True)
    seconds = time.monotonic() - began
    watcher.cancel()
    return seconds - worst


Call = Callable[[RedisCache], Awaitable[Any]]


async def load() -> bytes:
    return b"loaded"


async def take_lock(cache: RedisCache) -> None:
    async with cache.lock("job", timeout=0.3):
        raise AssertionError("a lock from a server that does not answer")


CALLS: dict[str, Call] = {
    "get": lambda cache: cache.get("key", timeout=0.3),
    "set": lambda cache: cache.set("key", b"1", timeout=0.3),
    "delete": lambda cache: cache.delete("key", timeout=0.3),
    "increment": lambda cache: cache.increment("counter", timeout=0.3),
    "get_or_load": lambda cache: cache.get_or_load("key", load, ttl=60, timeout=0.3),
    "lock": take_lock,
}


@pytest.mark.parametrize("outage", ["miss", "error"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_black_hole_is_left_in_time(proxy: faults.Proxy, name: str, outage: str) -> None:
    async with cache_at(proxy.port, outage=outage) as cache:
        await cache.set("warm", b"1")
        proxy.black_hole()
        assert await taken(CALLS[name](cache)) <= 0.3 + 0.1


async def test_a_call_in_a_batch_is_left_in_time(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, outage="error") as cache:
        await cache.set("warm", b"1")
        proxy.black_hole()
        calls = [cache.get(f"key{n}", timeout=0.3) for n in range(20)]
        assert await taken(asyncio.gather(*calls, return_exceptions=True)) <= 0.3 + 0.1


async def test_the_task_s_own_deadline_is_kept(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port) as cache:
        await cache.set("warm", b"1")
        proxy.black_hole()

        async def hurried() -> None:
            async with deadline(0.3):
                await cache.get("key")
                await cache.get("key")

        assert await taken(hurried()) <= 0.3 + 0.1


@pytest.mark.parametrize("outage", ["miss", "error"])
@pytest.mark.parametrize("name", CALLS)
async def test_what_has_to_be_made_good_first_takes_no_more_than_the_call_s_time(
    proxy: faults.Proxy, name: str, outage: str
) -> None:
    async with cache_at(proxy.port, outage=outage, timeout="5s") as cache:
        await cache.set("key", b"old")
        proxy.black_hole()
        with contextlib.suppress(BackendError):
            await cache.set("key", b"new", timeout=0.05)
        assert await taken(CALLS[name](cache)) <= 0.3 + 0.1


async def test_much_that_has_to_be_made_good_takes_no_more_than_the_call_s_time(proxy: faults.Proxy) -> None:
    keys = [f"key{number}" for number in range(3000)]
    async with cache_at(proxy.port, timeout="5s") as cache:
        await cache.set("warm", b"1")
        proxy.black_hole(direction="upstream")
        assert await cache.delete(*keys, timeout=0.05) == 0
        proxy.heal()
        proxy.slow(200)
        assert await taken(cache.get("key1", timeout=0.3)) <= 0.3 + 0.1


async def test_what_has_to_be_made_good_is_bounded(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port) as cache:
        await cache.set("key9999", b"old")
        proxy.cut()
        assert await cache.delete("eldest") == 0
        assert await cache.delete(*(f"key{number}" for number in range(10_000))) == 0
        pending = cache._unsaid._pending
        assert len(pending) == 10_000 and "eldest" not in pending
        proxy.heal()

        async def back() -> bool:
            return await cache.set("again", b"1", timeout="20s")

        await eventually(back)
        assert not pending
        assert await cache.get("key9999") is None


async def test_what_has_to_be_made_good_leaves_time_to_load(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, timeout="5s") as cache:
        await cache.set("key", b"old")
        proxy.black_hole()
        assert not await cache.set("key", b"new", timeout=0.05)
        assert await cache.get_or_load("key", load, ttl=60, timeout=0.5) == b"loaded"


async def test_close_cuts_everything_though_a_connection_expires_in_that_moment(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, timeout="20s", connect_timeout="300ms") as cache:
        await cache.set("warm", b"1")
        proxy.black_hole()
        loop, closed = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        due = loop.time() + 0.3

        def close() -> None:
            try:
                closed.set_result(cache._connections.close())
            except Exception as error:
                closed.set_exception(error)

        # A loop that is busy when both are due: they run in one turn.
        loop.call_at(due + 0.02, close)
        loop.call_at(due - 0.05, time.sleep, 0.15)
        ask = cache._connections.ask
        calls = [asyncio.ensure_future(ask(("GET", b"faulty:v:{.warm}"), seconds=20)) for _ in range(3)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await closed
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3


async def test_close_is_bounded_with_the_server_gone(proxy: faults.Proxy) -> None:
    cache = cache_at(proxy.port, near_max_bytes=1 << 20, timeout="5s", connect_timeout="5s")
    await cache.open()
    await cache.set("warm", b"1")
    proxy.black_hole()
    # One on the idle connection, the others on one that is being made.
    calls = [asyncio.ensure_future(cache.get(f"key{n}")) for n in range(5)]
    await asyncio.sleep(0.1)
    assert await taken(cache.close()) <= 1
    await asyncio.gather(*calls, return_exceptions=True)


# An outage


async def test_an_outage_is_a_miss_and_heals_alone(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port) as cache:
        await cache.set("key", b"1")
        proxy.cut()
        assert await cache.get("key") is None
        assert not await cache.set("key", b"2")
        assert await cache.delete("other") == 0
        assert await cache.get_or_load("key", load, ttl=60) == b"loaded"
        with pytest.raises(Unavailable):
            await cache.check()
        proxy.heal()

        async def back() -> bool:
            return await cache.set("again", b"1")

        await eventually(back, within=5)
        assert await cache.get("again") == b"1"
        await cache.check()


async def test_an_outage_is_an_error_where_asked(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, outage="error") as cache:
        await cache.set("key", b"1")
        proxy.cut()
        calls = [
            cache.get("key"),
            cache.set("key", b"2"),
            cache.delete("key"),
            cache.get_or_load("key", load, ttl=60),
        ]
        for call in calls:
            with pytest.raises(Unavailable):
                await call


async def test_what_has_no_harmless_answer_is_an_error_always(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port) as cache:
        await cache.set("key", b"1")
        proxy.cut()
        for call in (cache.increment("counter"), cache.set("key", b"2", if_absent=True)):
            with pytest.raises(Unavailable):
                await call
        with pytest.raises(Unavailable):
            async with cache.lock("job"):
                raise AssertionError("a lock from a server that is gone")


@pytest.mark.parametrize("change", ["set", "delete"])
async def test_a_change_during_an_outage_leaves_no_old_value_behind(proxy: faults.Proxy, change: str) -> None:
    async with cache_at(proxy.port) as cache:
        await cache.set("key", b"old")
        proxy.cut()
        await (cache.set("key", b"new") if change == "set" else cache.delete("key"))
        proxy.heal()

        async def back() -> bool:
            assert await cache.get("key") is None, "the old value came back"
            return await cache.set("again", b"1")

        await eventually(back, within=5)
        assert await cache.get("key") is None


async def test_a_change_during_an_outage_ends_what_was_remembered_as_nothing(proxy: faults.Proxy) -> None:
    async def nothing() -> None:
        return None

    async with cache_at(proxy.port) as cache:
        assert await cache.get_or_load("key", nothing, ttl="1h", negative_ttl="1h") is None
        proxy.cut()
        assert not await cache.set("key", b"1")
        proxy.heal()

        async def back() -> bool:
            return await cache.set("again", b"1")

        await eventually(back)
        assert await cache.get_or_load("key", load, ttl="1h") == b"loaded"


async def test_a_change_without_an_answer_leaves_no_old_value_behind(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port) as cache:
        for ending in ("deadline", "cancellation"):
            await cache.set("key", b"old")
            proxy.black_hole(direction="upstream")  # it never arrives
            if ending == "deadline":
                with pytest.raises(DeadlineExceeded):
                    async with deadline(0.2):
                        await cache.set("key", b"new")
            else:
                call = asyncio.ensure_future(cache.set("key", b"new"))
                await asyncio.sleep(0.1)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            proxy.heal()

            async def back() -> bool:
                assert await cache.get("key") is None, "the old value came back"
                assert await cache.get_or_load("key", load, ttl=60) == b"loaded"
                await cache.delete("key")
                return await cache.set("again", b"1")

            await eventually(back, within=5)


async def test_it_opens_while_redis_is_away_and_uses_it_later(proxy: faults.Proxy) -> None:
    proxy.cut()
    with pytest.raises(Unavailable):
        await cache_at(proxy.port, outage="error").open()
    async with cache_at(proxy.port) as cache:
        assert await cache.get("key") is None
        proxy.heal()

        async def back() -> bool:
            return await cache.set("key", b"1")

        await eventually(back, within=5)


async def test_an_outage_costs_a_moment_once_and_not_with_every_call(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, timeout="200ms") as cache:
        await cache.set("warm", b"1")
        proxy.black_hole()
        for _ in range(6):
            await cache.get("key")
        assert await taken(cache.get("key")) < 0.1, "the breaker did not open"


async def test_one_load_in_this_process_while_redis_is_away(proxy: faults.Proxy) -> None:
    loads = 0

    async def slow() -> bytes:
        nonlocal loads
        loads += 1

        async def all_wait() -> bool:
            return (await cache.statistics()).misses == 20

        await eventually(all_wait)
        return b"slow"

    async with cache_at(proxy.port) as cache:
        await cache.set("warm", b"1")
        proxy.cut()
        assert await asyncio.gather(*(cache.get_or_load("key", slow, ttl=60) for _ in range(20))) == [b"slow"] * 20
    assert loads == 1


async def test_a_connection_that_died_unnoticed_costs_no_call(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, outage="error") as cache:
        await cache.set("key", b"1")
        for _ in range(3):
            await asyncio.gather(*(cache.set(f"key{number}", b"1") for number in range(3)))
            # Without a turn of the event loop in between, so that nobody has read yet that the connections ended.
            proxy.cut()
            proxy.heal()
            assert await cache.get("key") == b"1"


async def test_connections_that_a_rebooted_host_forgot_cost_no_call(
    admin: RedisProvisioner, redis_server: testbed.Server
) -> None:
    class Forgotten(asyncio.Event):
        """Resets the connections of now when something is sent on them, and not before."""

        def __init__(self) -> None:
            super().__init__()
            self.set()
            self._those = asyncio.all_tasks()

        async def wait(self) -> Literal[True]:
            if asyncio.current_task() in self._those:
                raise ConnectionResetError
            return await super().wait()

    async with Wire(testbed.LOOPBACK, redis_server.port) as wire:
        async with cache_at(wire.port, outage="error", timeout="20s", connect_timeout="20s") as cache:
            await asyncio.gather(*(cache.set(f"key{number}", b"1") for number in range(3)))
            assert cache._connections.idle > 1
            wire._passes["requests"] = Forgotten()
            assert await cache.get("key1") == b"1"


async def test_an_answer_too_many_reaches_nobody(admin: RedisProvisioner, redis_server: testbed.Server) -> None:
    strays = [b"$5\r\n\x01mine\r\n"]

    def add(said: bytes, ports: object) -> bytes:
        return said + (strays.pop() if said == b"$2\r\n\x01x\r\n" and strays else b"")

    async with Wire(testbed.LOOPBACK, redis_server.port, translate=add) as wire:
        async with cache_at(wire.port, outage="error", timeout="20s", connect_timeout="20s") as cache:
            await cache.set("key", b"x")
            assert await cache.get("key") == b"x"
            assert not strays
            assert await cache.get("another") is None


@pytest.mark.parametrize("counting", ["increment", "limit"])
async def test_what_was_counted_is_not_counted_again(
    admin: RedisProvisioner, redis_server: testbed.Server, counting: str
) -> None:
    async def count(cache: RedisCache) -> int:
        if counting == "increment":
            return await cache.increment("counter")
        return 100 - (await cache.limit("counter", rate=100, per="1h")).left

    async with (
        Wire(testbed.LOOPBACK, redis_server.port) as wire,
        cache_at(wire.port, timeout="20s", connect_timeout="20s") as cache,
        cache_at(redis_server.port, timeout="20s") as other,
    ):
        name = {"increment": cache._keys.value, "limit": cache._keys.limit}[counting]("counter")
        assert await count(cache) == 1
        wire.black_hole()
        call = asyncio.ensure_future(count(cache))

        async def counted() -> bool:
            return await other._connections.ask(("GET", name), seconds=20) == [b"2"]

        await eventually(counted)
        wire.drop()
        await wire.heal()
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.outcome_unknown
        assert await count(other) == 3


async def test_a_lost_answer_to_an_increment_says_that_nobody_knows(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port) as cache:
        await cache.increment("counter")
        proxy.black_hole()
        with pytest.raises(DeadlineExceeded) as caught:
            await cache.increment("counter", timeout=0.2)
        assert caught.value.outcome_unknown
        proxy.heal()
        assert await cache.increment("counter") in (2, 3)  # once at most: it was not repeated


# Cancellation


async def test_cancelled_transactions_leave_no_watch_behind(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, timeout="10s", pool_size=3) as cache:
        await cache.set("warm", b"1")
        proxy.slow(5)
        randomly = random.Random(5)

        async def locked() -> None:
            async with cache.lock("job", ttl=5, timeout=10):
                await asyncio.sleep(0.001)

        for _ in range(40):
            calls = [asyncio.ensure_future(locked()) for _ in range(2)]
            await asyncio.sleep(randomly.uniform(0, 0.03))
            calls[0].cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert outcomes[1] is None
        assert await cache.increment("counter") == 1


async def test_a_release_does_not_overtake_the_claim_that_was_given_up(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, timeout="10s") as cache:
        await asyncio.gather(*(cache.set(f"key{number}", b"1") for number in range(5)))

        async def take() -> None:
            async with cache.lock("job", ttl="1h"):
                raise AssertionError("it was given up before it could be had")

        for _ in range(10):
            proxy.slow(100, direction="upstream")
            waiter = asyncio.ensure_future(take())
            await asyncio.sleep(0.02)  # sent, and on its way
            proxy.heal()  # whoever is sent now is there before
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
            async with cache.lock("job", ttl="1h", timeout="5s"):
                pass


async def test_a_release_waits_for_a_claim_that_outlives_its_connection(
    admin: RedisProvisioner, redis_server: testbed.Server
) -> None:
    class FirstStays(asyncio.Event):
        """Holds what is sent first, and lets all else pass."""

        stays = False

        async def wait(self) -> Literal[True]:
            if not self.stays:
                self.stays = True
                await super().wait()
            return True

    async with Wire(testbed.LOOPBACK, redis_server.port) as wire, cache_at(wire.port, timeout="20s") as cache:
        await cache.set("warm", b"1")

        async def take() -> None:
            async with cache.lock("job", ttl="1h"):
                raise AssertionError("it was given up before it could be had")

        claim = wire._passes["requests"] = FirstStays()
        waiter = asyncio.ensure_future(take())
        await eventually(lambda: is_so(claim.stays))
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        # A release that did not wait has come to its end by then.
        await asyncio.wait(cache._leases._releasing, timeout=1)
        claim.set()

        async def arrived() -> bool:
            return bool((await cache._connections.ask(("EXISTS", cache._keys.token("job")), seconds=20))[0])

        await eventually(arrived)
        async with cache.lock("job", ttl="1h", timeout="10s"):
            pass


async def is_so(truth: bool) -> bool:
    return truth


# The pool


async def test_who_finds_no_connection_in_time_is_told_so(proxy: faults.Proxy) -> None:
    async with cache_at(proxy.port, pool_size=2, outage="error", timeout="5s") as cache:
        await cache.set("warm", b"1")
        proxy.slow(1000)
        calls = [cache.set(f"key{n}", b"1", timeout=0.3 if n > 3 else 5) for n in range(10)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(outcome, PoolExhausted) for outcome in outcomes) == 6
        assert all(isinstance(outcome, bool | BackendError) for outcome in outcomes)


@pytest.mark.parametrize("given", ["a connection", "room for one"])
async def test_what_is_given_to_who_leaves_in_that_moment_goes_to_the_next(
    proxy: faults.Proxy, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    wake = Connections._wake

    def and_leave(connections: Connections, channel: Channel | None) -> bool:
        woken = wake(connections, channel)
        calls[1].cancel()
        return woken

    async with cache_at(proxy.port, pool_size=1, timeout="10s", connect_timeout="10s") as cache:
        await cache.set("warm", b"1")
        proxy.slow(50)
        ask = cache._connections.ask
        calls = [asyncio.ensure_future(ask(("PING",), seconds=10)) for _ in range(3)]
        await asyncio.sleep(0)
        monkeypatch.setattr(Connections, "_wake", and_leave)
        if given == "room for one":
            calls[0].cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(outcomes[1], asyncio.CancelledError)
        assert outcomes[2] == [b"PONG"]


async def test_who_waits_for_a_connection_is_a_metric(proxy: faults.Proxy) -> None:
    reader = InMemoryMetricReader()
    with reporting_to(NoOpTracerProvider(), MeterProvider([reader])):
        async with cache_at(proxy.port, pool_size=1, outage="error") as cache:
            await cache.set("warm", b"1")
            proxy.slow(500)
            calls = [asyncio.ensure_future(cache.set(f"key{n}", b"1", timeout=0.2 if n else 5)) for n in range(3)]
            await asyncio.sleep(0)
            assert points(reader, "count") == {"used": 1, "idle": 0}
            assert points(reader, "pending_requests") == {None: 2}
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [bool, PoolExhausted, PoolExhausted]
            assert points(reader, "count") == {"used": 0, "idle": 1}
            assert points(reader, "timeouts") == {None: 2}
        assert points(reader, "pending_requests") == {}


def points(reader: InMemoryMetricReader, name: str) -> dict[Any, float]:
    """The values of a pool's metric by state."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (point.attributes or {}).get("db.client.connection.state"): point.value
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name == f"db.client.connection.{name}"
        for point in metric.data.data_points
    }
