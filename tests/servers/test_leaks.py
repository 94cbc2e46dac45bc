"""The installable leak test over every backend and placement; and each guard removed on the real server, and seen."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import redis.asyncio
from neo4j import GraphDatabase

import azure_bed
import s3_bed
import testbed
from kmp_core.secrets import Secret
from kmp_storage.bucket.provisioning import VersityProvisioner
from kmp_storage.redis import RedisSettings
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.leaks import LeakTest, Login
from kmp_storage.testing.leaks.azure import AzureLeaks
from kmp_storage.testing.leaks.neo4j import Neo4jLeaks
from kmp_storage.testing.leaks.redis import RedisClusterLeaks, RedisLeaks
from kmp_storage.testing.leaks.s3 import S3Leaks
from kmp_storage.testing.leaks.timescale import TimescaleLeaks
from kmp_storage.timescale.provisioning import Access, Placement, TimescaleProvisioner
from postgres_bed import admin, admin_url
from redis_ways import Certified


async def sees(kind: str, what: str, suite: LeakTest, victim: Login, neighbour: Login) -> None:
    """The suite's check of this kind fails, and names this attempt."""
    check = {"widen": "widen_its_rights"}.get(kind, kind)
    with pytest.raises(AssertionError, match=f"let a neighbour {kind}:.*{what}"):
        await getattr(suite, f"test_a_neighbour_cannot_{check}")(victim, neighbour)


# TimescaleDB


class _Timescale(TimescaleLeaks):
    placement: ClassVar[Placement]
    extension: ClassVar[bool] = True

    @pytest.fixture
    async def places(self, timescaledb: testbed.Server) -> AsyncIterator[tuple[Access, Access]]:
        base = f"a{secrets.token_hex(4)}"
        shared = f"shared_{base}"
        async with TimescaleProvisioner(
            admin_url(timescaledb), shared_database=shared, extension=self.extension
        ) as operator:
            # The name of one begins with that of the other.
            made = [await operator.provision(name, placement=self.placement) for name in (base, f"{base}2")]
            async with admin(timescaledb, made[1].database) as connection:
                await connection.execute("CREATE EXTENSION dblink")
            yield made[0], made[1]
            for access in made:
                await operator.deprovision(access.project, placement=self.placement, force=True)
        async with admin(timescaledb) as connection:
            await connection.execute(f"DROP DATABASE IF EXISTS {shared} WITH (FORCE)")

    def login(self, server: testbed.Server, access: Access) -> Login:
        assert access.password is not None
        password = access.password.reveal()
        return Login(testbed.LOOPBACK, server.port, access.role, password, access.database, access.schema)

    @pytest.fixture
    def victim(self, timescaledb: testbed.Server, places: tuple[Access, Access]) -> Login:
        return self.login(timescaledb, places[0])

    @pytest.fixture
    def neighbour(self, timescaledb: testbed.Server, places: tuple[Access, Access]) -> Login:
        return self.login(timescaledb, places[1])


class TestTimescaleDatabase(_Timescale):
    placement = "database"

    async def test_it_sees_a_database_that_everybody_may_enter(
        self, victim: Login, neighbour: Login, timescaledb: testbed.Server
    ) -> None:
        async with admin(timescaledb) as connection:
            await connection.execute(f'GRANT CONNECT ON DATABASE "{victim.place}" TO PUBLIC')
        await sees("connect", "connect to the victim's database", self, victim, neighbour)
        await sees("connect", "dblink", self, victim, neighbour)


class TestTimescaleSchema(_Timescale):
    placement = "shared"

    GUARDS: ClassVar = {
        "a schema and a table that everybody may read": (
            'GRANT USAGE ON SCHEMA "{schema}" TO PUBLIC; GRANT SELECT ON ALL TABLES IN SCHEMA "{schema}" TO PUBLIC',
            {"read": "SELECT from the table", "browse": "content anywhere"},
        ),
        "a chunk that everybody may read": ("GRANT SELECT ON {chunk} TO PUBLIC", {"read": "SELECT from chunk 1"}),
        "a table that everybody may change": (
            'GRANT USAGE ON SCHEMA "{schema}" TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA "{schema}" TO PUBLIC',
            {"write": "UPDATE"},
        ),
        "a schema in which everybody may create": (
            'GRANT USAGE, CREATE ON SCHEMA "{schema}" TO PUBLIC',
            {"write": "CREATE TABLE"},
        ),
        "a large object that everybody may read": (
            "GRANT SELECT ON LARGE OBJECT {object} TO PUBLIC",
            {"read": "a large object"},
        ),
        "a role that was granted": ('GRANT "{victim}" TO "{neighbour}"', {"widen": "SET ROLE"}),
        "a role that may do everything": ('ALTER ROLE "{neighbour}" SUPERUSER', {"browse": "passwords"}),
    }

    @pytest.mark.parametrize("guard", GUARDS)
    async def test_it_sees(self, victim: Login, neighbour: Login, timescaledb: testbed.Server, guard: str) -> None:
        removal, seen = self.GUARDS[guard]
        for kind, what in seen.items():
            await self.plant(victim)
            facts = {
                "schema": victim.schema,
                "chunk": self._chunks[0],
                "object": self._large_object,
                "victim": victim.user,
                "neighbour": neighbour.user,
            }
            async with admin(timescaledb, victim.place) as connection:
                await connection.execute(removal.format(**facts))
            await sees(kind, what, self, victim, neighbour)


