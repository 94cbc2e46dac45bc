"""Give each project a user of Redis that the server itself keeps inside the project's keys, and take it away again.

    async with RedisProvisioner("redis://default:secret@cache.internal") as admin:
        password = await admin.provision("skyline")
        await admin.deprovision("skyline", force=True)

This needs an administrator's rights, which a service never has: run it where projects are made. Access lists are not
replicated, so name every node, replicas too; of a cluster (`redis+cluster://`) one is enough, which knows the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

import structlog

from kmp_core.breaker import Breaker
from kmp_core.deadlines import Timeout, deadline
from kmp_core.errors import BackendError, ConfigurationError, Conflict, Fault, Unavailable
from kmp_core.project import Project, backend_name
from kmp_core.resource import Provider
from kmp_core.secrets import Secret
from kmp_storage.redis.address import RedisAddress
from kmp_storage.redis.channel import Command
from kmp_storage.redis.connections import Connections
from kmp_storage.settings.redis import RedisSettings

__all__ = ["CLUSTER_COMMANDS", "COMMANDS", "RedisProvisioner"]

COMMANDS = (
    *("get", "mget", "set", "del", "unlink", "exists", "pttl", "pexpire", "expire", "incr", "incrby"),
    *("multi", "exec", "discard", "watch", "unwatch"),
    *("publish", "subscribe", "unsubscribe"),
    *("ping", "client|setinfo", "client|setname"),
)
"""All that a project's user may do, each on its own keys and channels. An allow-list: what a new version of Redis adds
is refused until somebody has looked at what it shows of the neighbours."""

CLUSTER_COMMANDS = ("cluster|slots", "asking")
"""What it may do on a cluster beside: learn which node has which slot, and follow where a node points to."""

_AT_ONCE = 500


class RedisProvisioner(Provider):
    """The users of projects on all nodes of one Redis. Every call may be repeated."""

    def __init__(self, *urls: str, settings: RedisSettings | None = None) -> None:
        if not urls:
            raise ConfigurationError(
                Fault("urls", "names no node", example='RedisProvisioner("redis://cache.internal")')
            )
        self.settings = RedisSettings.load() if settings is None else settings
        # The URLs name the administrator and the nodes; a service's own user and password are not meant.
        here = self.settings.model_copy(update={"username": None, "password": None, "sentinel": None})
        self._named = [RedisAddress.read(url, user="default", settings=here) for url in urls]
        self._in_cluster = any(address.cluster for address in self._named)
        self._connections: dict[RedisAddress, Connections] = {}
        self._timeout = self.settings.timeout.total_seconds()

    async def _open(self) -> None:
        await self._check()

    async def _close(self) -> None:
        for node in self._connections.values():
            node.close()
        await asyncio.sleep(0)  # a turn of the event loop, in which the sockets are closed

    async def _check(self) -> None:
        for node in await self._nodes():
            await self._ask(node, "PING")

    async def provision(
        self,
        project: str,
        *,
        password: Secret | None = None,
        placement: Literal["shared", "dedicated"] = "shared",
        timeout: Timeout = "30s",
    ) -> Secret | None:
        """Let the project in, on every node, with exactly these rights; what it had beyond them is taken.

        Returns the password where a new one was made: where none was given and the project had none. A given one
        replaces the old ones. On a server that is the project's own (`dedicated`) it may use client tracking too,
        which elsewhere would tell it the names of its neighbours' keys.
        """
        self.ensure_open()
        user = backend_name(Project(project), "redis")
        async with deadline(timeout, what=f"provisioning {project}", backend="redis"):
            made: Secret | None = None
            nodes = await self._nodes()
            hashes = [] if password is not None else await self._hashes(nodes, user)
            if password is None and not hashes:
                password = made = Secret(secrets.token_urlsafe(32), name="password")
            if password is not None:
                # Its hash, so that the password itself is never on the way or in a slow log.
                hashes = [hashlib.sha256(password.reveal().encode()).hexdigest()]
            commands = (
                *COMMANDS,
                *(CLUSTER_COMMANDS if self._in_cluster else ()),
                *(("client|tracking",) if placement == "dedicated" else ()),
            )
            rules = ("reset", "on", f"~{user}:*", f"&{user}:*", *(f"+{command}" for command in commands))
            for node in nodes:
                # One command, so there is no moment in which the user has less than before and is thrown out.
                await self._ask(node, "ACL", "SETUSER", user, *rules, *(f"#{one}" for one in hashes))
                await self._persist(node)
        return made

    async def deprovision(self, project: str, *, force: bool = False, timeout: Timeout = "5m") -> bool:
        """Take the project's user away, and with `force` all that it stored; False where there was neither.

        Without `force`, raises `Conflict` while there is anything under the project's keys.
        """
        self.ensure_open()
        user = backend_name(Project(project), "redis")
        async with deadline(timeout, what=f"deprovisioning {project}", backend="redis"):
            nodes = await self._nodes()
            if not force:
                await self._require_empty(nodes, user)
            removed = 0
            for node in nodes:
                removed += await self._ask(node, "ACL", "DELUSER", user)  # which also ends its connections
                await self._persist(node)
            if not force:
                await self._require_empty(nodes, user)  # nobody can write any more
                return removed > 0
            for node in nodes:
                removed += await self._purge(node, user)
            return removed > 0

    async def _nodes(self) -> list[Connections]:
        """All nodes as they are now: a cluster may have got others since."""
        addresses = []
        for address in self._named:
            addresses += [address] if not address.cluster else await self._members(address)
        return [self._node(address) for address in addresses]

    def _node(self, address: RedisAddress) -> Connections:
        if address not in self._connections:
            connect_timeout = self.settings.connect_timeout.total_seconds()
            self._connections[address] = Connections(
                address, size=1, connect_timeout=connect_timeout, breaker=Breaker("redis")
            )
        return self._connections[address]

    async def _members(self, cluster: RedisAddress) -> list[RedisAddress]:
        """What the first node that answers says who belongs to its cluster, primaries and replicas."""
        causes = []
        for host, port in cluster.cluster:
            node = self._node(replace(cluster, host=host, port=port, cluster=()))
            try:
                listing = await self._ask(node, "CLUSTER", "NODES")
            except Unavailable as error:
                causes.append(f"{host}:{port}: {error}")
                continue
            places = [place for line in listing.decode().splitlines() if (place := _place(line, host)) is not None]
            return [replace(cluster, host=host, port=port, cluster=()) for host, port in places]
        raise Unavailable(f"no node of the Redis Cluster answers ({'; '.join(causes)})", backend="redis")

    async def _hashes(self, nodes: list[Connections], user: str) -> list[str]:
        for node in nodes:
            found = await self._ask(node, "ACL", "GETUSER", user)
            if found is not None:
                return [one.decode() for one in found[b"passwords"]]
        return []

    async def _require_empty(self, nodes: list[Connections], user: str) -> None:
        for node in nodes:
            async for keys in self._keys(node, user):
                problem = f"the project {user} still has keys such as {keys[0].decode(errors='replace')!r}"
                raise Conflict(f"{problem}; deprovision with force=True deletes them", project=user)

    async def _purge(self, node: Connections, user: str) -> int:
        if (await self._ask(node, "ROLE"))[0] != b"master":
            return 0  # its primary tells it
        count = 0
        async for keys in self._keys(node, user):
            # One by one, if in one go: in a cluster each may have another slot.
            count += sum(await node.ask(*(("UNLINK", key) for key in keys), seconds=self._timeout))
        return count

    async def _keys(self, node: Connections, user: str) -> AsyncIterator[list[bytes]]:
        cursor: int | bytes = 0
        while True:
            # A project's name holds no character that a pattern gives a meaning to.
            cursor, keys = await self._ask(node, "SCAN", cursor, "MATCH", f"{user}:*", "COUNT", _AT_ONCE)
            if keys:
                yield keys
            if int(cursor) == 0:
                return

    async def _persist(self, node: Connections) -> None:
        """Have the server's restart keep its users, in the file that it was started with."""
        try:
            kept = await self._ask(node, "CONFIG", "GET", "aclfile")
            await self._ask(node, *(("ACL", "SAVE") if kept.get(b"aclfile") else ("CONFIG", "REWRITE")))
        except BackendError as error:
            # Without any file, or where the provider of the server keeps its configuration for itself.
            log = structlog.get_logger(__name__)
            log.warning("redis_users_not_persisted", node=f"{node.address.host}:{node.address.port}", cause=str(error))

    async def _ask(self, node: Connections, *command: str | bytes | int) -> Any:
        whole: Command = command
        (answer,) = await node.ask(whole, seconds=self._timeout)
        return answer


def _place(line: str, asked: str) -> tuple[str, int] | None:
    """Where a node of `CLUSTER NODES` is; None for one that is just coming or has no address any more."""
    _, address, flags, *_ = line.split(" ")
    if not {"handshake", "noaddr"}.isdisjoint(flags.split(",")):
        return None
    place, *names = address.split(",")
    host, _, port = place.partition("@")[0].rpartition(":")
    return (names[0] if names and names[0] else host) or asked, int(port)
