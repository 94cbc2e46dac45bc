"""What `tower` tries on the servers that hold skyline's data, with the bare drivers: no guard of the SDK is in the way.

First it uses its own place with the same credentials, so that a refusal is one of its project and not of a bad
password.
"""

# The drivers' own types are not complete.
# pyright: basic

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
import httpx
import neo4j
import redis.asyncio
from neo4j.exceptions import ClientError
from obstore import sign_async
from obstore.exceptions import PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store
from redis.exceptions import AuthenticationError, NoPermissionError

from kmp_core import Service, deadline
from kmp_core.settings.url import ConnectionUrl
from kmp_storage import Bucket, Cache, GraphStore, TimeSeriesStore
from skyline.models import Airport, Delay
from skyline.settings import StoreUrls

__all__ = ["try_the_servers"]

Report = Callable[[str, str | None, str], None]
_REPORT = "reports/figures.json"
_SECONDS = "15s"


async def try_the_servers(service: Service, urls: StoreUrls, foreign_graph: str, report: Report) -> None:
    """Use every place of its own, and then try all of skyline's."""
    await use_its_own(service)
    assert urls.timeseries_url and urls.cache_url and urls.bucket_url and urls.graph_url
    await try_the_database(urls.timeseries_url, report)
    await try_the_graph(urls.graph_url, foreign_graph, report)
    await try_the_cache(urls.cache_url, report)
    await try_the_bucket(urls.bucket_url, report)


async def use_its_own(service: Service) -> None:
    """Write and read in all four stores: its credentials are good, at home."""
    series, graph = await service.get(TimeSeriesStore), await service.get(GraphStore)
    cache, bucket = await service.get(Cache), await service.get(Bucket)
    assert [row async for row in series.read(Delay)] == []
    await graph.merge(Airport(code="HBR"))
    await cache.set("greeting", b"hello")
    await bucket.put("greeting", b"hello")
    assert (await cache.get("greeting"), await bucket.get("greeting")) == (b"hello", b"hello")


async def refused(
    what: str, attempt: Callable[[], Awaitable[object]], by: tuple[type[Exception], ...], report: Report
) -> None:
    """Try something that the server has to refuse, with one of these errors, which are words of its protocol."""
    try:
        async with deadline(_SECONDS, what=what):
            await attempt()
    except by as error:
        report(what, "server", f"{type(error).__name__}: {error}")
    except Exception as error:
        report(what, None, f"not refused, but failed: {type(error).__name__}: {error}")
    else:
        report(what, None, "it worked")


async def try_the_database(url: ConnectionUrl, report: Report) -> None:
    """One PostgreSQL server has both projects' databases."""
    parts = urlsplit(url.reveal())

    @asynccontextmanager
    async def connected(user: str, database: str) -> AsyncGenerator[Any]:
        connection = await asyncpg.connect(
            host=parts.hostname, port=parts.port, user=user, password=unquote(parts.password or ""),
            database=database, ssl=False,
        )  # fmt: skip
        try:
            yield connection
        finally:
            connection.terminate()

    async def run(user: str, database: str, statement: str) -> None:
        async with connected(user, database) as connection:
            await connection.execute(statement)

    by = (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidAuthorizationSpecificationError)
    for what, user, database, statement in (
        ("connects to skyline's database", "harbour", "skyline", "SELECT * FROM skyline.delays"),
        ("connects as skyline's role, with its own password", "skyline", "skyline", "SELECT * FROM skyline.delays"),
        ("takes skyline's role in its own database", "harbour", "harbour", "SET ROLE skyline"),
        ("drops skyline's database", "harbour", "harbour", "DROP DATABASE skyline"),
    ):
        await refused(what, partial(run, user, database, statement), by, report)


async def try_the_graph(url: ConnectionUrl, foreign: str, report: Report) -> None:
    """Each project has a Neo4j of its own."""
    password = unquote(urlsplit(url.reveal()).password or "")

    async def read(auth: tuple[str, str] | None) -> None:
        async with neo4j.AsyncGraphDatabase.driver(foreign, auth=auth) as driver:
            await driver.execute_query("MATCH (n) RETURN n")

    for what, auth in (
        ("connects to skyline's Neo4j with its own password", ("neo4j", password)),
        ("connects to skyline's Neo4j without a password", None),
    ):
        await refused(what, partial(read, auth), (ClientError,), report)


async def try_the_cache(url: ConnectionUrl, report: Report) -> None:
    """One Redis has both projects' keys."""
    parts = urlsplit(url.reveal())
    password = unquote(parts.password or "")

    async def ask(user: str, *command: str) -> None:
        async with redis.asyncio.Redis(
            host=parts.hostname or "", port=parts.port or 0, username=user, password=password
        ) as client:
            execute: Any = client.execute_command  # it has no types
            await execute(*command)

    by = (NoPermissionError, AuthenticationError)
    for what, user, command in (
        ("reads a key of skyline's", "harbour", ("GET", "skyline:greeting")),
        ("asks Redis for everybody's keys", "harbour", ("KEYS", "*")),
        ("listens to skyline's channels", "harbour", ("SUBSCRIBE", "skyline:changes")),
        ("empties Redis", "harbour", ("FLUSHALL",)),
        ("logs in to Redis as skyline, with its own password", "skyline", ("PING",)),
    ):
        await refused(what, partial(ask, user, *command), by, report)


async def try_the_bucket(url: ConnectionUrl, report: Report) -> None:
    """One S3 server has both projects' buckets."""
    parts = urlsplit(url.reveal())
    store = S3Store(
        "skyline",
        endpoint=f"http://{parts.hostname}:{parts.port}",
        access_key_id=unquote(parts.username or ""),
        secret_access_key=unquote(parts.password or ""),
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    by = (PermissionDeniedError, UnauthenticatedError)

    async def list_by_hand() -> None:
        # The driver reports a refused list like any other failure, so its request is made without it.
        signed = await sign_async(store, "GET", "", timedelta(minutes=1))
        async with httpx.AsyncClient(trust_env=False) as client:
            response = await client.get(signed)
            if response.is_client_error:
                raise PermissionError(f"{response.status_code} {response.reason_phrase}")

    await refused("lists skyline's bucket, with a signed URL", list_by_hand, (PermissionError,), report)
    await refused("gets skyline's report", partial(store.get_async, _REPORT), by, report)
    await refused("puts a report into skyline's bucket", partial(store.put_async, _REPORT, b"{}"), by, report)