class TestPlainPostgresDatabase(_Timescale):
    placement = "database"
    extension = False


# Redis


class _Redis(RedisLeaks):
    @pytest.fixture
    def victim(self, logins: dict[str, Login]) -> Login:
        return logins["leak2"]

    @pytest.fixture
    def neighbour(self, logins: dict[str, Login]) -> Login:
        return logins["leak"]


@asynccontextmanager
async def redis_logins(url: str, host: str, port: int, **settings: Any) -> AsyncIterator[dict[str, Login]]:
    async with RedisProvisioner(url, settings=RedisSettings.load(**settings)) as operator:
        made = {}
        for name in ("leak", "leak2"):
            password = secrets.token_hex(8)
            await operator.provision(name, password=Secret(password))
            made[name] = Login(host, port, name, password, f"{name}:")
        yield made
        for name in made:
            await operator.deprovision(name, force=True)


class TestRedisUser(_Redis):
    @pytest.fixture
    async def logins(self, redis_server: testbed.Server) -> AsyncIterator[dict[str, Login]]:
        url = f"redis://default:{redis_server.password}@{redis_server.address}"
        async with redis_logins(url, testbed.LOOPBACK, redis_server.port) as made:
            yield made

    GUARDS: ClassVar = {
        "all keys": (("allkeys",), {"read": "GET", "write": "SET"}),
        "a prefix without its separator": (("~leak*",), {"read": "GET", "guess": "GET leak"}),
        "all channels": (("allchannels",), {"read": "SUBSCRIBE", "write": "PUBLISH", "guess": "SUBSCRIBE leak"}),
        "all commands": (("+@all",), {"browse": "SCAN 0", "widen": "FLUSHALL"}),
        "scripts": (("+eval",), {"browse": "EVAL"}),
        "one command that tells of all": (("+dbsize",), {"browse": "DBSIZE"}),
    }

    @pytest.mark.parametrize("guard", GUARDS)
    async def test_it_sees(self, victim: Login, neighbour: Login, redis_server: testbed.Server, guard: str) -> None:
        rules, seen = self.GUARDS[guard]
        async with redis.asyncio.Redis(port=redis_server.port, password=redis_server.password) as root:
            await root.execute_command("ACL", "SETUSER", neighbour.user, *rules)
            try:
                for kind, what in seen.items():
                    if (kind, guard) == ("widen", "all commands"):
                        # With these rights the rest of that check would end the server: its users, its configuration.
                        self.harmful = ("FLUSHALL",)
                    await sees(kind, what, self, victim, neighbour)
            finally:
                await root.execute_command("ACL", "DELUSER", "mine")  # whom a neighbour with all commands makes


class TestRedisUserOverTls(_Redis):
    @pytest.fixture
    async def logins(self, redis_over_tls: Certified) -> AsyncIterator[dict[str, Login]]:
        server, self.tls_ca_file = redis_over_tls.server, str(redis_over_tls.authority)
        url = f"rediss://default:{server.password}@localhost:{server.port}"
        async with redis_logins(url, "localhost", server.port, tls_ca_file=redis_over_tls.authority) as made:
            yield made

    async def test_it_sees_all_keys(self, victim: Login, neighbour: Login, redis_over_tls: Certified) -> None:
        root = replace(neighbour, user="default", password=redis_over_tls.server.password)
        await self._command(root, "ACL", "SETUSER", neighbour.user, "allkeys")
        await sees("read", "GET", self, victim, neighbour)


