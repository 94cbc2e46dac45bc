"""What tests left on a server: every test has a project of its own there, and drops it after.

Asked for once, at the end of a run, by whoever may see everything on the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import testbed

SECONDS = 20


def left_on(server: testbed.Server, recipe: str) -> list[str]:
    """One line for each thing that no new server of this kind has."""
    found = asyncio.run(_ask(server, recipe))
    return [f"on {server.name}: {one}" for one in found]


async def _ask(server: testbed.Server, recipe: str) -> list[str]:
    ask = ASK.get(recipe)
    if ask is None:
        return []
    try:
        async with asyncio.timeout(SECONDS):
            return await ask(server)
    except Exception as error:
        return [f"it does not answer any more: {error!r}"]


async def on_postgres(server: testbed.Server) -> list[str]:
    import postgres_bed

    async with postgres_bed.admin(server) as connection:
        rows = await connection.fetch(
            "SELECT 'database ' || datname AS name FROM pg_database WHERE datname NOT IN "
            "('postgres', 'template0', 'template1') "
            "UNION SELECT 'role ' || rolname FROM pg_roles WHERE rolname <> 'postgres' AND rolname !~ '^pg_' "
            "UNION SELECT 'table ' || tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
        )
    return [row["name"] for row in rows]


async def on_redis(server: testbed.Server) -> list[str]:
    import redis.asyncio

    found = set[str]()
    for port in server.nodes or [server.port]:
        client = redis.asyncio.Redis(
            host=testbed.LOOPBACK, port=port, password=server.password, decode_responses=True, encoding_errors="replace"
        )
        async with client:
            found |= {f"user {name!s}" for name in await client.acl_users() if name != "default"}
            found |= {f"key {key!s}" async for key in client.scan_iter(count=1000)}
    return sorted(found)[:10]


async def on_neo4j(server: testbed.Server) -> list[str]:
    import neo4j

    async with neo4j.AsyncGraphDatabase.driver(f"bolt://{server.address}", auth=("neo4j", server.password)) as driver:
        answer = await driver.execute_query("MATCH (n) RETURN DISTINCT labels(n) AS labels, count(*) AS count LIMIT 10")
    return [f"{record['count']} nodes {':'.join(record['labels'])}" for record in answer.records]


async def on_kafka(server: testbed.Server) -> list[str]:
    import kafka_bed

    async with kafka_bed.administrator(server) as administrator:
        return [
            *(f"topic {name}" for name in await kafka_bed.topics(administrator)),
            *(f"group {name}" for name in await kafka_bed.groups(administrator)),
            *(f"ACL of {acl}" for acl in await kafka_bed.acls(administrator)),
            *(f"user {name}" for name in await kafka_bed.users(administrator)),
        ]


async def on_s3(server: testbed.Server) -> list[str]:
    import s3_bed
    from kmp_storage.bucket import S3Settings
    from kmp_storage.bucket.address import Address
    from kmp_storage.bucket.requests import Requests, texts

    requests = Requests(Address.read(s3_bed.admin_url(server), settings=S3Settings.load()), "", connections=1)
    try:
        buckets = texts(await requests.send("PATCH", "list-buckets"), "Name")
        users = texts(await requests.send("PATCH", "list-users"), "Access")
    finally:
        await requests.close()
    return [*(f"bucket {name}" for name in buckets), *(f"access key {name}" for name in users)]


async def on_azurite(server: testbed.Server) -> list[str]:
    import azure_bed

    return [f"container {name}" for name in await azure_bed.containers(server)]


ASK: dict[str, Callable[[testbed.Server], Awaitable[list[str]]]] = {
    "timescaledb": on_postgres,
    "redis": on_redis,
    "redis_cluster": on_redis,
    "neo4j": on_neo4j,
    "kafka": on_kafka,
    "s3": on_s3,
    "azurite": on_azurite,
}
