"""With Sentinels the cache finds the primary, and the new one after a failover, with no restart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis.asyncio as bare

import testbed
from kmp_core.errors import ConfigurationError, KmpError, Unavailable
from kmp_core.secrets import Secret
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.cache import eventually
from redis_ways import on_the_host, sentinel

WORD = "sentinel-test"


@dataclass
class Watched:
    primary: testbed.Server
    replica: testbed.Server
    sentinel: testbed.Server


@pytest.fixture
def watched(servers: Any) -> Iterator[Watched]:
    first, second = (testbed.free_port() for _ in range(2))
    common = ["redis-server", "--bind", "127.0.0.1", "--requirepass", WORD, "--masterauth", WORD, "--port"]
    soon = ("down-after-milliseconds {} 700", "failover-timeout {} 2000")
    started = []
    try:
        started.append(on_the_host("primary", first, WORD, [*common, str(first)]))
        started[0].wait_ready()
        replica = [*common, str(second), "--replicaof", "127.0.0.1", str(first)]
        started.append(on_the_host("replica", second, WORD, replica))
        started[1].wait_ready()
        started.append(sentinel(started[0], WORD, *soon))
        started[2].wait_ready()
        yield Watched(*started)
    finally:
        for server in started:
            server.stop()


def node(server: testbed.Server) -> str:
    return f"redis://default:{WORD}@{server.address}"


async def test_a_failover_is_followed(watched: Watched) -> None:
    async with RedisProvisioner(node(watched.primary), node(watched.replica)) as admin:
        password = await admin.provision("flights")
    assert password is not None
    settings = RedisSettings.load(sentinel="primary", sentinel_password=WORD, near_max_bytes=1 << 20)
    # The first of the two does not answer, so the second is asked.
    url = f"redis://flights:{password.reveal()}@127.0.0.1:1,{watched.sentinel.address}"
    async with RedisCache(url, project="flights", settings=settings) as cache:
        assert await cache.set("key", b"before")
        async with (
            bare.Redis(port=watched.sentinel.port, password=WORD) as asked,
            bare.Redis(port=watched.replica.port, password=WORD) as replica,
        ):

            async def replicated() -> bool:
                known = await asked.execute_command("SENTINEL", "REPLICAS", "primary")
                return bool(known) and await replica.get("flights:v:{.key}") is not None

            await eventually(replicated, within=30)
        watched.primary.kill()

        async def followed() -> bool:
            await asyncio.sleep(0.05)
            return await cache.set("again", b"after")

        await eventually(followed, within=30)
        assert await cache.get("key") == b"before"
        assert await cache.get("again") == b"after"


ONE_QUESTION = ("-@all", "+auth", "+hello", "+sentinel|get-master-addr-by-name")


async def test_a_sentinel_answers_a_user_who_may_ask_one_thing(
    redis_sentinel: testbed.Server, durable_redis: testbed.Server
) -> None:
    url = f"redis://default:{durable_redis.password}@{redis_sentinel.address}"
    login = {"sentinel": "primary", "sentinel_username": "services", "outage": "error"}
    async with bare.Redis(port=redis_sentinel.port, password=redis_sentinel.password) as operator:
        await operator.execute_command("ACL", "SETUSER", "services", "reset", "on", ">one-question-only", *ONE_QUESTION)
        try:
            settings = RedisSettings.load(**login, sentinel_password="one-question-only")
            async with RedisCache(url, project="flights", settings=settings) as cache:
                assert await cache.get("key") is None
            service = bare.Redis(port=redis_sentinel.port, username="services", password="one-question-only")
            async with service:
                for command in (
                    "SENTINEL FAILOVER primary",
                    "SENTINEL SET primary quorum 9",
                    "SENTINEL REMOVE primary",
                ):
                    with pytest.raises(bare.ResponseError, match="no permissions"):
                        await service.execute_command(*command.split())
            wrong = RedisSettings.load(**login, sentinel_password="another")
            with pytest.raises(KmpError, match="no Sentinel names"):
                await RedisCache(url, project="flights", settings=wrong).open()
        finally:
            await operator.execute_command("ACL", "DELUSER", "services")


async def test_a_primary_that_nobody_knows_is_unavailable(redis_sentinel: testbed.Server) -> None:
    settings = RedisSettings.load(sentinel="stranger", sentinel_password=redis_sentinel.password, outage="error")
    with pytest.raises(Unavailable, match="stranger"):
        await RedisCache(f"redis://{redis_sentinel.address}", project="flights", settings=settings).open()


def test_several_servers_without_the_name_of_their_primary_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="KMP_STORAGE_REDIS_SENTINEL"):
        RedisCache("redis://one:26379,two:26379", project="flights")


def test_a_secret_in_a_sentinel_url_is_not_shown() -> None:
    settings = RedisSettings.load(sentinel="primary", sentinel_password=Secret("hunter2").reveal())
    cache = RedisCache("redis://app:hunter3@one,two:26380", project="flights", settings=settings)
    assert cache.address.sentinel is not None
    assert cache.address.sentinel.nodes == (("one", 26379), ("two", 26380))
    assert "hunter" not in f"{cache.address!r} {settings!r}"
