"""What a test leaves on a server is noticed, and fails the run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import neo4j as driver
import pytest
import redis as client
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DeleteGroupsRequest

import kafka_bed
import postgres_bed
import s3_bed
import server_leftovers
import servers as plugin
import testbed
from kmp_storage.bucket.provisioning import VersityProvisioner

ROOT = Path(__file__).parents[2]
TOPIC, LITERAL, READ, ALLOW = 2, 3, 3, 3
"""As the Kafka protocol numbers them."""


def left(server: testbed.Server) -> str:
    return "\n".join(server_leftovers.left_on(server, plugin.FIXTURES[server.name]))


def test_a_database_and_a_role_are_noticed(timescaledb: testbed.Server) -> None:
    import asyncio

    async def run(*statements: str) -> None:
        async with postgres_bed.admin(timescaledb) as connection:
            for statement in statements:
                await connection.execute(statement)

    asyncio.run(run("CREATE ROLE leftrole", "CREATE DATABASE leftdatabase", "CREATE TABLE lefttable ()"))
    try:
        lines = left(timescaledb)
        assert all(f"on timescaledb: {one}" in lines for one in ("role leftrole", "database leftdatabase"))
        assert "on timescaledb: table lefttable" in lines
    finally:
        asyncio.run(run("DROP DATABASE leftdatabase", "DROP ROLE leftrole", "DROP TABLE lefttable"))
    assert "leftrole" not in left(timescaledb)


def test_a_user_and_a_key_are_noticed(redis_server: testbed.Server) -> None:
    with client.Redis(host=testbed.LOOPBACK, port=redis_server.port, password=redis_server.password) as redis:
        redis.execute_command("ACL", "SETUSER", "leftuser")
        redis.set("leftkey", "1")
        try:
            lines = left(redis_server)
            assert "on redis_server: user leftuser" in lines
            assert "on redis_server: key leftkey" in lines
        finally:
            redis.execute_command("ACL", "DELUSER", "leftuser")
            redis.delete("leftkey")
    assert "leftuser" not in left(redis_server)


def test_nodes_are_noticed(neo4j: testbed.Server) -> None:
    with driver.GraphDatabase.driver(f"bolt://{neo4j.address}", auth=("neo4j", neo4j.password)) as session:
        session.execute_query("CREATE (:LeftNode)")
        try:
            assert "1 nodes LeftNode" in left(neo4j)
        finally:
            session.execute_query("MATCH (n:LeftNode) DELETE n")


async def test_a_bucket_and_an_access_key_are_noticed(s3: testbed.Server) -> None:
    import asyncio

    async with VersityProvisioner(s3_bed.admin_url(s3)) as provisioner:
        await provisioner.provision("leftproject")
        try:
            lines = await asyncio.to_thread(left, s3)
            assert "on s3: bucket leftproject" in lines
            assert "on s3: access key leftproject" in lines
        finally:
            await provisioner.deprovision("leftproject", force=True)
    assert "leftproject" not in await asyncio.to_thread(left, s3)


async def test_a_topic_a_group_an_entry_and_a_user_are_noticed(kafka: testbed.Server) -> None:
    import asyncio

    entry = (TOPIC, "lefttopic", LITERAL, "User:leftuser", "*", READ, ALLOW)
    async with kafka_bed.administrator(kafka) as administrator:
        await kafka_bed.set_password(administrator, "leftuser", "secret")
        await administrator.create_topics([NewTopic("lefttopic", 1, 1)])
        await administrator._send_request(CreateAclsRequest(*entry))
        async with kafka_bed.consumer(kafka, "leftgroup") as consumer:
            place = TopicPartition("lefttopic", 0)
            consumer.assign([place])
            await consumer.commit({place: 0})
        try:
            lines = await asyncio.to_thread(left, kafka)
            for one in ("topic lefttopic", "group leftgroup", "ACL of User:leftuser on lefttopic", "user leftuser"):
                assert f"on kafka: {one}" in lines
            assert "admin" not in lines
            assert "__consumer_offsets" not in lines
        finally:
            await administrator._send_request(DeleteAclsRequest(*entry))
            await administrator._send_to_controller(DeleteGroupsRequest(["leftgroup"]))
            await administrator.delete_topics(["lefttopic"])
            await kafka_bed.remove_user(administrator, "leftuser")
    assert await asyncio.to_thread(left, kafka) == ""


def test_a_server_that_does_not_answer_any_more_is_noticed() -> None:
    server = testbed.Server("redis_server", testbed.free_port(), "secret", None, testbed.redis_ready)
    assert "it does not answer any more" in left(server)


TEST = """
import redis

def test_that_leaves_its_user(redis_server):
    with redis.Redis(port=redis_server.port, password=redis_server.password) as client:
        client.execute_command("ACL", "SETUSER", "t0123456789ab")
"""


def run(tmp_path: Path, text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    (tmp_path / "test_it.py").write_text(text)
    kept = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("COV")}
    path = os.pathsep.join(str(ROOT / "tests" / name) for name in ("plugins", "images"))
    options = ["-q", "-ra", "-p", "no:cacheprovider", "-p", "servers", "-p", "leftovers"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_it.py"],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
    )


def test_a_project_left_on_a_server_fails_the_run(tmp_path: Path, servers: Any) -> None:
    done = run(tmp_path, TEST)
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert "on redis_server: user t0123456789ab" in done.stdout
    assert "servers started side by side, all ready after" in done.stdout


MANY = """
import pytest

@pytest.mark.parametrize("number", range(7))
def test_one(redis_server, number): ...

def test_two(neo4j): ...

def test_that_needs_nothing(): ...

def test_skipped_for_another_reason():
    pytest.skip("not today")
"""


@pytest.fixture
def no_engine(tmp_path: Path) -> str:
    (tmp_path / "empty").mkdir()
    return str(tmp_path / "empty")


def test_without_an_engine_one_line_tells_how_many_were_skipped_and_how_to_have_them(
    tmp_path: Path, no_engine: str
) -> None:
    done = run(tmp_path, MANY, PATH=no_engine)
    assert done.returncode == 0, done.stdout
    lines = [line for line in done.stdout.splitlines() if "engine" in line]
    assert lines == [
        f"8 tests were skipped, since no container engine answers: {plugin.HOW}",
        lines[-1],
    ]
    assert lines[-1].startswith("1 passed, 1 skipped, ")
    assert "8 without an engine" in lines[-1]
    assert "not today" in done.stdout


def test_in_ci_a_missing_engine_fails_the_tests(tmp_path: Path, no_engine: str) -> None:
    done = run(tmp_path, MANY, PATH=no_engine, CI="true")
    assert done.returncode == 1
    assert re.search(r"^1 passed, 1 skipped, .*8 errors", done.stdout, re.MULTILINE)
