"""What a cache promises that several processes share; each test runs real ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kmp_core.testing import Make
from kmp_storage.protocols import Cache
from kmp_storage.testing.cache import CacheContract, eventually
from kmp_storage.testing.processes import child

__all__ = ["SharedCacheContract"]

_HERE = __name__


class SharedCacheContract(CacheContract):
    """`CacheContract` for a provider that declares `shared` and `durable`; define the fixture `address` too."""

    @pytest.fixture
    def address(self) -> str:
        """A URL with which the provider's `from_url` opens, in another process, the data of `make("acme")`."""
        raise NotImplementedError("define a fixture `address` that returns the URL of what `make` opens")

    async def test_declares_what_this_suite_tests(self, make: Make) -> None:
        assert {"durable", "shared"} <= make().abilities

    async def test_another_process_sees_what_was_set(self, make: Make, address: str) -> None:
        async with make() as cache:
            await cache.set("key", b"from the parent")
            async with child(cache, address, f"{_HERE}:echo_key") as other:
                assert await other.line() == "from the parent"
                await other.end()
            assert await cache.get("answer") == b"from the child"

    async def test_processes_load_a_key_once(self, make: Make, address: str, tmp_path: Path) -> None:
        log = tmp_path / "loads"
        async with make() as cache, asyncio.TaskGroup() as group:

            async def one() -> None:
                async with child(cache, address, f"{_HERE}:load_slowly", str(log)) as other:
                    assert await other.line() == "open"
                    assert await other.line() == "loaded"
                    await other.end()

            for _ in range(3):
                group.create_task(one())
        assert log.read_text() == "load\n"

    async def test_a_killed_loader_holds_nobody_up(self, make: Make, address: str) -> None:
        async def load() -> bytes:
            return b"mine"

        async with make() as cache, child(cache, address, f"{_HERE}:load_for_ever") as other:
            assert await other.line() == "loading"
            waiting = asyncio.ensure_future(cache.get_or_load("key", load, ttl="1m", timeout="60s"))
            await asyncio.sleep(0.1)
            assert not waiting.done(), "two processes load one key"
            await other.kill()
            assert await waiting == b"mine"

    async def test_a_lock_excludes_other_processes(self, make: Make, address: str, tmp_path: Path) -> None:
        log = tmp_path / "holders"
        async with make() as cache, asyncio.TaskGroup() as group:

            async def one() -> None:
                async with child(cache, address, f"{_HERE}:hold_often", str(log)) as other:
                    await other.end()

            for _ in range(3):
                group.create_task(one())
        lines = log.read_text().split()
        assert len(lines) == 3 * 10 * 2
        assert lines[::2] == lines[1::2], "two held the lock at once"
        tokens = [int(line) for line in lines[::2]]
        assert tokens == sorted(set(tokens))

    async def test_a_killed_holder_loses_the_lock(self, make: Make, address: str) -> None:
        async with make() as cache, child(cache, address, f"{_HERE}:hold_for_ever") as other:
            token = int(await other.line())
            await other.kill()
            async with cache.lock("job", timeout="30s") as lease:
                assert lease.token > token

    async def test_values_and_tokens_survive_a_restart(self, make: Make) -> None:
        async with make() as cache:
            await cache.set("key", b"kept")
            await cache.increment("counter", 41)
            async with cache.lock("job") as lease:
                token = lease.token
        async with make() as cache:
            assert await cache.get("key") == b"kept"
            assert await cache.increment("counter") == 42
            async with cache.lock("job") as lease:
                assert lease.token > token

    async def test_what_a_killed_process_wrote_stays(self, make: Make, address: str) -> None:
        async with make() as cache, child(cache, address, f"{_HERE}:write_and_wait") as other:
            assert await other.line() == "written"
            await other.kill()

            async def there() -> bool:
                return bool(await cache.get("key") == b"written")

            await eventually(there)


# What the other processes do


async def echo_key(cache: Cache) -> None:
    _say((await cache.get("key") or b"nothing").decode())
    await cache.set("answer", b"from the child")


async def load_slowly(cache: Cache, log: str) -> None:
    async def load() -> bytes:
        await asyncio.to_thread(_append, log, "load")
        await asyncio.sleep(1)
        return b"loaded"

    _say("open")
    _say((await cache.get_or_load("key", load, ttl="1m", timeout="60s") or b"nothing").decode())


async def load_for_ever(cache: Cache) -> None:
    async def load() -> bytes:
        _say("loading")
        await asyncio.Event().wait()
        return b"never"

    await cache.get_or_load("key", load, ttl="1m", timeout="10m")


async def hold_often(cache: Cache, log: str) -> None:
    for _ in range(10):
        async with cache.lock("job", timeout="60s") as lease:
            await asyncio.to_thread(_append, log, str(lease.token))
            await asyncio.sleep(0.005)
            await asyncio.to_thread(_append, log, str(lease.token))


async def hold_for_ever(cache: Cache) -> None:
    async with cache.lock("job", ttl=1) as lease:
        _say(str(lease.token))
        await asyncio.Event().wait()


async def write_and_wait(cache: Cache) -> None:
    await cache.set("key", b"written")
    _say("written")
    await asyncio.Event().wait()


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the other end of a pipe


def _append(log: str, line: str) -> None:
    with Path(log).open("a") as file:
        file.write(f"{line}\n")
