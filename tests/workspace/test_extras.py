"""What `pip install` of one extra gives, each from the built wheels in an environment of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import postgres_bed
import s3_bed
import testbed
from kmp_storage.bucket.provisioning import VersityProvisioner
from kmp_storage.neo4j import Neo4jStore
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.timescale.provisioning import TimescaleProvisioner

PROGRAM = """
import asyncio
import os
from datetime import UTC, datetime

from kmp_core import Service
from kmp_core.errors import KmpError
from kmp_storage import Bucket, Cache, GraphStore, Measurement, Node, TimeSeriesStore


class Delay(Measurement, series="delays", tags=("origin",)):
    origin: str
    minutes: float


class Airport(Node, label="Airport", key="code"):
    code: str
    name: str | None = None


async def use_all() -> None:
    async with Service("extras") as service:
        series = await service.get(TimeSeriesStore)
        await series.append(Delay(time=datetime.now(UTC), origin="JFK", minutes=12.5))
        assert [delay.minutes async for delay in series.read(Delay)] == [12.5]
        graph = await service.get(GraphStore)
        await graph.merge(Airport(code="JFK", name="Kennedy"))
        assert await graph.get(Airport, "JFK") == Airport(code="JFK", name="Kennedy")
        cache = await service.get(Cache)
        await cache.set("key", b"cached")
        assert await cache.get("key") == b"cached"
        bucket = await service.get(Bucket)
        await bucket.put("key", b"stored")
        assert await bucket.get("key") == b"stored"
        print("used", *(type(each).__name__ for each in (series, graph, cache, bucket)))


async def ask_for(capability: object, variable: str, url: str) -> None:
    if variable in os.environ:
        return
    os.environ |= {"KMP_PROJECT": "extras", variable: url}
    try:
        async with Service("extras") as service:
            await service.get(capability)
    except KmpError as error:
        print(f"{url.partition(':')[0]}: {type(error).__name__}:", " ".join(str(error).split()))


async def main() -> None:
    await use_all()
    await ask_for(TimeSeriesStore, "KMP_STORAGE_TIMESERIES_URL", "timescale://a:b@127.0.0.1:1/c?sslmode=disable")
    await ask_for(GraphStore, "KMP_STORAGE_GRAPH_URL", "bolt://a:b@127.0.0.1:1")
    await ask_for(Cache, "KMP_STORAGE_CACHE_URL", "redis://a:b@127.0.0.1:1")
    await ask_for(Bucket, "KMP_STORAGE_BUCKET_URL", "s3+http://a:b@127.0.0.1:1")


asyncio.run(main())
"""

PROJECT = "extras"

Environment = Callable[[str], Path]


@pytest.fixture(scope="session")
def environment(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The interpreter of a new environment in which one requirement was installed, at the versions of development."""
    place = tmp_path_factory.mktemp("extras")
    for package in ("kmp-core", "kmp-storage"):
        command = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(place / "wheels"))
        run(sys.executable, *command, str(root / "packages" / package))

    def make(requirement: str) -> Path:
        home = place / requirement
        uv = (sys.executable, "-m", "uv", "--quiet")
        run(*uv, "venv", "--python", sys.executable, str(home))
        pins = ("--constraint", str(root / "requirements" / "development.txt"))
        run(*uv, "pip", "install", "--python", str(home), "--find-links", str(place / "wheels"), *pins, requirement)
        return home / "bin" / "python"

    return make


def run(*command: str, cwd: Path | None = None, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KMP_", "COV", "PYTHON"))}
    done = subprocess.run(command, cwd=cwd, env=kept | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@asynccontextmanager
async def at_timescale(server: testbed.Server) -> AsyncIterator[dict[str, str]]:
    async with TimescaleProvisioner(postgres_bed.admin_url(server)) as provisioner:
        try:
            yield {"KMP_STORAGE_TIMESERIES_URL": (await provisioner.provision(PROJECT)).url.reveal()}
        finally:
            await provisioner.deprovision(PROJECT, force=True)


@asynccontextmanager
async def at_neo4j(server: testbed.Server) -> AsyncIterator[dict[str, str]]:
    url = f"bolt://neo4j:{server.password}@{server.address}"
    yield {"KMP_STORAGE_GRAPH_URL": url}
    async with Neo4jStore(url, project=PROJECT) as store:
        await store.run("MATCH (node) DETACH DELETE node")


@asynccontextmanager
async def at_redis(server: testbed.Server) -> AsyncIterator[dict[str, str]]:
    async with RedisProvisioner(f"redis://default:{server.password}@{server.address}") as provisioner:
        secret = await provisioner.provision(PROJECT)
        assert secret is not None
        try:
            yield {"KMP_STORAGE_CACHE_URL": f"redis://{PROJECT}:{secret.reveal()}@{server.address}"}
        finally:
            await provisioner.deprovision(PROJECT, force=True)


@asynccontextmanager
async def at_s3(server: testbed.Server) -> AsyncIterator[dict[str, str]]:
    async with VersityProvisioner(s3_bed.admin_url(server)) as provisioner:
        key = await provisioner.provision(PROJECT)
        try:
            yield {"KMP_STORAGE_BUCKET_URL": f"s3+http://{key.name}:{key.secret}@{server.address}"}
        finally:
            await provisioner.deprovision(PROJECT, force=True)


@dataclass(frozen=True)
class Extra:
    scheme: str
    embedded: str
    store: str
    place: Callable[[testbed.Server], AbstractAsyncContextManager[dict[str, str]]]


EXTRAS = {
    "timescale": Extra("timescale", "SqliteTimeSeriesStore", "TimescaleStore", at_timescale),
    "neo4j": Extra("bolt", "SqliteGraphStore", "Neo4jStore", at_neo4j),
    "redis": Extra("redis", "SqliteCache", "RedisCache", at_redis),
    "buckets": Extra("s3+http", "FileBucket", "S3Bucket", at_s3),
}
"""In the order in which the program uses them."""


def check(output: str, installed: str | None = None) -> None:
    """The installed extra's store was used, the others embedded; what is not installed says what to install."""
    used, *asked = output.splitlines()
    assert used.split()[1:] == [each.store if name == installed else each.embedded for name, each in EXTRAS.items()]
    missing = {name: each for name, each in EXTRAS.items() if name != installed}
    for (name, each), line in zip(missing.items(), asked, strict=True):
        assert line.startswith(f"{each.scheme}: MissingExtra: ")
        assert f"pip install 'kmp-storage[{name}]'" in line


@pytest.mark.timeout(300)
def test_the_base_install_works_embedded_and_says_what_else_there_is(environment: Environment, tmp_path: Path) -> None:
    python = environment("kmp-storage")
    check(run(str(python), "-W", "error", "-c", PROGRAM, cwd=tmp_path))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("extra", "fixture"),
    [("timescale", "timescaledb"), ("neo4j", "neo4j"), ("redis", "redis_server"), ("buckets", "s3")],
)
async def test_an_extra_alone_reaches_its_server(
    environment: Environment, tmp_path: Path, request: pytest.FixtureRequest, extra: str, fixture: str
) -> None:
    python = environment(f"kmp-storage[{extra}]")
    async with EXTRAS[extra].place(request.getfixturevalue(fixture)) as variables:
        command = (str(python), "-W", "error", "-c", PROGRAM)
        output = await asyncio.to_thread(partial(run, *command, cwd=tmp_path, KMP_PROJECT=PROJECT, **variables))
    check(output, extra)
