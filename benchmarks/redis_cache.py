"""How fast the Redis cache is, against redis-py on the same server in the same process.

    KMP_PROJECT=... KMP_STORAGE_CACHE_URL=redis://... python benchmarks/redis_cache.py [--rounds 9] [--calls 2000]

One get at a time, fifty at once, and hits of the near cache, in interleaved rounds; medians and ratios. Each contender
has the same values, a deadline of ten seconds for each call, and a pool of ten connections.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import redis.asyncio as bare

from kmp_core.errors import KmpError
from kmp_core.project import Project, backend_name
from kmp_storage.redis import RedisCache, RedisSettings

VALUE = b'{"code":"JFK","name":"John F. Kennedy International Airport","seats":42}' * 2
KEYS = [f"airport:{number}" for number in range(200)]
PROJECT = os.environ.get("KMP_PROJECT", "benchmark")
BUDGET = {"one at a time": 0.85, "50 at once": 3.0, "near-cache hit": 200.0}

Get = Callable[[str], Awaitable[object]]


async def one_at_a_time(get: Get, calls: int) -> float:
    began = time.perf_counter()
    for number in range(calls):
        assert await get(KEYS[number % len(KEYS)]) is not None
    return calls / (time.perf_counter() - began)


async def fifty_at_once(get: Get, calls: int) -> float:
    async def caller(first: int) -> None:
        for number in range(first, calls, 50):
            assert await get(KEYS[number % len(KEYS)]) is not None

    began = time.perf_counter()
    await asyncio.gather(*(caller(first) for first in range(50)))
    return calls / (time.perf_counter() - began)


async def measure(url: str, rounds: int, calls: int) -> dict[str, list[tuple[float, float]]]:
    pool = bare.BlockingConnectionPool.from_url(url, max_connections=10, timeout=10, socket_timeout=10, protocol=3)
    settings = RedisSettings.load(pool_size=10, timeout="10s", outage="error")
    near_settings = RedisSettings.load(pool_size=10, timeout="10s", near_max_bytes=1 << 22, near_ttl="1h")
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in BUDGET}
    prefix = f"{backend_name(Project(PROJECT), 'redis')}:v"  # where a project's user may write
    async with (
        bare.Redis(connection_pool=pool) as driver,
        RedisCache(url, project=PROJECT, settings=settings) as cache,
        RedisCache(url, project=PROJECT, settings=near_settings) as near,
    ):
        for key in KEYS:
            await cache.set(key, VALUE, ttl="10m")
            await driver.set(f"{prefix}:{key}", VALUE, ex=600)

        def plain(key: str) -> Awaitable[object]:
            return driver.get(f"{prefix}:{key}")

        await asyncio.sleep(0.5)  # until the near cache hears of changes
        for _ in range(rounds):
            gc.collect()
            single = await one_at_a_time(plain, calls)
            figures["one at a time"].append((single, await one_at_a_time(cache.get, calls)))
            figures["50 at once"].append((await fifty_at_once(plain, calls), await fifty_at_once(cache.get, calls * 4)))
            await one_at_a_time(near.get, len(KEYS))
            figures["near-cache hit"].append((single, await one_at_a_time(near.get, calls * 50)))
        await cache.delete(*KEYS)
        await driver.delete(*(f"{prefix}:{key}" for key in KEYS))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    url = os.environ.get("KMP_STORAGE_CACHE_URL", "redis://127.0.0.1:6379")
    try:
        figures = asyncio.run(measure(url, options.rounds, options.calls))
    except KmpError as error:
        print(f"no Redis to measure: set KMP_PROJECT and KMP_STORAGE_CACHE_URL=redis://user:password@host ({error})")
        return 0
    print(f"{'gets per second':<16}{'redis-py':>12}{'KMP':>14}{'ratio':>9}{'budget':>9}")
    for name, pairs in figures.items():
        theirs, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(ours / theirs for theirs, ours in pairs)
        print(f"{name:<16}{theirs:>12,.0f}{ours:>14,.0f}{ratio:>9.2f}{BUDGET[name]:>9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
