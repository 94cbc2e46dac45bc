"""Help for tests on the real TimescaleDB: the administrator's connection, and roles and databases of a test's own."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import images

import testbed


def admin_url(server: testbed.Server, database: str = "postgres", *, port: int | None = None) -> str:
    return f"timescale://postgres:{server.password}@127.0.0.1:{port or server.port}/{database}?sslmode=disable"


@asynccontextmanager
async def admin(server: testbed.Server, database: str = "postgres") -> AsyncIterator[Any]:
    """A plain connection of the administrator's."""
    connection = await connect(server, "postgres", server.password, database)
    try:
        yield connection
    finally:
        connection.terminate()


async def connect(server: testbed.Server, user: str, password: str, database: str) -> Any:
    return await asyncpg.connect(
        host="127.0.0.1", port=server.port, user=user, password=password, database=database, timeout=10, ssl=False
    )


@asynccontextmanager
async def own_database(server: testbed.Server) -> AsyncIterator[tuple[str, str]]:
    """A role of its own with a database of its own, as (name, password); both are dropped after."""
    name, password = f"t{secrets.token_hex(6)}", secrets.token_hex(8)
    async with admin(server) as connection:
        await connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
    try:
        yield name, password
    finally:
        await server.wait_until_ready()
        async with admin(server) as connection:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await connection.execute(f"DROP ROLE {name}")


@contextmanager
def pooler_before(server: testbed.Server, *, size: int = 5) -> Iterator[testbed.Server]:
    """A real PgBouncer in transaction mode before the server, with so many of its connections for each project."""
    from testcontainers.core.container import DockerContainer

    port = testbed.free_port()
    container = DockerContainer(images.have("pgbouncer"))
    environment = {"PORT": port, "SERVER_PORT": server.port, "POSTGRES_PASSWORD": server.password, "SIZE": size}
    for variable, value in environment.items():
        container.with_env(variable, str(value))
    # On the host's own network, so that it reaches what is published on 127.0.0.1 and listens nowhere else.
    container.with_kwargs(labels={testbed.LABEL: str(os.getpid())}, network_mode="host")
    container.start()
    pooler = testbed.Server("pgbouncer", port, server.password, container, testbed.postgres_ready)
    try:
        pooler.wait_ready()
        yield pooler
    finally:
        pooler.stop()


def url_at(url: str, port: int) -> str:
    """The same URL, led through another port."""
    head, _, tail = url.partition("@127.0.0.1:")
    return f"{head}@127.0.0.1:{port}/{tail.partition('/')[2]}"


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


async def is_community(server: testbed.Server) -> bool:
    """Whether this TimescaleDB has what is under the Timescale License. It tells only where the extension is made."""
    async with admin(server) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        found = await connection.fetchval("SELECT current_setting('timescaledb.license')")
        await transaction.rollback()
    return bool(found == "timescale")
