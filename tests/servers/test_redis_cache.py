"""What the Redis cache does beyond the contract, seen at the server itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as bare
from pydantic import BaseModel

import testbed
from kmp_core.context import Context
from kmp_core.errors import ConfigurationError, Conflict, InvalidInput, PermissionDenied, Unavailable
from kmp_core.project import Environment, Project, ServiceName
from kmp_core.secrets import Secret, SecretStore
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.redis.connections import Connections, Session
from kmp_storage.redis.loads import Loads
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.cache import eventually

PASSWORD = Secret("gate 7")
PATIENT = {"outage": "error", "timeout": "10s", "connect_timeout": "10s"}


@pytest.fixture
async def admin(redis_server: testbed.Server) -> AsyncIterator[RedisProvisioner]:
    async with RedisProvisioner(f"redis://default:{redis_server.password}@{redis_server.address}") as admin:
        await admin.provision("gates", password=PASSWORD)
        yield admin
        await admin.deprovision("gates", force=True)


@pytest.fixture
async def root(admin: RedisProvisioner, redis_server: testbed.Server) -> AsyncIterator[bare.Redis]:
    async with bare.Redis(port=redis_server.port, password=redis_server.password) as root:
        yield root


@pytest.fixture
def url(admin: RedisProvisioner, redis_server: testbed.Server) -> str:
    return f"redis://gates:gate%207@{redis_server.address}"


def cache_at(url: str, **settings: Any) -> RedisCache:
    return RedisCache(url, project="gates", settings=RedisSettings.load(**{**PATIENT, **settings}))


async def load() -> bytes:
    return b"loaded"


class Gate(BaseModel):
    name: str
    opens: datetime


async def test_models_are_kept_as_json_or_msgpack_and_either_view_reads_both(root: bare.Redis, url: str) -> None:
    gate = Gate(name="B7", opens=datetime(2013, 1, 1, 5, tzinfo=UTC))
    async with cache_at(url) as ours, cache_at(url, near_max_bytes=1 << 20) as theirs:
        await ours.of(Gate).set("old", gate, ttl="1h")
        await theirs.of(Gate, codec="msgpack").set("new", gate, ttl="1h")
        assert (await root.get("gates:v:{.Gate:old}")).startswith(b'\x01{"name":')
        assert (await root.get("gates:v:{.Gate:new}")).startswith(b"\x01\xc1\x01")
        for view in (ours.of(Gate), theirs.of(Gate, codec="msgpack")):
            for key in ("old", "new"):
                assert await view.get(key) == gate


async def test_the_driver_speaks_resp3_through_hiredis(root: bare.Redis, url: str) -> None:
    async with cache_at(url) as cache:
        await cache.set("key", b"1")
        (channel,) = servers_of(cache)._idle
        assert type(channel._connection._parser).__name__ == "_AsyncHiredisParser"
        versions = {one["resp"] for one in await root.client_list() if one["user"] == "gates"}
        assert versions == {"3"}


def servers_of(cache: RedisCache) -> Connections:
    assert isinstance(cache._connections, Connections)
    return cache._connections


async def calls_of(root: bare.Redis, command: str) -> int:
    return int((await root.info("commandstats")).get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_gets_of_one_moment_travel_together_and_a_lonely_one_alone(root: bare.Redis, url: str) -> None:
    async with cache_at(url) as cache:
        for number in range(50):
            await cache.set(f"key{number}", b"value%d" % number)
        await root.config_resetstat()
        values = await asyncio.gather(*(cache.get(f"key{number}") for number in range(50)))
        assert values == [b"value%d" % number for number in range(50)]
        assert (await calls_of(root, "get"), await calls_of(root, "mget")) == (1, 1)
        await root.config_resetstat()
        assert await cache.get("key1") == b"value1"
        assert (await calls_of(root, "get"), await calls_of(root, "mget")) == (1, 0)


async def test_who_leaves_a_batch_takes_nobody_along(url: str) -> None:
    async with cache_at(url) as cache:
        await cache.set("key", b"1")
        calls = [asyncio.ensure_future(cache.get("key")) for _ in range(10)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert outcomes[1::2] == [b"1"] * 5


async def test_who_asks_after_a_change_gets_no_load_from_before_it(url: str) -> None:
    loading, finish = asyncio.Event(), asyncio.Event()

    async def old() -> bytes:
        loading.set()
        await finish.wait()
        return b"old"

    async with cache_at(url) as cache:
        first = asyncio.ensure_future(cache.get_or_load("key", old, ttl="1h"))
        await loading.wait()
        await cache.delete("key")
        assert await cache.get_or_load("key", load, ttl="1h") == b"loaded"  # and does not wait for the first
        finish.set()
        assert await first == b"old"
        assert await cache.get("key") == b"loaded"


async def test_what_was_stored_between_the_look_and_the_claim_is_not_loaded_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Loads._claim

    async def late(loads: Loads, key: str, owner: bytes) -> bool:
        await other.set(key, b"stored")
        return await claim(loads, key, owner)

    async def never() -> bytes:
        raise AssertionError("it was there already")

    async with cache_at(url) as cache, cache_at(url) as other:
        monkeypatch.setattr(Loads, "_claim", late)
        assert await cache.get_or_load("key", never, ttl="1h") == b"stored"
        monkeypatch.undo()
        await cache.delete("key")
        assert await cache.get_or_load("key", load, ttl="1h") == b"loaded", "nobody let go of the lease"


async def test_a_primary_that_became_a_replica_is_left(root: bare.Redis, url: str) -> None:
    async with cache_at(url) as cache:
        await cache.set("key", b"1")
        await root.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            with pytest.raises(Unavailable, match="refuses for now"):
                await cache.set("key", b"2")
            assert servers_of(cache).idle == 0, "the next call would not look for the new primary"
        finally:
            await root.execute_command("REPLICAOF", "NO", "ONE")
        assert await cache.set("key", b"3")


async def test_what_is_loaded_together_does_not_end_together(root: bare.Redis, url: str) -> None:
    async with cache_at(url, jitter=0.5) as cache:
        await asyncio.gather(*(cache.get_or_load(f"key{number}", load, ttl=100) for number in range(20)))
        left = [await root.pttl(f"gates:v:{{.key{number}}}") for number in range(20)]
        assert all(40_000 < one <= 100_000 for one in left)
        assert max(left) - min(left) > 5_000
        await cache.set("exact", b"1", ttl=100)
        assert await root.pttl("gates:v:{.exact}") > 90_000


async def test_all_processes_remember_that_there_is_nothing(url: str) -> None:
    async def nothing() -> None:
        return None

    async def never() -> bytes:
        raise AssertionError("it was known that there is nothing")

    async with cache_at(url) as ours, cache_at(url) as theirs:
        assert await ours.get_or_load("key", nothing, ttl="1h", negative_ttl="1h") is None
        assert await theirs.get_or_load("key", never, ttl="1h", negative_ttl="1h") is None
        await ours.set("key", b"now there is")
        assert await theirs.get_or_load("key", never, ttl="1h") == b"now there is"


async def test_one_process_refreshes_early_while_the_others_get_the_old_value(url: str) -> None:
    refreshing, finish, loads = asyncio.Event(), asyncio.Event(), 0

    async def old() -> bytes:
        return b"old"

    async def new() -> bytes:
        nonlocal loads
        loads += 1
        refreshing.set()
        await finish.wait()
        return b"new"

    async with cache_at(url, refresh_after=0.01) as ours, cache_at(url, refresh_after=0.01) as theirs:
        await ours.get_or_load("key", old, ttl=60)

        async def started() -> bool:
            if refreshing.is_set():
                return True
            tasks.append(asyncio.ensure_future(ours.get_or_load("key", new, ttl=60)))
            return False

        tasks: list[asyncio.Future[bytes | None]] = []
        await eventually(started)
        for _ in range(5):
            assert await theirs.get_or_load("key", new, ttl=60) == b"old"
            assert await ours.get_or_load("key", new, ttl=60) == b"old"
        assert loads == 1
        finish.set()
        assert (await asyncio.gather(*tasks))[-1] in (b"old", b"new")
        assert await theirs.get("key") == b"new"


async def test_a_refresh_that_failed_is_not_tried_with_every_call(url: str) -> None:
    tries = 0

    async def broken() -> bytes:
        nonlocal tries
        tries += 1
        raise LookupError("the source is down")

    async with cache_at(url, refresh_after=0.01) as cache:
        await cache.get_or_load("key", load, ttl="1h")
        await cache._connections.ask(("PEXPIRE", cache._keys.value("key"), 600_000), seconds=10)  # it is due
        for _ in range(10):
            assert await cache.get_or_load("key", broken, ttl="1h") == b"loaded"
        assert tries == 1


async def test_a_holder_whose_lock_was_taken_is_told_and_leaves_the_other_alone(root: bare.Redis, url: str) -> None:
    async with cache_at(url) as ours, cache_at(url) as theirs:
        with pytest.raises(Conflict, match="another holder"):
            async with ours.lock("job", ttl="1h") as first:
                await root.delete("gates:k:{.job}")  # as if this process had stood still for longer than the ttl
                async with theirs.lock("job", ttl="1h") as second:
                    assert second.token > first.token
                    assert not await ours._leases.if_mine(ours._keys.lock("job"), b"stranger", ("DEL", "gates:x"))
                    holder = await root.get("gates:k:{.job}")
                assert holder is not None


async def test_a_lock_that_ran_out_and_went_to_nobody_is_left_in_peace(root: bare.Redis, url: str) -> None:
    async with cache_at(url) as cache, cache.lock("job", ttl="1h"):
        await root.delete("gates:k:{.job}")


async def test_a_lease_that_changes_hands_between_look_and_transaction_is_left_alone(
    root: bare.Redis, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Session.commit

    async def too_late(session: Session, *commands: Any) -> bool:
        await root.set("gates:k:{.job}", b"another's")
        return await commit(session, *commands)

    async with cache_at(url, pool_size=1) as cache:
        lock = cache._keys.lock("job")
        await root.set(lock, b"ours")
        monkeypatch.setattr(Session, "commit", too_late)
        assert not await cache._leases.if_mine(lock, b"ours", ("DEL", lock))
        assert await root.get(lock) == b"another's"
        (channel,) = servers_of(cache)._idle
        assert not await cache._leases.if_mine(lock, b"ours", ("DEL", lock))
        assert servers_of(cache)._idle == [channel], "a look that found another's cost a connection"


async def test_a_watch_that_went_wrong_spoils_no_later_transaction(root: bare.Redis, url: str) -> None:
    async with cache_at(url, pool_size=1) as cache:
        lock = cache._keys.lock("job")
        await root.set(lock, b"ours")
        await root.execute_command("ACL", "SETUSER", "gates", "-get")  # watched, and not seen
        with pytest.raises(PermissionDenied):
            await cache._leases.if_mine(lock, b"ours", ("DEL", lock))
        await root.set(lock, b"another's")
        assert await cache.set("key", b"1")


async def test_tokens_go_on_growing_where_redis_lost_the_last_one(root: bare.Redis, url: str) -> None:
    async with cache_at(url) as cache:
        async with cache.lock("job") as first:
            pass
        await root.delete("gates:t:{.job}")
        async with cache.lock("job") as second:
            assert second.token > first.token


async def test_a_counter_keeps_the_end_it_began_with(root: bare.Redis, url: str) -> None:
    async with cache_at(url) as cache:
        await cache.increment("window", ttl=100)
        await cache.increment("window", ttl=10_000)
        assert 90_000 < await root.pttl("gates:v:{.window}") <= 100_000
        await cache.increment("for-ever")
        await cache.increment("for-ever", ttl=100)
        assert await root.pttl("gates:v:{.for-ever}") == -1
        await cache.set("full", b"%d" % ((1 << 63) - 1))
        with pytest.raises(InvalidInput, match="64 bits"):
            await cache.increment("full")
        assert await cache.get("full") == b"%d" % ((1 << 63) - 1)


async def test_connections_that_the_server_closed_cost_no_call(root: bare.Redis, url: str) -> None:
    async with cache_at(url) as cache:
        await asyncio.gather(*(cache.set(f"key{number}", b"1") for number in range(5)))
        for _ in range(5):
            await root.execute_command("CLIENT", "KILL", "USER", "gates")
            assert await cache.get("key1") == b"1"
            assert await cache.set("key2", b"2")


async def test_what_a_later_version_wrote_counts_as_missing(root: bare.Redis, url: str) -> None:
    async with cache_at(url) as cache:
        await root.set("gates:v:{.key}", b"\x07from the future")
        assert await cache.get("key") is None
        assert await cache.get_or_load("key", load, ttl="1h") == b"loaded"


async def test_a_value_that_is_too_large_is_refused(url: str) -> None:
    async with cache_at(url, max_value_bytes=1000, load_lease="10m") as cache:
        with pytest.raises(InvalidInput, match="KMP_STORAGE_REDIS_MAX_VALUE_BYTES"):
            await cache.set("key", b"x" * 1001)
        assert await cache.get("key") is None
        await cache.set("key", b"x" * 1000)

        async def too_large() -> bytes:
            return b"x" * 1001

        with pytest.raises(InvalidInput, match="KMP_STORAGE_REDIS_MAX_VALUE_BYTES"):
            await cache.get_or_load("loaded", too_large, ttl="1h")
        assert await cache.get_or_load("loaded", load, ttl="1h") == b"loaded"


async def test_a_full_server_refuses_and_is_no_crash(root: bare.Redis, url: str) -> None:
    async with cache_at(url, outage="miss") as cache:
        await cache.set("key", b"old")
        await root.config_set("maxmemory", "1")
        try:
            assert not await cache.set("key", b"new")
            assert await cache.get_or_load("other", load, ttl="1h") == b"loaded"
        finally:
            await root.config_set("maxmemory", "0")
        assert await cache.get("key") is None, "an old value came back"


# Logging in


async def test_a_rotated_password_is_used_without_a_restart(
    admin: RedisProvisioner, root: bare.Redis, url: str
) -> None:
    current = PASSWORD

    async def password() -> Secret:
        return current

    server = url.rpartition("@")[2]
    async with RedisCache(f"redis://{server}", project="gates", password=password) as cache:
        await cache.set("key", b"1")
        current = Secret("gate 8")
        await admin.provision("gates", password=current)
        await root.execute_command("CLIENT", "KILL", "USER", "gates")
        assert await cache.get("key") == b"1"


async def test_the_password_may_be_a_secret_s_name(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kmp_core.secrets.embedded import EnvironmentSecrets

    monkeypatch.setenv("KMP_STORAGE_REDIS_PASSWORD_SECRET", "redis-password")
    monkeypatch.setenv("KMP_SECRET_REDIS_PASSWORD", PASSWORD.reveal())
    async with EnvironmentSecrets("env:", project="gates") as secrets:

        async def get(capability: Any, /) -> Any:
            assert capability is SecretStore
            return secrets

        context = Context(Project("gates"), ServiceName("s"), Environment("test"), Path(".kmp"), get)
        async with RedisCache.from_url(f"redis://{url.rpartition('@')[2]}", context=context) as cache:
            assert await cache.set("key", b"1")


@pytest.mark.parametrize(
    "wrong",
    [
        "redis:cache",
        "redis://cache:port",
        "redis://cache:99999",
        "redis://cache/database",
        "redis://cache/0?password=hunter2",
        "redis://app:hunter2@cache/x",
        "http://app:hunter2@cache",
        "redis://[cache",
        "",
    ],
)
def test_a_wrong_url_is_named_and_its_secret_is_not(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=r"KMP_STORAGE_CACHE_URL: .*; for example redis://") as caught:
        RedisCache(wrong, project="gates")
    assert "hunter2" not in f"{caught.value!r} {caught.value} {caught.value.__cause__}"


def test_no_secret_is_shown_by_what_holds_it() -> None:
    cache = RedisCache("redis://app:hunter2@cache", project="gates", settings=RedisSettings.load(password="hunter3"))
    assert "hunter" not in f"{cache!r} {cache.address!r} {cache.settings!r} {vars(cache)!r}"