class TestRedisUserBehindASentinel(_Redis):
    """A project's login is tried at the Sentinel too, which knows it no more than anybody else's."""

    @pytest.fixture
    async def logins(
        self, durable_redis: testbed.Server, redis_sentinel: testbed.Server
    ) -> AsyncIterator[dict[str, Login]]:
        self.sentinel = redis_sentinel
        url = f"redis://default:{durable_redis.password}@{durable_redis.address}"
        async with redis_logins(url, testbed.LOOPBACK, durable_redis.port) as made:
            yield made

    def nodes(self, login: Login) -> list[Login]:
        return [login, replace(login, port=self.sentinel.port)]

    async def test_it_sees_a_sentinel_that_knows_the_projects_login(
        self, victim: Login, neighbour: Login, redis_sentinel: testbed.Server
    ) -> None:
        async with redis.asyncio.Redis(port=redis_sentinel.port, password=redis_sentinel.password) as root:
            user = ("ACL", "SETUSER", neighbour.user)
            await root.execute_command(*user, "on", f">{neighbour.password}", "+@all")
            try:
                await sees("browse", f"CLIENT LIST at 127.0.0.1:{redis_sentinel.port}", self, victim, neighbour)
            finally:
                await root.execute_command("ACL", "DELUSER", neighbour.user)


class TestRedisClusterUser(RedisClusterLeaks, _Redis):
    @pytest.fixture
    async def logins(self, redis_cluster: testbed.Server) -> AsyncIterator[dict[str, Login]]:
        self.ports = redis_cluster.nodes
        url = f"redis+cluster://default:{redis_cluster.password}@{redis_cluster.address}"
        async with redis_logins(url, testbed.LOOPBACK, redis_cluster.port) as made:
            yield made

    def nodes(self, login: Login) -> list[Login]:
        return [replace(login, port=port) for port in self.ports]

    @pytest.mark.parametrize(
        ("rules", "kind", "what"),
        [
            (("allkeys",), "read", "GET"),
            (("allchannels",), "read", "SUBSCRIBE"),
            (("+cluster",), "browse", "CLUSTER NODES"),
            (("+cluster|failover",), "widen", "CLUSTER FAILOVER"),
        ],
    )
    async def test_it_sees_a_guard_that_one_node_lacks(
        self, victim: Login, neighbour: Login, redis_cluster: testbed.Server, rules: tuple[str], kind: str, what: str
    ) -> None:
        port = redis_cluster.nodes[-1]
        async with redis.asyncio.Redis(port=port, password=redis_cluster.password) as root:
            await root.execute_command("ACL", "SETUSER", neighbour.user, *rules)
        await sees(kind, f"{what}[^,]* at 127.0.0.1:{port}", self, victim, neighbour)


# Neo4j


class TestNeo4jInstance(Neo4jLeaks):
    @pytest.fixture
    def victim(self, neo4j: testbed.Server) -> Iterator[Login]:
        yield Login(testbed.LOOPBACK, neo4j.port, "neo4j", neo4j.password, "neo4j")
        with GraphDatabase.driver(f"bolt://{neo4j.address}", auth=("neo4j", neo4j.password)) as driver:
            driver.execute_query("MATCH (n:KmpLeakTest|Planted) DETACH DELETE n")
            driver.execute_query("DROP CONSTRAINT planted IF EXISTS")

    @pytest.fixture
    def neighbour(self, second_neo4j: testbed.Server) -> Login:
        return Login(testbed.LOOPBACK, second_neo4j.port, "neo4j", second_neo4j.password, "neo4j")

    @pytest.mark.parametrize(
        ("kind", "what"),
        [
            ("connect", "the neighbour's login"),
            ("read", "a node"),
            ("write", "CREATE"),
            ("browse", "labels of the victim's"),
            ("widen", "CREATE USER"),
        ],
    )
    async def test_it_sees_a_login_that_counts_in_both_instances(
        self, victim: Login, neighbour: Login, neo4j: testbed.Server, kind: str, what: str
    ) -> None:
        # Community's users all are administrators: one login for two instances is the guard's whole removal.
        known = Login(neighbour.host, neighbour.port, f"both{secrets.token_hex(4)}", neighbour.password, "neo4j")
        with GraphDatabase.driver(f"bolt://{neo4j.address}", auth=("neo4j", neo4j.password)) as driver:
            driver.execute_query(
                f"CREATE USER {known.user} SET PASSWORD $password CHANGE NOT REQUIRED",
                {"password": known.password},
                database_="system",
            )
            try:
                await sees(kind, what, _AsGiven(), victim, known)
            finally:
                for user in (known.user, "mine"):
                    driver.execute_query(f"DROP USER {user} IF EXISTS", database_="system")
                if kind == "widen":  # which the check itself could do
                    driver.execute_query(
                        "ALTER USER neo4j SET PASSWORD $password CHANGE NOT REQUIRED",
                        {"password": neo4j.password},
                        database_="system",
                    )


class _AsGiven(Neo4jLeaks):
    """The neighbour's own instance does not know the login that only these tests make."""

    def browse(self, victim: Login, neighbour: Login) -> Any:
        return {what: attempt for what, attempt in super().browse(victim, neighbour).items() if "victim" in what}


# S3


