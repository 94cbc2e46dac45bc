"""What a project's user of Redis must not do, and a bare connection that tries it: no code of ours stands between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import redis.asyncio
from redis.exceptions import NoPermissionError, ResponseError

import testbed
from kmp_core.secrets import Secret

FOREIGN = ["acme2:v:{.key}", "acme2", "acme", "acm:v:{.key}", "other"]

FOREIGN_KEYS = [
    command.format(key=key)
    for key in FOREIGN
    for command in (
        "GET {key}",
        "MGET acme:v:{{.key}} {key}",
        "SET {key} mine",
        "DEL {key}",
        "UNLINK {key}",
        "EXISTS {key}",
        "PTTL {key}",
        "PEXPIRE {key} 1",
        "INCRBY {key} 1",
        "WATCH {key}",
    )
]
FOREIGN_CHANNELS = ["PUBLISH acme2:changed key", "PUBLISH acme key", "SUBSCRIBE acme2:changed", "SUBSCRIBE acme*"]
WHOLE_SERVER = [
    "SCAN 0",
    "KEYS *",
    "KEYS acme:*",
    "EVAL return(1) 0",
    "EVAL_RO return(1) 0",
    "EVALSHA 0 0",
    "FCALL f 0",
    "RANDOMKEY",
    "DBSIZE",
    "SCRIPT LOAD return(1)",
    "SCRIPT EXISTS x",
    "SCRIPT FLUSH",
    "FUNCTION LIST",
    "FUNCTION DUMP",
    "FUNCTION FLUSH",
    "FUNCTION STATS",
    "CONFIG GET *",
    "CONFIG SET maxmemory 0",
    "SELECT 1",
    "CLIENT TRACKING ON BCAST",
    "CLIENT LIST",
    "CLIENT INFO",
    "CLIENT NO-EVICT on",
    "ACL LIST",
    "ACL WHOAMI",
    "INFO",
    "ROLE",
    "TIME",
    "LASTSAVE",
    "SLOWLOG GET",
    "LATENCY LATEST",
    "MEMORY STATS",
    "PUBSUB CHANNELS",
    "PUBSUB NUMSUB acme2:changed",
    "PSUBSCRIBE *",
    "OBJECT ENCODING acme:v:{.key}",
    "COPY acme:v:{.key} acme:v:{.other}",
    "SORT acme:v:{.key} BY acme2:* GET acme2:*",
    "COMMAND COUNT",
    "CLUSTER INFO",
    "WAIT 0 0",
]
DESTRUCTIVE = ["FLUSHDB", "FLUSHALL", "SWAPDB 0 1", "MONITOR", "SHUTDOWN NOSAVE", "REPLICAOF NO ONE"]


IN_A_CLUSTER = [
    "CLUSTER NODES",
    "CLUSTER SHARDS",
    "CLUSTER LINKS",
    "CLUSTER MYID",
    "CLUSTER KEYSLOT acme2:v:{.key}",
    "CLUSTER COUNTKEYSINSLOT 1",
    "CLUSTER GETKEYSINSLOT 1 10",
    "CLUSTER COUNT-FAILURE-REPORTS x",
    "READONLY",
    "SSUBSCRIBE acme2:changed",
    "SPUBLISH acme2:changed key",
]
DESTRUCTIVE_IN_A_CLUSTER = [
    "CLUSTER RESET",
    "CLUSTER FAILOVER",
    "CLUSTER FLUSHSLOTS",
    "CLUSTER FORGET x",
    "CLUSTER MEET 127.0.0.1 1",
    "CLUSTER SETSLOT 1 STABLE",
    "CLUSTER SAVECONFIG",
    "MIGRATE 127.0.0.1 1 acme2:v:{.key} 0 1",
    "RESTORE acme:v:{.key} 0 x",
    "DUMP acme:v:{.key}",
]


def client_of(port: int, project: str, password: Secret | None) -> redis.asyncio.Redis:
    """A connection of the driver's, logged in as a project."""
    assert password is not None
    return redis.asyncio.Redis(port=port, username=project, password=password.reveal(), protocol=3, socket_timeout=1)


async def allowed(client: redis.asyncio.Redis, commands: list[str]) -> list[str]:
    """The commands that the server did not refuse for want of rights, each tried on a connection of its own."""
    found = []
    for command in commands:
        connection = await client.connection_pool.get_connection()
        try:
            await connection.send_command(*command.split())
            await connection.read_response(timeout=5, push_request=True)
            found.append(command)
        except NoPermissionError:
            continue
        except redis.asyncio.RedisError as error:
            found.append(f"{command}: {error}")
        finally:
            await connection.disconnect()
            await client.connection_pool.release(connection)
    return found


