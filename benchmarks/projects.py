"""What a project's calls cost when its server has many projects, against the same calls when it has the server alone.

    python benchmarks/projects.py --redis redis://default:secret@127.0.0.1 [--projects 10000]
    python benchmarks/projects.py --timescale 'timescale://postgres:secret@127.0.0.1/postgres?sslmode=disable'
    python benchmarks/projects.py --s3 s3+http://admin:secret@127.0.0.1:9000

The URLs are an administrator's, as `python3 dev.py servers` prints them. Project `bench0` is measured alone, then
beside the others, each provisioned with rights and something stored of its own, and once more when they are removed:
what differs between the first and the last figure is the machine's doing. TimescaleDB has the projects as schemas of
one database.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlsplit

import structlog

from kmp_core.errors import KmpError
from kmp_storage.bucket import S3Bucket
from kmp_storage.bucket.provisioning import VersityProvisioner
from kmp_storage.models import Measurement
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.timescale import TimescaleStore
from kmp_storage.timescale.provisioning import TimescaleProvisioner

BUDGET = 1.1
ROUNDS = 9
START = datetime(2024, 1, 1, tzinfo=UTC)
VALUE = b"x" * 150

Figures = dict[str, float]
"""Microseconds a call, by what is called."""

Work = Callable[[int], Awaitable[object]]


class Reading(Measurement, series="readings", tags=("site",), unique=("number",)):
    site: str
    number: int
    value: float


async def medians(calls: int, **work: Work) -> Figures:
    found: dict[str, list[float]] = {name: [] for name in work}
    for round_number in range(ROUNDS):
        for name, call in work.items():
            began = time.perf_counter()
            for number in range(calls):
                await call(round_number * calls + number)
            found[name].append((time.perf_counter() - began) / calls * 1e6)
    return {name: statistics.median(times) for name, times in found.items()}


class Redis:
    """A user and a prefix each."""

    def __init__(self, url: str) -> None:
        self.admin = RedisProvisioner(url)
        self.place = urlsplit(url)

    async def add(self, project: str) -> str:
        secret = await self.admin.provision(project)
        assert secret is not None, f"{project} is there already; use a server that has no projects"
        url = f"redis://{project}:{secret.reveal()}@{self.place.netloc.rpartition('@')[2]}"
        async with self.cache(url, project) as cache:
            await cache.set("key", VALUE, ttl="1h")
        return url

    async def remove(self, project: str) -> None:
        await self.admin.deprovision(project, force=True)

    @staticmethod
    def cache(url: str, project: str) -> RedisCache:
        return RedisCache(url, project=project, settings=RedisSettings.load(outage="error"))

    async def measure(self, url: str, project: str) -> Figures:
        async def opened(number: int) -> None:
            async with self.cache(url, project):
                pass

        async with self.cache(url, project) as cache:
            figures = await medians(
                500, get=lambda _: cache.get("key"), set=lambda number: cache.set(f"k{number % 50}", VALUE, ttl="1h")
            )
        return figures | await medians(10, open=opened)


class Timescale:
    """A role and a schema of one database each."""

    def __init__(self, url: str) -> None:
        self.admin = TimescaleProvisioner(url, shared_database="bench_projects")

    async def add(self, project: str) -> str:
        access = await self.admin.provision(project, placement="shared")
        assert access.password is not None, f"{project} is there already; use a server that has no projects"
        async with TimescaleStore(access.url.reveal(), project=project) as store:
            await store.append(self.reading(0))
        return access.url.reveal()

    async def remove(self, project: str) -> None:
        await self.admin.deprovision(project, placement="shared", force=True)

    @staticmethod
    def reading(number: int) -> Reading:
        return Reading(time=START + timedelta(seconds=number), site=f"s{number % 5}", number=number, value=1.0)

    async def measure(self, url: str, project: str) -> Figures:
        async def opened(number: int) -> None:
            async with TimescaleStore(url, project=project):
                pass

        async with TimescaleStore(url, project=project) as store:
            figures = await medians(
                30,
                append=lambda number: store.append(*(self.reading(number * 20 + one) for one in range(20))),
                latest=lambda _: store.latest(Reading, by=("site",)),
                aggregate=lambda _: store.aggregate(Reading, values={"value": "mean"}, every="1h"),
            )
        return figures | await medians(5, open=opened)


class S3:
    """A bucket and an access key each."""

    def __init__(self, url: str) -> None:
        self.admin = VersityProvisioner(url)
        self.place = urlsplit(url)

    async def add(self, project: str) -> str:
        key = await self.admin.provision(project)
        url = f"{self.place.scheme}://{key.name}:{quote(key.secret)}@{self.place.netloc.rpartition('@')[2]}"
        async with S3Bucket(url, project=project) as bucket:
            await bucket.put("key", VALUE)
        return url

    async def remove(self, project: str) -> None:
        await self.admin.deprovision(project, force=True)

    async def measure(self, url: str, project: str) -> Figures:
        async with S3Bucket(url, project=project) as bucket:
            return await medians(
                100, get=lambda _: bucket.get("key"), put=lambda number: bucket.put(f"k{number % 50}", VALUE)
            )


async def compare(server: Redis | Timescale | S3, count: int) -> None:
    name = type(server).__name__
    others: list[str] = []
    async with server.admin:
        url = await server.add("bench0")
        try:
            await server.measure(url, "bench0")  # whatever is slow once
            alone = await server.measure(url, "bench0")
            began = time.perf_counter()
            for number in range(1, count):
                others.append(f"bench{number}")
                await server.add(others[-1])
                if sys.stderr.isatty() and number % 50 == 0:
                    print(f"\r{name}: {number:,} of {count:,} projects", end="", file=sys.stderr, flush=True)
            took = time.perf_counter() - began
            among = await server.measure(url, "bench0")
            print(f"\r{name}: provisioning took {took / max(1, count - 1) * 1e3:.0f} ms a project", flush=True)
            for call, seconds in among.items():
                print(f"{call:<12}{alone[call]:>7,.0f} us alone, {seconds:,.0f} us as one of {count:,}", flush=True)
        finally:
            for other in others:
                await server.remove(other)
        again = await server.measure(url, "bench0")
        await server.remove("bench0")
    for call, seconds in among.items():
        base = statistics.mean((alone[call], again[call]))
        verdict = "within" if seconds <= BUDGET * base else "BEYOND"
        print(f"{call:<12}{again[call]:>7,.0f} us alone again; ratio {seconds / base:.2f}, {verdict} {BUDGET}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds: dict[str, type[Redis | Timescale | S3]] = {"redis": Redis, "timescale": Timescale, "s3": S3}
    for name in kinds:
        parser.add_argument(f"--{name}", metavar="URL")
    parser.add_argument("--projects", type=int, default=1000)
    options = parser.parse_args()
    # A server without a configuration file says for every user that it keeps none of them over a restart.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    named = {name: url for name in kinds if (url := getattr(options, name))}
    if not named:
        print("no server: name one with --redis, --timescale or --s3, and an administrator's URL")
    for name, url in named.items():
        try:
            asyncio.run(compare(kinds[name](url), options.projects))
        except KmpError as error:
            print(f"{name} cannot be measured: {error}")


if __name__ == "__main__":
    main()