class TestS3Bucket(S3Leaks):
    @pytest.fixture
    async def logins(self, s3: testbed.Server) -> AsyncIterator[dict[str, Login]]:
        async with VersityProvisioner(s3_bed.admin_url(s3)) as provisioner:
            made = {}
            for name in ("leaky", "leaky2"):
                key = await provisioner.provision(name)
                made[name] = Login(testbed.LOOPBACK, s3.port, key.name, key.secret, name)
            yield made
            for name in made:
                await provisioner.deprovision(name, force=True)

    @pytest.fixture
    def victim(self, logins: dict[str, Login]) -> Login:
        return logins["leaky2"]

    @pytest.fixture
    def neighbour(self, logins: dict[str, Login]) -> Login:
        return logins["leaky"]

    async def test_it_sees_a_policy_that_lets_a_neighbour_in(self, victim: Login, neighbour: Login) -> None:
        async with self.open_to(victim, {"AWS": [victim.user, neighbour.user]}):
            await sees("connect", "the bucket itself", self, victim, neighbour)
            await sees("read", "GET", self, victim, neighbour)
            await sees("browse", "objects", self, victim, neighbour)
            await sees("write", "put", self, victim, neighbour)

    async def test_it_sees_a_policy_that_lets_everybody_in(self, victim: Login, neighbour: Login) -> None:
        async with self.open_to(victim, "*"):
            await sees("connect", "without an access key", self, victim, neighbour)

    @asynccontextmanager
    async def open_to(self, victim: Login, principal: object) -> AsyncIterator[None]:
        bucket = f"arn:aws:s3:::{victim.place}"
        allow = {"Effect": "Allow", "Principal": principal, "Action": "s3:*", "Resource": [bucket, f"{bucket}/*"]}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        await self._send(victim, "PUT", f"/{victim.place}", {"policy": ""}, content=policy.encode())
        yield

    async def test_it_sees_a_neighbour_who_may_give_buckets_away(
        self, victim: Login, neighbour: Login, s3: testbed.Server
    ) -> None:
        root = Login(testbed.LOOPBACK, s3.port, "admin", s3.password, "")
        role = b"<MutableProps><Role>admin</Role></MutableProps>"
        await self._send(root, "PATCH", "/update-user", {"access": neighbour.user}, content=role)
        try:
            await sees("widen", "make a user.*take the bucket", self, victim, neighbour)
        finally:
            await self._send(root, "PATCH", "/delete-user", {"access": "mine"})


# Azure Blob Storage


class TestCloudBucket(AzureLeaks):
    @pytest.fixture
    async def logins(self, azurite: testbed.Server) -> AsyncIterator[dict[str, Login]]:
        names = ("leaky", "leaky2")
        for name in names:
            await azure_bed.make_container(azurite, name)
        tokens = {name: azure_bed.container_token(azurite, name) for name in names}
        yield {
            name: Login(testbed.LOOPBACK, azurite.port, azure_bed.ACCOUNT, token, name)
            for name, token in tokens.items()
        }
        for name in (*names, "leaky-more"):  # what a check can make whose guard was removed
            await azure_bed.remove_container(azurite, name)

    @pytest.fixture
    def victim(self, logins: dict[str, Login]) -> Login:
        return logins["leaky2"]

    @pytest.fixture
    def neighbour(self, logins: dict[str, Login]) -> Login:
        return logins["leaky"]

    @pytest.mark.parametrize(
        ("kind", "what"),
        [
            ("connect", "the container itself"),
            ("read", "GET"),
            ("read", "copy to its own container"),
            ("write", "delete"),
            ("browse", "blobs"),
            ("browse", "all containers"),
            ("widen", "make a container"),
        ],
    )
    async def test_it_sees_a_token_for_the_whole_account(
        self, victim: Login, azurite: testbed.Server, kind: str, what: str
    ) -> None:
        whole = azure_bed.account_token(azurite)
        mighty = Login(testbed.LOOPBACK, azurite.port, azure_bed.ACCOUNT, whole, "leaky")
        await sees(kind, what, self, victim, mighty)

    async def test_it_sees_a_container_that_is_open_to_everybody(
        self, neighbour: Login, azurite: testbed.Server
    ) -> None:
        name, public = "leaky3", {"x-ms-blob-public-access": "blob"}
        path = f"{name}?restype=container"
        answer = await azure_bed.send(azurite, "PUT", path, azure_bed.account_token(azurite), headers=public)
        assert answer.is_success, answer.text
        token = azure_bed.container_token(azurite, name)
        try:
            await sees(
                "connect",
                "without a token",
                self,
                Login(testbed.LOOPBACK, azurite.port, azure_bed.ACCOUNT, token, name),
                neighbour,
            )
        finally:
            await azure_bed.remove_container(azurite, name)
