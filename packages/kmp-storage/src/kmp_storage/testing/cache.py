"""What every cache promises; derive `TestMyCache(CacheContract)` and define the fixture `make`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from kmp_core.errors import Conflict, DeadlineExceeded, InvalidInput
from kmp_core.testing import Make, ProviderContract, Recorder

__all__ = ["CacheContract", "eventually"]


class _Airport(BaseModel):
    code: str
    seats: int


class _Airfield(BaseModel):
    """What another version of the service made of it."""

    code: str
    runways: int


async def eventually(condition: Callable[[], Awaitable[bool]], *, within: float = 20) -> None:
    """Return as soon as the condition holds."""
    end = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < end, f"it did not come true within {within} s"
        await asyncio.sleep(0.01)


async def _fail() -> bytes | None:
    raise AssertionError("this loader must not be called")


class CacheContract(ProviderContract):
    """The promises of `Cache` within one process; `SharedCacheContract` adds those over several."""

    abilities: ClassVar[frozenset[str]] = frozenset({"bounded", "durable", "early_refresh", "shared"})
    """What a cache may declare beyond the calls of its protocol. A declared ability is tested."""

    async def write(self, provider: Any) -> None:
        await provider.set("contract", b"1")

    async def wrote(self, provider: Any) -> bool:
        return bool(await provider.get("contract") == b"1")

    async def test_declares_known_abilities(self, make: Make) -> None:
        assert make().abilities <= self.abilities

    async def test_keeps_what_was_set_last(self, make: Make) -> None:
        async with make() as cache:
            assert await cache.get("key") is None
            assert await cache.set("key", b"one")
            assert await cache.set("key", b"two")
            assert await cache.get("key") == b"two"
            assert await cache.get("Key") is None

    async def test_an_empty_value_is_a_value(self, make: Make) -> None:
        async with make() as cache:
            await cache.set("empty", b"")
            assert await cache.get("empty") == b""
            assert await cache.get_or_load("empty", _fail, ttl="1m") == b""
            assert not await cache.set("empty", b"x", if_absent=True)

    async def test_forgets_when_the_time_is_over(self, make: Make) -> None:
        async with make() as cache:
            await cache.set("short", b"1", ttl=0.2)
            await cache.set("long", b"1", ttl="1h")

            async def gone() -> bool:
                return await cache.get("short") is None

            await eventually(gone)
            assert await cache.get("long") == b"1"
            assert await cache.set("short", b"2", if_absent=True)

    async def test_setting_again_gives_a_new_time(self, make: Make) -> None:
        async with make() as cache:
            await cache.set("key", b"1", ttl=0.2)
            await cache.set("key", b"2")
            await cache.set("marker", b"", ttl=0.3)

            async def later() -> bool:
                return await cache.get("marker") is None

            await eventually(later)
            assert await cache.get("key") == b"2"

    async def test_only_one_of_many_sets_what_is_absent(self, make: Make) -> None:
        async with make() as cache:
            won = await asyncio.gather(*(cache.set("key", b"%d" % i, if_absent=True) for i in range(20)))
            assert sum(won) == 1
            assert await cache.get("key") == b"%d" % won.index(True)

    async def test_delete_counts_what_was_there(self, make: Make) -> None:
        async with make() as cache:
            await cache.set("a", b"1")
            await cache.set("b", b"1")
            assert await cache.delete("a", "b", "c") == 2
            assert await cache.get("a") is None
            assert await cache.delete() == 0

    async def test_counts_without_losing_an_increment(self, make: Make) -> None:
        async with make() as cache:
            values = await asyncio.gather(*(cache.increment("visits") for _ in range(50)))
            assert sorted(values) == list(range(1, 51))
            assert await cache.increment("visits", -60) == -10
            assert await cache.increment("visits", 0) == -10
            assert await cache.get("visits") == b"-10"

    async def test_the_time_of_a_counter_starts_with_it(self, make: Make) -> None:
        async with make() as cache:
            await cache.increment("window", ttl=0.5)

            async def began_anew() -> bool:
                return bool(await cache.increment("window", ttl=0.5) == 1)

            await eventually(began_anew)

    async def test_refuses_to_count_what_is_no_number(self, make: Make) -> None:
        async with make() as cache:
            for value in (b"seven", b"", b"1.5", b" 1", "٣".encode()):
                await cache.set("text", value)
                with pytest.raises(Conflict):
                    await cache.increment("text")
                assert await cache.get("text") == value
            with pytest.raises(InvalidInput):
                await cache.increment("big", 1 << 64)

    # Loading

    async def test_loads_once_for_many_callers(self, make: Make) -> None:
        loads = 0

        async def load() -> bytes:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0.05)
            return b"loaded"

        async with make() as cache:
            values = await asyncio.gather(*(cache.get_or_load("key", load, ttl="1m") for _ in range(30)))
            assert values == [b"loaded"] * 30
            assert loads == 1
            assert await cache.get_or_load("key", _fail, ttl="1m") == b"loaded"

    async def test_loads_different_keys_at_the_same_time(self, make: Make) -> None:
        met = asyncio.Barrier(2)

        async def load() -> bytes:
            await met.wait()
            return b"met"

        async with make() as cache:
            calls = (cache.get_or_load(key, load, ttl="1m", timeout="20s") for key in ("a", "b"))
            assert await asyncio.gather(*calls) == [b"met", b"met"]

    async def test_a_failing_loader_is_heard_and_not_remembered(self, make: Make) -> None:
        async def load() -> bytes:
            await asyncio.sleep(0.02)
            raise LookupError("no such airport")

        async def again() -> bytes:
            return b"found"

        async with make() as cache:
            calls = (cache.get_or_load("key", load, ttl="1m") for _ in range(5))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [LookupError] * 5
            assert await cache.get_or_load("key", again, ttl="1m") == b"found"

    async def test_a_cancelled_loader_lets_the_next_one_load(self, make: Make) -> None:
        loading = asyncio.Event()

        async def never() -> bytes:
            loading.set()
            await asyncio.Event().wait()
            return b"never"

        async def load() -> bytes:
            return b"second"

        async with make() as cache:
            first = asyncio.ensure_future(cache.get_or_load("key", never, ttl="1m"))
            await loading.wait()
            second = asyncio.ensure_future(cache.get_or_load("key", load, ttl="1m", timeout="20s"))
            await asyncio.sleep(0.02)
            first.cancel()
            assert await second == b"second"
            with pytest.raises(asyncio.CancelledError):
                await first

    async def test_a_loader_out_of_time_takes_nobody_with_it(self, make: Make) -> None:
        loading = asyncio.Event()

        async def never() -> bytes:
            loading.set()
            await asyncio.Event().wait()
            return b"never"

        async def load() -> bytes:
            return b"second"

        async with make() as cache:
            first = asyncio.ensure_future(cache.get_or_load("key", never, ttl="1m", timeout=0.2))
            await loading.wait()
            assert await cache.get_or_load("key", load, ttl="1m", timeout="20s") == b"second"
            with pytest.raises(DeadlineExceeded):
                await first

    async def test_remembers_nothing_for_as_long_as_asked(self, make: Make) -> None:
        loads = 0

        async def nothing() -> None:
            nonlocal loads
            loads += 1

        async with make() as cache:
            assert await cache.get_or_load("forgotten", nothing, ttl="1m") is None
            assert await cache.get_or_load("forgotten", nothing, ttl="1m") is None
            assert loads == 2
            assert await cache.get_or_load("kept", nothing, ttl="1m", negative_ttl=0.3) is None
            assert await cache.get_or_load("kept", nothing, ttl="1m", negative_ttl=0.3) is None
            assert loads == 3
            assert await cache.get("kept") is None
            assert await cache.set("kept", b"now", if_absent=True)

    async def test_nothing_is_forgotten_in_the_end(self, make: Make) -> None:
        async def nothing() -> None:
            return None

        async def something() -> bytes:
            return b"something"

        async with make() as cache:
            await cache.get_or_load("key", nothing, ttl="1m", negative_ttl=0.2)

            async def found() -> bool:
                return bool(await cache.get_or_load("key", something, ttl="1m", negative_ttl=0.2) == b"something")

            await eventually(found)

    @pytest.mark.parametrize("change", ["set", "delete"])
    async def test_a_load_does_not_undo_a_later_change(self, make: Make, change: str) -> None:
        loading, changed = asyncio.Event(), asyncio.Event()

        async def outdated() -> bytes:
            loading.set()
            await changed.wait()
            return b"old"

        async with make() as cache:
            call = asyncio.ensure_future(cache.get_or_load("key", outdated, ttl="1m"))
            await loading.wait()
            if change == "set":
                await cache.set("key", b"new")
            else:
                await cache.delete("key")
            changed.set()
            assert await call == b"old"
            assert await cache.get("key") == (b"new" if change == "set" else None)

    async def test_refreshes_before_the_end_while_others_get_the_old_value(self, make: Make) -> None:
        if "early_refresh" not in make().abilities:
            pytest.skip("early_refresh is not declared")
        seen: list[bytes | None] = []

        async with make() as cache:

            async def old() -> bytes:
                return b"old"

            async def new() -> bytes:
                seen[:] = [await cache.get("key")]
                seen.append(await cache.get_or_load("key", _fail, ttl=2) if seen[0] else None)
                return b"new"

            async def refreshed() -> bool:
                return bool(await cache.get_or_load("key", new, ttl=2) == b"new")

            async def refreshed_early() -> bool:
                await cache.delete("key")
                await cache.get_or_load("key", old, ttl=2)
                await eventually(refreshed)
                return seen == [b"old", b"old"]  # not where the machine stood still until the value's end

            await eventually(refreshed_early)

    async def test_a_failing_refresh_keeps_the_old_value(self, make: Make) -> None:
        if "early_refresh" not in make().abilities:
            pytest.skip("early_refresh is not declared")
        early: list[bool] = []

        async with make() as cache:

            async def old() -> bytes:
                return b"old"

            async def broken() -> bytes:
                early.append(await cache.get("key") is not None)
                raise LookupError("the source is down")

            async def fell_back() -> bool:
                early.clear()
                await cache.get_or_load("key", old, ttl=2)
                while not early:
                    try:
                        assert await cache.get_or_load("key", broken, ttl=2) == b"old"
                    except LookupError:
                        assert not early[-1] or await cache.get("key") is None
                        return False
                    await asyncio.sleep(0.01)
                return early[-1]

            await eventually(fell_back)

    # Locks

    async def test_one_holds_a_lock_at_a_time_and_tokens_grow(self, make: Make) -> None:
        holders = 0
        tokens: list[int] = []

        async with make() as cache:

            async def work() -> None:
                nonlocal holders
                async with cache.lock("job", timeout="20s") as lease:
                    holders += 1
                    assert holders == 1
                    tokens.append(lease.token)
                    await asyncio.sleep(0.002)
                    holders -= 1

            await asyncio.gather(*(work() for _ in range(10)))
        assert tokens == sorted(set(tokens))

    async def test_waiting_for_a_lock_has_an_end(self, make: Make) -> None:
        async with make() as cache, cache.lock("job"):
            with pytest.raises(DeadlineExceeded):
                async with cache.lock("job", timeout=0.05):
                    raise AssertionError("two hold the lock")
            async with cache.lock("another"):
                pass

    async def test_a_lock_is_renewed_while_it_is_held(self, make: Make) -> None:
        async with make() as cache, cache.lock("job", ttl=0.6):
            with pytest.raises(DeadlineExceeded):
                async with cache.lock("job", timeout=2):
                    raise AssertionError("the lock ran out although its holder lives")

    async def test_a_lock_is_released_whatever_happens_inside(self, make: Make) -> None:
        async with make() as cache:
            with pytest.raises(LookupError):
                async with cache.lock("job", ttl="1h"):
                    raise LookupError

            held = asyncio.Event()

            async def hold() -> None:
                async with cache.lock("job", ttl="1h"):
                    held.set()
                    await asyncio.Event().wait()

            holder = asyncio.ensure_future(hold())
            await held.wait()
            holder.cancel()
            await asyncio.gather(holder, return_exceptions=True)
            async with cache.lock("job", timeout="20s"):
                pass

    async def test_cancelled_waiters_leave_the_lock_free(self, make: Make) -> None:
        async with make() as cache:

            async def take() -> None:
                async with cache.lock("job", ttl="1h"):
                    pass

            for turns in range(12):
                waiter = asyncio.ensure_future(take())
                for _ in range(turns):
                    await asyncio.sleep(0)
                waiter.cancel()
                await asyncio.gather(waiter, return_exceptions=True)
            async with cache.lock("job", timeout="20s"):
                pass

    # Models

    async def test_the_typed_view_keeps_models(self, make: Make) -> None:
        async with make() as cache:
            airports = cache.of(_Airport, ttl="1h")
            assert await airports.get("JFK") is None
            await airports.set("JFK", _Airport(code="JFK", seats=3))
            assert await airports.get("JFK") == _Airport(code="JFK", seats=3)

            async def load() -> _Airport:
                return _Airport(code="LGA", seats=2)

            assert await airports.get_or_load("LGA", load) == _Airport(code="LGA", seats=2)
            assert await airports.delete("JFK", "LGA") == 2
            assert await airports.get("LGA") is None

    async def test_views_with_other_prefixes_do_not_meet(self, make: Make) -> None:
        async with make() as cache:
            await cache.of(_Airport, prefix="a:").set("JFK", _Airport(code="JFK", seats=3))
            assert await cache.of(_Airport, prefix="b:").get("JFK") is None
            assert await cache.of(_Airport).get("JFK") is None

    async def test_a_value_of_another_version_is_a_miss(self, make: Make) -> None:
        async def load() -> _Airport:
            return _Airport(code="JFK", seats=4)

        async with make() as cache:
            airports = cache.of(_Airport, prefix="airport:", ttl="1h")
            await cache.of(_Airfield, prefix="airport:").set("JFK", _Airfield(code="JFK", runways=4))
            assert await airports.get("JFK") is None
            assert await airports.get_or_load("JFK", load) == _Airport(code="JFK", seats=4)
            assert await airports.get("JFK") == _Airport(code="JFK", seats=4)
            await cache.set("airport:JFK", b"\xff{")
            assert await airports.get("JFK") is None

    # Bad input

    @pytest.mark.parametrize("key", ["", "a\x00b", "a\nb", "a\x7fb", "\ud800", "x" * 513, "é" * 257, 7, None, b"key"])
    async def test_refuses_a_key_that_is_none(self, make: Make, key: Any) -> None:
        async with make() as cache:
            calls: list[Callable[[], Awaitable[Any]]] = [
                lambda: cache.get(key),
                lambda: cache.set(key, b""),
                lambda: cache.delete("fine", key),
                lambda: cache.increment(key),
                lambda: cache.get_or_load(key, _fail, ttl=1),
            ]
            for call in calls:
                with pytest.raises(InvalidInput, match=r"^key: .*; for example"):
                    await call()
            with pytest.raises(InvalidInput, match=r"^name: "):
                async with cache.lock(key):
                    raise AssertionError("a lock without a name")

    async def test_takes_every_other_key(self, make: Make) -> None:
        keys = [
            "x" * 512,
            "a b",
            "../../etc/passwd",
            "/",
            "..",
            "%00",
            "é",
            "e\u0301",
            "𝄞",
            "'; DROP TABLE x",
            "a",
            "A",
        ]
        async with make() as cache:
            for number, key in enumerate(keys):
                await cache.set(key, b"%d" % number)
            assert [await cache.get(key) for key in keys] == [b"%d" % number for number in range(len(keys))]

    @pytest.mark.parametrize("value", ["text", None, 1, bytearray(b"x")])
    async def test_refuses_a_value_that_is_not_bytes(self, make: Make, value: Any) -> None:
        async with make() as cache:
            with pytest.raises(InvalidInput, match=r"^value: "):
                await cache.set("key", value)
            assert await cache.get("key") is None

    @pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "soon", True])
    async def test_refuses_a_time_that_is_none(self, make: Make, ttl: Any) -> None:
        async with make() as cache:
            calls: list[Callable[[], Awaitable[Any]]] = [
                lambda: cache.set("key", b"", ttl=ttl),
                lambda: cache.get_or_load("key", _fail, ttl=ttl),
                lambda: cache.increment("key", ttl=ttl),
            ]
            for call in calls:
                with pytest.raises(InvalidInput, match=r"^ttl: "):
                    await call()
            assert await cache.get("key") is None

    # What it tells

    async def test_counts_hits_and_misses(self, make: Make) -> None:
        async def load() -> bytes:
            return b"loaded"

        async with make() as cache:
            await cache.get("key")
            await cache.get_or_load("key", load, ttl="1m")
            await cache.get_or_load("key", load, ttl="1m")
            await cache.get("key")
            statistics = await cache.statistics()
        assert (statistics.hits, statistics.misses, statistics.loads) == (2, 2, 1)
        assert statistics.bytes_used > 0
        assert statistics.hit_ratio == 0.5

    async def test_every_call_is_one_span_and_one_point(self, make: Make) -> None:
        async def load() -> bytes:
            return b"loaded"

        with Recorder() as recorder:
            async with make() as cache:
                calls: dict[str, Callable[[], Awaitable[Any]]] = {
                    "get": lambda: cache.get("key"),
                    "set": lambda: cache.set("key", b"1"),
                    "increment": lambda: cache.increment("counter"),
                    "delete": lambda: cache.delete("key"),
                    "get_or_load": lambda: cache.get_or_load("key", load, ttl="1m"),
                }
                for operation, call in calls.items():
                    recorder.clear()
                    await call()
                    assert [s.attributes["db.operation.name"] for s in recorder.spans] == [operation]
                    assert [p.attributes["db.operation.name"] for p in recorder.points] == [operation]
                recorder.clear()
                async with cache.lock("job"):
                    assert [s.attributes["db.operation.name"] for s in recorder.spans] == ["lock"]