@asynccontextmanager
async def root_of(cluster: testbed.Server, port: int) -> AsyncIterator[redis.asyncio.Redis]:
    """The administrator at one node of a cluster."""
    async with redis.asyncio.Redis(port=port, password=cluster.password, protocol=3, decode_responses=True) as client:
        yield client


async def configure(cluster: testbed.Server, options: dict[str, str], *, but: int | None = None) -> None:
    """Set these at every node but one, for its restarts too."""
    for port in set(cluster.nodes) - {but}:
        async with root_of(cluster, port) as client:
            for option, value in options.items():
                await client.config_set(option, value)
            await client.config_rewrite()
            # A file of what is appended counts only when what was there before has been written into it.
            while await rewrites(client):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


async def rewrites(client: redis.asyncio.Redis) -> bool:
    """Whether a server is still writing what it holds into the file of what is appended, or will soon."""
    told = await client.info("persistence")
    return bool(told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"])


async def save(cluster: testbed.Server) -> None:
    """Have every node save what it holds now, which is what it reads again after a kill."""
    for port in cluster.nodes:
        async with root_of(cluster, port) as client:
            while True:
                with suppress(ResponseError):  # it is just saving, perhaps what it held before
                    await client.save()
                    break
                await asyncio.sleep(0.05)


async def primary_of(cluster: testbed.Server, slot: int, *, asked: int | None = None) -> int:
    """The port of the node that has this slot, as one node says."""
    for port in cluster.nodes if asked is None else [asked]:
        async with root_of(cluster, port) as client:
            try:
                connection = await client.connection_pool.get_connection()
                await connection.send_command("CLUSTER", "SLOTS")
                answer = await connection.read_response()
                await connection.disconnect()
            except redis.asyncio.ConnectionError:
                continue
        return next(int(node[1]) for first, last, node, *_ in answer if first <= slot <= last)
    raise AssertionError("no node answers")


def kill_node(cluster: testbed.Server, port: int) -> None:
    """SIGKILL for one node."""
    _run(cluster, f"kill -9 $(cat /data/{port}/pid)")


def start_node(cluster: testbed.Server, port: int) -> None:
    """Start what was killed, with its configuration."""
    _run(cluster, f"cd /data/{port} && redis-server redis.conf")


def _run(cluster: testbed.Server, command: str) -> None:
    code, output = cluster.container.get_wrapped_container().exec_run(["sh", "-c", command])
    assert code == 0, output


class Moving:
    """A slot on its way from one primary to another, as a tool that balances a cluster moves it."""

    def __init__(self, cluster: testbed.Server, slot: int, source: int, target: int) -> None:
        self.cluster = cluster
        self.slot = slot
        self.source = source
        self.target = target
        self._moving = False

    async def begin(self) -> None:
        """Both nodes know, and nothing has moved yet."""
        async with root_of(self.cluster, self.source) as source, root_of(self.cluster, self.target) as target:
            here, there = [await client.execute_command("CLUSTER MYID") for client in (source, target)]
            await target.execute_command("CLUSTER SETSLOT", self.slot, "IMPORTING", here)
            await source.execute_command("CLUSTER SETSLOT", self.slot, "MIGRATING", there)
            await source.config_resetstat()
            await target.config_resetstat()
        self._moving = True

    async def write(self, name: str, content: bytes) -> None:
        """Store something where the slot goes to, as if it had been moved already."""
        async with root_of(self.cluster, self.target) as target:
            connection = await target.connection_pool.get_connection()
            for command in (("ASKING",), ("SET", name, content)):
                await connection.send_command(*command)
                await connection.read_response()
            await connection.disconnect()

    async def was_asked_to_try_again(self) -> bool:
        """Whether somebody asked for several names of which some have moved."""
        async with root_of(self.cluster, self.target) as target:
            return "errorstat_TRYAGAIN" in await target.info("errorstats")

    async def end(self) -> None:
        """Move what is left, and tell both nodes that it is done."""
        if not self._moving:
            return
        self._moving = False
        async with root_of(self.cluster, self.source) as source, root_of(self.cluster, self.target) as target:
            there = await target.execute_command("CLUSTER MYID")
            names = await source.execute_command("CLUSTER GETKEYSINSLOT", self.slot, 100)
            if names:
                where = ("127.0.0.1", self.target, "", 0, 5000, "REPLACE", "AUTH", self.cluster.password)
                await source.execute_command("MIGRATE", *where, "KEYS", *names)
            for client in (target, source):
                await client.execute_command("CLUSTER SETSLOT", self.slot, "NODE", there)
