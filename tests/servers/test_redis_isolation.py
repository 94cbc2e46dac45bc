"""How users are provisioned, and what a cache says of a wrong one; the leak test proves what the server refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import redis.asyncio
from redis.exceptions import AuthenticationError

import testbed
from kmp_core.errors import (
    ConfigurationError,
    Conflict,
    InvalidInput,
    LifecycleError,
    PermissionDenied,
    Unauthenticated,
)
from kmp_core.secrets import Secret
from kmp_storage.redis import RedisCache
from kmp_storage.redis.connections import Connections
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.cache import eventually
from redis_bed import allowed, client_of


def administrator_of(server: testbed.Server) -> str:
    return f"redis://default:{server.password}@{server.address}"


@pytest.fixture
async def admin(redis_server: testbed.Server) -> AsyncIterator[RedisProvisioner]:
    async with RedisProvisioner(administrator_of(redis_server)) as admin:
        yield admin
        for project in ("acme", "acme2"):
            await admin.deprovision(project, force=True)


async def test_the_cache_of_a_neighbour_is_refused_by_the_server(
    admin: RedisProvisioner, redis_server: testbed.Server
) -> None:
    password = await admin.provision("acme")
    await admin.provision("acme2")
    assert password is not None
    url = f"redis://acme:{password.reveal()}@{redis_server.address}"
    # As if the cache were mistaken about whose it is: the server knows better.
    async with RedisCache(url, project="acme2") as cache:
        for call in (cache.get("key"), cache.set("key", b"1"), cache.delete("key"), cache.increment("key")):
            with pytest.raises(PermissionDenied):
                await call
        with pytest.raises(PermissionDenied):
            async with cache.lock("job"):
                raise AssertionError("a lock of the neighbour's")


async def test_a_refused_change_spoils_no_later_call(admin: RedisProvisioner, redis_server: testbed.Server) -> None:
    password = await admin.provision("acme")
    assert password is not None
    async with redis.asyncio.Redis(port=redis_server.port, password=redis_server.password) as root:
        url = f"redis://acme:{password.reveal()}@{redis_server.address}"
        async with RedisCache(url, project="acme") as cache:
            await root.execute_command("ACL", "SETUSER", "acme", "-set")
            with pytest.raises(PermissionDenied):
                await cache.set("key", b"1")
            await root.execute_command("ACL", "SETUSER", "acme", "+set")
            await cache.set("key", b"2")
            assert await cache.get("key") == b"2"


async def test_a_service_s_own_password_is_not_the_administrator_s(
    redis_server: testbed.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KMP_STORAGE_REDIS_USERNAME", "acme")
    monkeypatch.setenv("KMP_STORAGE_REDIS_PASSWORD", "of the service")
    async with RedisProvisioner(administrator_of(redis_server)) as admin:
        await admin.check()


async def test_a_wrong_password_is_no_outage(admin: RedisProvisioner, redis_server: testbed.Server) -> None:
    await admin.provision("acme")
    for url in (f"redis://acme:hunter2@{redis_server.address}", f"redis://nobody:hunter2@{redis_server.address}"):
        with pytest.raises(Unauthenticated) as caught:
            await RedisCache(url, project="acme").open()
        assert "hunter2" not in str(caught.value)


async def test_provisioning_again_keeps_the_password_and_restores_the_rights(
    admin: RedisProvisioner, redis_server: testbed.Server
) -> None:
    password = await admin.provision("acme")
    async with redis.asyncio.Redis(port=redis_server.port, password=redis_server.password) as root:
        await root.execute_command("ACL", "SETUSER", "acme", "+@all", "allkeys", "(+@all ~*)")
    assert await admin.provision("acme") is None
    async with client_of(redis_server.port, "acme", password) as client:
        assert await allowed(client, ["DBSIZE", "GET acme2:v:{.key}", "CLUSTER SLOTS", "ASKING"]) == []
        assert await client.get("acme:v:{.key}") is None


async def test_a_given_password_replaces_the_old_one(admin: RedisProvisioner, redis_server: testbed.Server) -> None:
    old = await admin.provision("acme")
    assert await admin.provision("acme", password=Secret("new")) is None
    async with client_of(redis_server.port, "acme", Secret("new")) as client:
        assert await client.ping()
    async with client_of(redis_server.port, "acme", old) as client:
        with pytest.raises(AuthenticationError):
            await client.ping()


@pytest.fixture
def replica(redis_server: testbed.Server) -> Iterator[testbed.Server]:
    """A second node that follows the first one."""
    container = redis_server.container.get_wrapped_container()
    container.reload()
    primary = next(iter(container.attrs["NetworkSettings"]["Networks"].values()))["IPAddress"]
    recipe = replace(
        testbed.RECIPES["redis"],
        command=lambda password: [
            *("redis-server", "--requirepass", password),
            *("--replicaof", primary, "6379", "--masterauth", redis_server.password),
        ],
    )
    server = testbed.start("replica", recipe)
    yield server
    server.stop()


async def test_every_node_has_the_user_and_loses_it(redis_server: testbed.Server, replica: testbed.Server) -> None:
    async with RedisProvisioner(administrator_of(redis_server)) as first:
        password = await first.provision("acme")  # before there was a second node
    async with RedisProvisioner(administrator_of(replica), administrator_of(redis_server)) as admin:
        assert await admin.provision("acme") is None
        for node in (redis_server, replica):
            async with client_of(node.port, "acme", password) as client:
                assert await allowed(client, ["DBSIZE", "GET acme2:v:{.key}"]) == []
                await client.get("acme:v:{.key}")
        async with client_of(redis_server.port, "acme", password) as client:
            await client.set("acme:v:{.key}", "1")
        async with client_of(replica.port, "acme", password) as client:

            async def replicated() -> bool:
                return await client.get("acme:v:{.key}") is not None

            await eventually(replicated)
        assert await admin.deprovision("acme", force=True)
        for node in (redis_server, replica):
            async with client_of(node.port, "acme", password) as client:
                with pytest.raises(AuthenticationError):
                    await client.ping()


async def test_deprovisioning_refuses_while_there_is_data(
    admin: RedisProvisioner, redis_server: testbed.Server
) -> None:
    password = await admin.provision("acme")
    neighbour = await admin.provision("acme2")
    async with (
        client_of(redis_server.port, "acme", password) as client,
        client_of(redis_server.port, "acme2", neighbour) as other,
    ):
        await client.set("acme:v:{.key}", "1")
        await other.set("acme2:v:{.key}", "1")
        with pytest.raises(Conflict, match="force=True"):
            await admin.deprovision("acme")
        assert await client.get("acme:v:{.key}") == b"1"
        assert await admin.deprovision("acme", force=True)
        with pytest.raises((AuthenticationError, redis.asyncio.ConnectionError)):
            await client.get("acme:v:{.key}")
        assert await other.get("acme2:v:{.key}") == b"1"
    assert not await admin.deprovision("acme", force=True)
    assert not await admin.deprovision("acme")
    async with redis.asyncio.Redis(port=redis_server.port, password=redis_server.password) as root:
        assert await root.keys("acme:*") == []


async def test_what_was_written_while_it_was_deprovisioned_is_told(
    admin: RedisProvisioner, redis_server: testbed.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.provision("acme")
    empty = RedisProvisioner._require_empty

    async def and_write(self: RedisProvisioner, nodes: list[Connections], user: str) -> None:
        await empty(self, nodes, user)
        async with redis.asyncio.Redis(port=redis_server.port, password=redis_server.password) as root:
            await root.set("acme:v:{.key}", "1")

    monkeypatch.setattr(RedisProvisioner, "_require_empty", and_write)
    with pytest.raises(Conflict, match="force=True"):
        await admin.deprovision("acme")


async def test_a_project_called_like_the_builtin_user_gets_another(
    admin: RedisProvisioner, redis_server: testbed.Server
) -> None:
    try:
        password = await admin.provision("default")
        async with redis.asyncio.Redis(port=redis_server.port, password=redis_server.password) as root:
            assert await root.ping(), "the administrator was locked out"
        assert password is not None
        url = f"redis://:{password.reveal()}@{redis_server.address}"
        async with RedisCache(url, project="default") as cache:
            await cache.set("key", b"1")
            assert await cache.get("key") == b"1"
    finally:
        await admin.deprovision("default", force=True)


@pytest.mark.parametrize("project", ["a*", "..", "acme ~*", "ACME", "аcme", "acme.", ""])
async def test_what_is_no_project_gets_no_user(admin: RedisProvisioner, project: str) -> None:
    with pytest.raises(InvalidInput, match="project"):
        await admin.provision(project)


async def test_an_administration_has_a_life_like_every_resource(redis_server: testbed.Server) -> None:
    admin = RedisProvisioner(administrator_of(redis_server))
    with pytest.raises(LifecycleError):
        await admin.provision("acme")
    with pytest.raises(ConfigurationError):
        RedisProvisioner()
