"""Every real server starts, answers in its own protocol on loopback alone, and can be frozen, killed and cut."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

import faults
import testbed

NAMES = ["timescaledb", "neo4j", "redis_server", "redis_cluster", "kafka", "s3", "azurite"]


@pytest.mark.parametrize("name", NAMES)
async def test_server_answers_on_loopback_alone(name: str, request: pytest.FixtureRequest) -> None:
    server: testbed.Server = request.getfixturevalue(name)
    await server.wait_until_ready()
    container = server.container.get_wrapped_container()
    container.reload()
    bound = {entry["HostIp"] for entries in container.ports.values() if entries for entry in entries}
    assert bound == {"127.0.0.1"}


async def connect(server: testbed.Server, port: int) -> asyncpg.Connection:
    return await asyncpg.connect(
        host="127.0.0.1", port=port, user="postgres", password=server.password, database="postgres", timeout=10
    )


async def test_committed_row_survives_the_kill_of_its_server(timescaledb: testbed.Server) -> None:
    connection = await connect(timescaledb, timescaledb.port)
    await connection.execute("CREATE TABLE survivor AS SELECT 42 AS answer")
    timescaledb.kill()
    connection.terminate()
    timescaledb.start_again()
    await timescaledb.wait_until_ready()
    connection = await connect(timescaledb, timescaledb.port)
    assert await connection.fetchval("SELECT answer FROM survivor") == 42
    await connection.execute("DROP TABLE survivor")
    await connection.close()


async def test_frozen_server_answers_again_when_thawed(timescaledb: testbed.Server) -> None:
    connection = await connect(timescaledb, timescaledb.port)
    timescaledb.pause()
    try:
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT 1", timeout=0.3)
    finally:
        timescaledb.unpause()
    connection.terminate()
    await timescaledb.wait_until_ready()


async def test_proxy_slows_swallows_and_cuts(timescaledb: testbed.Server, proxies: faults.Proxies) -> None:
    with proxies.before(timescaledb) as proxy:
        connection = await connect(timescaledb, proxy.port)
        loop = asyncio.get_running_loop()
        proxy.slow(200)
        began = loop.time()
        assert await connection.fetchval("SELECT 1") == 1
        assert loop.time() - began >= 0.2
        proxy.heal()
        proxy.black_hole()
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT 1", timeout=0.3)
        connection.terminate()
        proxy.heal()
        proxy.cut()
        with pytest.raises(OSError):
            await connect(timescaledb, proxy.port)
        proxy.heal()
        connection = await connect(timescaledb, proxy.port)
        await connection.close()
