"""The real servers that the tests run against: each in a container, published on 127.0.0.1, ready when it answers.

A server keeps its port over a restart, so that "it came back" can be tested. Readiness is asked by the server's own
protocol. Fault tests pause, kill and restart a server here, and reach it through toxiproxy to slow or cut a connection.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "images"))
import images

LABEL = "kmp-test-process"
READY_SECONDS = 90
LOOPBACK = "127.0.0.1"

# testcontainers reads them once, when it is imported, by whichever fixture comes first.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", LOOPBACK)


@dataclass
class Server:
    """One running server: where it listens, its administrator's password, and what can be done to it."""

    name: str
    port: int
    password: str
    container: Any
    ready: Callable[[Server], Awaitable[None]]
    nodes: list[int] = field(default_factory=list)
    removed: bool = False

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    def pause(self) -> None:
        """Freeze every process of the server: connections stay open and nothing answers."""
        self.container.get_wrapped_container().pause()

    def unpause(self) -> None:
        self.container.get_wrapped_container().unpause()

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        self.container.get_wrapped_container().kill()

    def start_again(self) -> None:
        """Start what was killed, on the same port and with the same data."""
        self.container.get_wrapped_container().start()

    def wait_ready(self) -> None:
        asyncio.run(self.wait_until_ready())

    async def wait_until_ready(self) -> None:
        """Return when the server answers its own protocol. Raises `TimeoutError` with the end of its log."""
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                async with asyncio.timeout(5):
                    return await self.ready(self)
            except Exception as error:
                if self.removed:
                    raise
                if time.monotonic() > end:
                    log = self.container.get_wrapped_container().logs(tail=20).decode(errors="replace")
                    raise TimeoutError(f"{self.name} did not become ready: {error!r}\n{log}") from error
                await asyncio.sleep(0.1)

    def stop(self) -> None:
        """Remove the server and its data."""
        self.removed = True
        remove(self.container)


@dataclass(frozen=True)
class Recipe:
    """How a server is run: image, port in the container, environment, command, folders, and how readiness is asked.

    With port 0 it listens in the container under the number that is published, which is in the variable PORTS: for one
    that asks itself by the address that clients know."""

    image: str
    port: int
    ready: Callable[[Server], Awaitable[None]]
    environment: Callable[[str, int], Mapping[str, str]] = lambda password, port: {}
    command: Callable[[str], list[str]] = lambda password: []
    nodes: int = 1
    """How many servers run in the container. More than one listen under the numbers that are published, which are in
    the environment variable PORTS: a cluster's nodes tell each other and the clients the same addresses."""
    folders: Mapping[Path, str] = field(default_factory=dict)
    """Folders of this machine, and where the container reads them."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def start(name: str, recipe: Recipe) -> Server:
    """Start a server and return when it answers."""
    server = launch(name, recipe)
    try:
        server.wait_ready()
    except BaseException:
        server.stop()
        raise
    return server


def launch(name: str, recipe: Recipe, *, mark: str | None = None) -> Server:
    """Start a server's container; it may not answer yet. It is an orphan when this process ends, unless it has a mark.

    A mark is a label of this name by which the container is found again.
    """
    from testcontainers.core.container import DockerContainer

    password, port = secrets.token_hex(16), free_port()
    container = DockerContainer(images.have(recipe.image), command=shlex.join(recipe.command(password)) or None)
    for variable, value in recipe.environment(password, port).items():
        container.with_env(variable, value)
    for folder, path in recipe.folders.items():
        container.with_volume_mapping(str(folder), path, "ro")
    ports: dict[str, Any] = container.ports  # the engine's client takes an address too, which the type leaves out
    nodes = [port, *(free_port() for _ in range(1, recipe.nodes))]
    if len(nodes) == 1 and recipe.port:
        ports[f"{recipe.port}/tcp"] = (LOOPBACK, port)
    else:
        container.with_env("PORTS", " ".join(map(str, nodes)))
        ports.update({f"{node}/tcp": (LOOPBACK, node) for node in nodes})
    # Process 1 never ends: what has a mark is no orphan of a test run.
    container.with_kwargs(labels={LABEL: str(os.getpid())} if mark is None else {LABEL: "1", mark: name})
    try:
        container.start()
    except BaseException:
        container.stop()
        raise
    return Server(name, port, password, container, recipe.ready, nodes=nodes)


def remove(container: Any) -> None:
    """Remove a container at once, with its volumes."""
    container.get_wrapped_container().remove(force=True, v=True)
    container.get_docker_client().client.close()


def until(probe: Callable[[], object], what: str, seconds: float = READY_SECONDS) -> None:
    """Ask again until the probe raises nothing. Raises `TimeoutError`."""
    end = time.monotonic() + seconds
    while True:
        try:
            probe()
        except Exception as error:
            if time.monotonic() > end:
                raise TimeoutError(f"{what} did not become ready: {error!r}") from error
            time.sleep(0.05)
        else:
            return


def remove_orphans() -> None:
    """Remove the containers of test runs that were killed before they could do it themselves."""
    import docker

    client = docker.from_env()
    try:
        for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
            if not Path(f"/proc/{container.labels[LABEL]}").exists():
                container.remove(force=True, v=True)
    finally:
        client.close()


async def postgres_ready(server: Server) -> None:
    import asyncpg

    connection = await asyncpg.connect(
        host=LOOPBACK, port=server.port, user="postgres", password=server.password, database="postgres", timeout=5
    )
    try:
        await connection.fetchval("SELECT 1")
    finally:
        await connection.close()


async def redis_ready(server: Server) -> None:
    import redis.asyncio

    async with redis.asyncio.Redis(host=LOOPBACK, port=server.port, password=server.password) as client:
        await client.ping()


async def redis_cluster_ready(server: Server) -> None:
    import redis.asyncio

    roles = []
    for port in server.nodes:
        async with redis.asyncio.Redis(host=LOOPBACK, port=port, password=server.password) as client:
            state = await client.execute_command("CLUSTER INFO")
            replication = await client.info("replication")
            roles.append(replication["role"])
            if state["cluster_state"] != "ok" or replication.get("master_link_status", "up") != "up":
                raise ConnectionError(f"the cluster is not whole: {state} {replication}")
    if roles.count("slave") != len(roles) / 2:
        raise ConnectionError(f"not every primary has its replica: {roles}")


async def neo4j_ready(server: Server) -> None:
    import neo4j

    async with neo4j.AsyncGraphDatabase.driver(
        f"bolt://{LOOPBACK}:{server.port}", auth=("neo4j", server.password)
    ) as driver:
        await driver.verify_connectivity()


async def s3_ready(server: Server) -> None:
    import httpx

    # Any answer is one: without credentials the server refuses, in its own protocol's words.
    async with httpx.AsyncClient() as client:
        response = await client.get(f"http://{LOOPBACK}:{server.port}/")
        if response.status_code not in (200, 403):
            raise ConnectionError(f"S3 answered {response.status_code}")


async def azurite_ready(server: Server) -> None:
    import httpx

    # Any answer is one: without credentials it refuses, in its own protocol's words.
    async with httpx.AsyncClient() as client:
        response = await client.get(f"http://{LOOPBACK}:{server.port}/kmptests?comp=list")
        if "x-ms-error-code" not in response.headers:
            raise ConnectionError(f"Azurite answered {response.status_code}")


async def kafka_ready(server: Server) -> None:
    import kafka_bed

    async with kafka_bed.administrator(server) as administrator:
        await administrator.describe_cluster()


REDIS_CLUSTER = """
node() {
    mkdir -p /data/$1 && cd /data/$1
    [ -f redis.conf ] || printf '%s\\n' "port $1" "cluster-port $2" "dir /data/$1" "protected-mode no" "bind *" \\
        "cluster-enabled yes" "cluster-announce-ip 127.0.0.1" "cluster-announce-port $1" "cluster-node-timeout 3000" \\
        "cluster-require-full-coverage no" "cluster-replica-validity-factor 0" "repl-diskless-sync-delay 0" \\
        "pidfile /data/$1/pid" "logfile /data/$1/log" "daemonize yes" "save ''" \\
        "requirepass $REDISCLI_AUTH" "masterauth $REDISCLI_AUTH" > redis.conf
    redis-server redis.conf
}
bus=17000
for port in $PORTS; do bus=$((bus + 1)); node $port $bus; done
if [ ! -f /data/formed ]; then
    places=$(for port in $PORTS; do echo 127.0.0.1:$port; done)
    for port in $PORTS; do until redis-cli -p $port ping; do sleep 0.05; done; done
    redis-cli --cluster create $places --cluster-replicas 1 --cluster-yes && touch /data/formed
