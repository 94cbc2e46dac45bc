"""`bolt+s:` and `neo4j+s:` encrypt, and talk to no server whose certificate does not hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import neo4j
import psutil
import pytest

import testbed
from certificates import certificate, pem
from kmp_core.errors import ConfigurationError, Unavailable
from kmp_core.testing.wire import Wire
from kmp_storage.neo4j import Neo4jSettings, Neo4jStore
from kmp_storage.testing.graph import City

SCHEMES = ("bolt+s", "neo4j+s")
TLS = {
    "NEO4J_server_bolt_tls__level": "REQUIRED",
    "NEO4J_dbms_ssl_policy_bolt_enabled": "true",
    "NEO4J_dbms_ssl_policy_bolt_base__directory": "/ssl",
    "NEO4J_dbms_ssl_policy_bolt_private__key": "/ssl/key.pem",
    "NEO4J_dbms_ssl_policy_bolt_public__certificate": "/ssl/leaf.pem",
    "NEO4J_dbms_ssl_policy_bolt_client__auth": "NONE",
}


@dataclass
class Certified:
    server: testbed.Server
    authority: Path
    stranger: Path


@pytest.fixture(scope="module")
def certified(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certified]:
    """A Neo4j that speaks TLS only, as `localhost`."""
    directory = tmp_path_factory.mktemp("tls")
    given = directory / "ssl"
    given.mkdir()
    authority, authority_key = certificate("our authority")
    leaf, leaf_key = certificate("localhost", authority, authority_key)
    (directory / "authority.pem").write_bytes(pem(authority))
    (directory / "stranger.pem").write_bytes(pem(certificate("another authority")[0]))
    (given / "leaf.pem").write_bytes(pem(leaf))
    (given / "key.pem").write_bytes(pem(leaf_key))

    def environment(password: str, port: int) -> dict[str, str]:
        usual = testbed.RECIPES["neo4j"].environment(password, port)
        return {**usual, "NEO4J_server_bolt_advertised__address": f"localhost:{port}", **TLS}

    def answers(server: testbed.Server) -> None:
        with neo4j.GraphDatabase.driver(
            f"bolt://localhost:{server.port}",
            auth=("neo4j", server.password),
            encrypted=True,
            trusted_certificates=neo4j.TrustCustomCAs(str(directory / "authority.pem")),
        ) as driver:
            driver.verify_connectivity()

    async def ready(server: testbed.Server) -> None:
        # Not the asynchronous driver: asyncio closes what failed to shake hands only a little later.
        await asyncio.to_thread(answers, server)

    recipe = replace(testbed.RECIPES["neo4j"], environment=environment, ready=ready, folders={given: "/ssl"})
    server = testbed.start("neo4j with TLS", recipe)
    yield Certified(server, directory / "authority.pem", directory / "stranger.pem")
    server.stop()


def store_at(certified: Certified, scheme: str, *, host: str = "localhost", **settings: Any) -> Neo4jStore:
    url = f"{scheme}://neo4j:{certified.server.password}@{host}:{certified.server.port}"
    return Neo4jStore(url, project="acme", settings=Neo4jSettings.load(**settings))


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_it_works_over_tls(certified: Certified, scheme: str) -> None:
    async with store_at(certified, scheme, tls_ca_file=certified.authority) as store:
        await store.merge(City(code="A", name=scheme))
        assert await store.get(City, "A") == City(code="A", name=scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_of_another_authority_is_refused(certified: Certified, scheme: str) -> None:
    for settings in ({"tls_ca_file": certified.stranger}, {}):
        with pytest.raises(Unavailable, match="certificate of Neo4j does not hold"):
            await store_at(certified, scheme, **settings).open()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_of_another_name_is_refused(certified: Certified, scheme: str) -> None:
    with pytest.raises(Unavailable, match="certificate of Neo4j does not hold"):
        await store_at(certified, scheme, host="127.0.0.1", tls_ca_file=certified.authority).open()


async def test_a_closed_store_leaves_no_socket_to_a_server_that_takes_no_leave(certified: Certified) -> None:
    # Behind TLS asyncio waits half a minute for the other side, unless it is cut.
    async with Wire(testbed.LOOPBACK, certified.server.port) as wire:
        url = f"bolt+s://neo4j:{certified.server.password}@localhost:{wire.port}"
        store = Neo4jStore(url, project="acme", settings=Neo4jSettings.load(tls_ca_file=certified.authority))
        await store.open()
        wire.black_hole()
        await store.close()
        connections = psutil.Process().net_connections("tcp")
        assert not [one for one in connections if one.raddr and one.raddr.port == wire.port]


@pytest.mark.parametrize("scheme", ["bolt", "neo4j"])
async def test_a_server_with_tls_is_not_spoken_to_without(certified: Certified, scheme: str) -> None:
    with pytest.raises(Unavailable):
        await store_at(certified, scheme).open()


async def test_a_file_of_authorities_that_is_none_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"KMP_STORAGE_NEO4J_TLS_CA_FILE: .*; for example"):
        Neo4jSettings.load(tls_ca_file="/nowhere/authority.pem")
    empty = tmp_path / "authority.pem"
    empty.write_text("nothing of use")
    settings = Neo4jSettings.load(tls_ca_file=empty)
    with pytest.raises(ConfigurationError, match="KMP_STORAGE_NEO4J_TLS_CA_FILE"):
        await Neo4jStore("bolt+s://localhost:1", project="acme", settings=settings).open()
