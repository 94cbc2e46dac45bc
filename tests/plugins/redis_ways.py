"""The ways to a Redis beside the plain one: over TLS, and by a Sentinel. Each is started once a session, where needed.

They write each change to their disk before they answer, so that what they acknowledged survives them.
"""

from __future__ import annotations

import base64
import os
import shlex
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import images
import pytest

import testbed
from certificates import certificate, pem

DURABLE = ["--appendonly", "yes", "--appendfsync", "always"]
PRIMARY = "primary"
"""What the Sentinel calls the durable Redis."""


@pytest.fixture(scope="session")
def durable_redis(servers: Any) -> Iterator[testbed.Server]:
    """A Redis that keeps what it acknowledged."""
    recipe = replace(
        testbed.RECIPES["redis"], command=lambda password: ["redis-server", "--requirepass", password, *DURABLE]
    )
    server = testbed.start("durable redis", recipe)
    yield server
    server.stop()


def on_the_host(name: str, port: int, password: str, command: list[str]) -> testbed.Server:
    """A container on the host's own network: Sentinels hand out the addresses that they themselves connect to."""
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(images.have("redis"), command=shlex.join(command))
    container.with_kwargs(labels={testbed.LABEL: str(os.getpid())}, network_mode="host")
    container.start()
    return testbed.Server(name, port, password, container, testbed.redis_ready)


def sentinel(primary: testbed.Server, password: str, *options: str) -> testbed.Server:
    """A Sentinel that watches one server, whose password is its own; it may not answer yet."""
    port = testbed.free_port()
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"requirepass {password}",
        f"sentinel monitor {PRIMARY} 127.0.0.1 {primary.port} 1",
        f"sentinel auth-pass {PRIMARY} {primary.password}",
        *(f"sentinel {option.format(PRIMARY)}" for option in options),
    ]
    script = f"printf '%s\\n' {' '.join(repr(line) for line in lines)} > /tmp/s.conf; exec redis-sentinel /tmp/s.conf"
    return on_the_host("sentinel", port, password, ["sh", "-c", script])


@pytest.fixture(scope="session")
def redis_sentinel(durable_redis: testbed.Server) -> Iterator[testbed.Server]:
    """A Sentinel that names the durable Redis and waits for it for an hour, so that nobody takes over."""
    server = sentinel(durable_redis, "sentinel-test", "down-after-milliseconds {} 3600000")
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@dataclass
class Certified:
    """A server that speaks TLS only, as `localhost`, and what to know it by."""

    server: testbed.Server
    authority: Path
    stranger: Path
    leaf: Path
    """The server's own certificate and key."""

    @property
    def trusted(self) -> ssl.SSLContext:
        """Trusts the server, under whatever name."""
        context = ssl.create_default_context(cafile=self.authority)
        context.check_hostname = False
        return context

    @property
    def shown(self) -> ssl.SSLContext:
        """Says that it is the server."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.leaf)
        return context


@pytest.fixture(scope="session")
def redis_over_tls(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certified]:
    """A durable Redis behind TLS."""
    import redis.asyncio

    directory = tmp_path_factory.mktemp("tls")
    authority, authority_key = certificate("our authority")
    leaf, leaf_key = certificate("localhost", authority, authority_key)
    (directory / "authority.pem").write_bytes(pem(authority))
    (directory / "stranger.pem").write_bytes(pem(certificate("another authority")[0]))
    (directory / "leaf.pem").write_bytes(pem(leaf) + pem(leaf_key))
    files = {"leaf": pem(leaf), "key": pem(leaf_key), "authority": pem(authority)}
    writes = "; ".join(
        f"echo {base64.b64encode(content).decode()} | base64 -d > /tmp/{name}.pem" for name, content in files.items()
    )
    options = "--port 0 --tls-port 6379 --tls-auth-clients no --protected-mode no --bind '*'"
    tls = "--tls-cert-file /tmp/leaf.pem --tls-key-file /tmp/key.pem --tls-ca-cert-file /tmp/authority.pem"

    async def ready(server: testbed.Server) -> None:
        async with redis.asyncio.Redis(
            host="localhost",
            port=server.port,
            password=server.password,
            ssl=True,
            ssl_ca_certs=str(directory / "authority.pem"),
        ) as client:
            await client.ping()

    def command(password: str) -> list[str]:
        run = f"exec redis-server {options} {tls} {' '.join(DURABLE)} --requirepass {password}"
        return ["sh", "-c", f"{writes}; {run}"]

    recipe = replace(testbed.RECIPES["redis"], command=command, ready=ready)
    server = testbed.start("redis with TLS", recipe)
    yield Certified(server, *(directory / f"{name}.pem" for name in ("authority", "stranger", "leaf")))
    server.stop()
