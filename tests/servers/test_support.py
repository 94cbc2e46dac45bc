"""The page of what is supported tells the versions that the servers report of themselves."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import neo4j as driver
import redis.asyncio

import postgres_bed
import testbed

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "support.md"


def rows(name: str) -> list[tuple[str, str, str]]:
    """Version, edition and support, as the page tells them of a server."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines() if "|" in line
    ]
    return [(row[1], row[2], row[3]) for row in cells if row[0] == name and len(row) == 4]


def tells(name: str, version: str, edition: str = "") -> None:
    """The page names this version, or the line of versions that it is of, as one that was run."""
    if os.environ.get(f"KMP_TEST_IMAGE_{name.split(maxsplit=1)[0].upper()}"):
        return  # the page tells of the versions that are run where nobody names another
    run = [told for told, words, support in rows(name) if edition in words and support != "experimental"]
    assert any(version == told or version.startswith(f"{told}.") for told in run), f"{name} {version} {edition}"


def inside(server: testbed.Server, *command: str) -> str:
    """What a command prints in the server's container."""
    code, output = server.container.get_wrapped_container().exec_run([*command])
    assert code == 0, output
    return str(output.decode(errors="replace"))


async def test_postgres_and_timescaledb(timescaledb: testbed.Server) -> None:
    async with postgres_bed.admin(timescaledb) as connection:
        found: str = await connection.fetchval("SHOW server_version")
        extension: str = await connection.fetchval(
            "SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb'"
        )
    tells("PostgreSQL", found.split(maxsplit=1)[0])
    if not await postgres_bed.is_community(timescaledb):
        tells("TimescaleDB", extension, "Apache-2")
        (community,) = [support for _, edition, support in rows("TimescaleDB") if edition.startswith("Community")]
        assert community == "experimental"


def test_pgbouncer(timescaledb: testbed.Server) -> None:
    with postgres_bed.pooler_before(timescaledb) as pooler:
        tells("PgBouncer, in transaction mode", inside(pooler, "pgbouncer", "--version").split()[1])


async def test_neo4j(neo4j: testbed.Server) -> None:
    async with driver.AsyncGraphDatabase.driver(f"bolt://{neo4j.address}", auth=("neo4j", neo4j.password)) as session:
        answer = await session.execute_query(
            "CALL dbms.components() YIELD versions, edition RETURN versions[0], edition"
        )
    version, edition = answer.records[0].values()
    tells("Neo4j", version, edition.title())


async def test_redis(redis_server: testbed.Server) -> None:
    async with redis.asyncio.Redis(port=redis_server.port, password=redis_server.password) as client:
        answer: Any = await client.info("server")
    tells("Redis", answer["redis_version"])


def test_s3(s3: testbed.Server) -> None:
    # It does not tell its version, but Go writes it into every program.
    found = inside(s3, "grep", "-aom1", r"github.com/versity/versitygw.v[0-9.]*", "/usr/local/bin/versitygw")
    tells("versitygw (S3)", found.strip().rpartition("v")[2])


def test_azurite(azurite: testbed.Server) -> None:
    package = inside(azurite, "cat", "/opt/azurite/node_modules/azurite/package.json")
    tells("Azurite, the emulator of Azure Blob Storage", str(json.loads(package)["version"]))


def test_kafka(kafka: testbed.Server) -> None:
    # No request of its protocol tells the version; its own library does.
    found = re.search(r"kafka-clients-([\d.]+)\.jar", inside(kafka, "ls", "/opt/kafka/libs"))
    assert found
    tells("Kafka", found[1])