fi
exec sleep infinity
"""
"""Three primaries with a replica each, in one container, where the addresses that they announce hold too."""


RECIPES: dict[str, Recipe] = {
    "timescaledb": Recipe(
        "timescaledb", 5432, postgres_ready, environment=lambda password, port: {"POSTGRES_PASSWORD": password}
    ),
    "neo4j": Recipe(
        "neo4j",
        7687,
        neo4j_ready,
        environment=lambda password, port: {
            "NEO4J_AUTH": f"neo4j/{password}",
            "NEO4J_server_bolt_advertised__address": f"{LOOPBACK}:{port}",
        },
    ),
    "redis": Recipe(
        "redis",
        6379,
        redis_ready,
        command=lambda password: ["redis-server", "--requirepass", password, "--repl-diskless-sync-delay", "0"],
    ),
    "redis_cluster": Recipe(
        "redis",
        6379,
        redis_cluster_ready,
        environment=lambda password, port: {"REDISCLI_AUTH": password},
        command=lambda password: ["sh", "-c", REDIS_CLUSTER],
        nodes=6,
    ),
    "kafka": Recipe(
        "kafka",
        9092,
        kafka_ready,
        environment=lambda password, port: {
            "KMP_ADVERTISED": f"{LOOPBACK}:{port}",
            "KMP_ADMIN_PASSWORD": password,
        },
    ),
    "s3": Recipe(
        "s3",
        7070,
        s3_ready,
        environment=lambda password, port: {
            "ROOT_ACCESS_KEY": "admin",
            "ROOT_SECRET_KEY": password,
            "VGW_KEEP_ALIVE": "true",  # as every other S3 server does; a cancelled call could meet its connection again
        },
    ),
    "azurite": Recipe(
        "azurite",
        0,  # a copy with a token asks for its source
        azurite_ready,
        environment=lambda password, port: {"AZURITE_ACCOUNTS": f"kmptests:{password}"},
    ),
}
