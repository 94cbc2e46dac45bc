"""A limit of calls in a time holds over all callers and processes, and says when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import faults
import testbed
from kmp_core.errors import InvalidInput, Unavailable
from kmp_core.secrets import Secret
from kmp_storage.redis import RedisCache
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.cache import eventually


@pytest.fixture
async def user(redis_server: testbed.Server) -> AsyncIterator[str]:
    async with RedisProvisioner(f"redis://default:{redis_server.password}@{redis_server.address}") as admin:
        await admin.provision("limits", password=Secret("limits"))
        yield "redis://limits:limits@"
        await admin.deprovision("limits", force=True)


@pytest.fixture
def url(user: str, redis_server: testbed.Server) -> str:
    return user + redis_server.address


async def test_no_more_than_the_rate_pass_whoever_asks(url: str) -> None:
    async with RedisCache(url, project="limits") as ours, RedisCache(url, project="limits") as theirs:
        calls = [cache.limit("api", rate=25, per="1m") for cache in (ours, theirs) for _ in range(30)]
        allowances = await asyncio.gather(*calls)
        assert sum(one.allowed for one in allowances) == 25
        assert {one.left for one in allowances if one.allowed} == set(range(25))
        assert all(0 < one.retry_after <= 60 for one in allowances if not one.allowed)
        assert (await ours.limit("another", rate=25, per="1m")).allowed


async def test_a_window_ends_though_it_is_asked_all_the_time(url: str) -> None:
    async with RedisCache(url, project="limits") as cache:
        assert (await cache.limit("api", rate=1, per="500ms")).allowed
        assert not (await cache.limit("api", rate=1, per="500ms")).allowed

        async def opened() -> bool:
            return (await cache.limit("api", rate=1, per="500ms")).allowed

        await eventually(opened, within=5)


async def test_a_call_may_cost_more_than_another(url: str) -> None:
    async with RedisCache(url, project="limits") as cache:
        assert (await cache.limit("bytes", rate=100, per="1m", cost=60)).left == 40
        assert not (await cache.limit("bytes", rate=100, per="1m", cost=60)).allowed


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"rate": 1.5}, {"rate": True}, {"cost": -1}, {"per": 0}, {"per": None}])
async def test_what_is_no_limit_is_refused(url: str, wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"rate": 1, "per": "1m", **wrong}
    async with RedisCache(url, project="limits") as cache:
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            await cache.limit("api", **arguments)


async def test_nobody_guesses_while_redis_is_away(
    user: str, redis_server: testbed.Server, proxies: faults.Proxies
) -> None:
    with proxies.before(redis_server) as proxy:
        async with RedisCache(f"{user}127.0.0.1:{proxy.port}", project="limits") as cache:
            await cache.limit("api", rate=1, per="1m")
            proxy.cut()
            with pytest.raises(Unavailable):
                await cache.limit("api", rate=1, per="1m")
