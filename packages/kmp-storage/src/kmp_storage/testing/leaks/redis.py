"""The leak test of Redis, for a user per project whom the server keeps inside the project's keys and channels."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

from kmp_core.plugins import extra
from kmp_storage.testing.leaks.suite import Attempt, Attempts, LeakTest, Login

with extra("redis", install="kmp-storage[redis]"):
    from redis.asyncio import Connection, SSLConnection
    from redis.exceptions import AuthenticationError, MovedError, NoPermissionError

__all__ = ["RedisClusterLeaks", "RedisLeaks"]


class RedisLeaks(LeakTest):
    """Keys, channels, and every command that shows or harms the whole server. `place` is the prefix, `acme2:`."""

    whole_server: ClassVar[tuple[str, ...]] = (
        *("SCAN 0", "KEYS *", "RANDOMKEY", "DBSIZE", "INFO", "ROLE", "TIME", "LASTSAVE", "COMMAND COUNT"),
        *("EVAL return(1) 0", "EVAL_RO return(1) 0", "EVALSHA 0 0", "FCALL f 0", "SCRIPT LOAD return(1)"),
        *(
            "SCRIPT FLUSH",
            "FUNCTION LIST",
            "FUNCTION STATS",
            "FUNCTION FLUSH",
            "CONFIG GET *",
            "ACL LIST",
            "ACL WHOAMI",
        ),
        *("CLIENT LIST", "CLIENT INFO", "CLIENT NO-EVICT on", "CLIENT KILL ID 1000000", "CLIENT TRACKING ON BCAST"),
        *("SLOWLOG GET", "LATENCY LATEST", "MEMORY STATS", "OBJECT ENCODING {own}", "CLUSTER INFO", "WAIT 0 0"),
        *("PUBSUB CHANNELS", "PUBSUB NUMSUB {channel}", "PSUBSCRIBE *", "MONITOR", "SELECT 1", "SHUTDOWN ABORT"),
        *("SORT {own} BY {prefix}* GET {prefix}*", "COPY {own} {own}2"),
    )
    """What shows something of everybody's."""

    harmful: ClassVar[tuple[str, ...]] = ("FLUSHDB", "FLUSHALL", "SWAPDB 0 1", "REPLICAOF NO ONE", "CONFIG RESETSTAT")
    """What harms everybody."""

    tls_ca_file: str | None = None
    """The authority that signed the server's certificate, where it speaks TLS."""

    def nodes(self, login: Login) -> list[Login]:
        """Where the same login is tried: each attempt is made at each. Override it where there are several nodes."""
        return [login]

    def refused(self, error: Exception) -> bool:
        return isinstance(error, NoPermissionError | AuthenticationError)

    async def plant(self, victim: Login) -> None:
        await self._as_victim(victim, "SET", self._key(victim), self.secret)

    async def untouched(self, victim: Login) -> bool:
        return bool(await self._as_victim(victim, "GET", self._key(victim)) == self.secret.encode())

    def connect(self, victim: Login, neighbour: Login) -> Attempts:
        def nobody_at(node: Login) -> Attempt:
            async def nobody() -> object:
                async with self._connection(node, authenticated=False) as connection:
                    await connection.send_command("GET", self._key(victim))
                    return await connection.read_response() or "an answer"

            return nobody

        return {_at("without a login", node, victim): nobody_at(node) for node in self.nodes(victim)}

    def read(self, victim: Login, neighbour: Login) -> Attempts:
        key, own = self._key(victim), self._key(neighbour)
        commands = (
            *(f"GET {key}", f"MGET {own} {key}", f"EXISTS {key}", f"PTTL {key}", f"WATCH {key}"),
            *(f"SUBSCRIBE {victim.place}changed",),
        )
        places = [self._home] if neighbour == victim else None  # the victim shows that its own node would answer
        attempts = self._attempts(neighbour, commands, places)
        for node in places or self.nodes(neighbour):
            attempts[_at("GET in a transaction", node, neighbour)] = self._transaction(node, f"GET {key}", f"GET {own}")
        return attempts

    def write(self, victim: Login, neighbour: Login) -> Attempts:
        key, own = self._key(victim), self._key(neighbour)
        commands = (
            *(f"SET {key} mine", f"SET {key} mine NX", f"INCRBY {key} 1", f"PEXPIRE {key} 1", f"EXPIRE {key} 1"),
            *(f"DEL {key}", f"UNLINK {key}", f"DEL {own} {key}", f"SET {victim.place}planted 1"),
            *(f"PUBLISH {victim.place}changed key", f"SPUBLISH {victim.place}changed key"),
            *(f"RENAME {own} {key}", f"COPY {own} {key}", f"APPEND {key} x"),
        )
        attempts = self._attempts(neighbour, commands)
        for node in self.nodes(neighbour):
            name = _at("SET in a transaction", node, neighbour)
            attempts[name] = self._transaction(node, f"SET {key} mine", f"SET {own} 1")
        return attempts

    def browse(self, victim: Login, neighbour: Login) -> Attempts:
        names = {"own": self._key(neighbour), "prefix": victim.place, "channel": f"{victim.place}changed"}
        return self._attempts(neighbour, [command.format(**names) for command in self.whole_server])

    def guess(self, victim: Login, neighbour: Login) -> Attempts:
        project = victim.place.rstrip(":")
        keys = [
            project,
            f"{project}x:leak",
            f"{project[:-1]}:leak",
            f"{neighbour.place[:-1]}",
            "leak",
            "*",
            f"{{{project}}}:leak",
        ]
        attempts = self._attempts(neighbour, [f"GET {key}" for key in keys if not key.startswith(neighbour.place)])
        attempts |= self._attempts(
            neighbour, [f"SUBSCRIBE {project}", f"SUBSCRIBE {neighbour.place[:-1]}*", f"PUBLISH {project} x"]
        )
        for what, password in {
            "the neighbour's password": neighbour.password,
            "its name as password": victim.user,
        }.items():
            for node in self.nodes(victim):
                attempts[_at(f"the victim's user with {what}", node, victim)] = self._login(node, password)
        return attempts

    def widen(self, victim: Login, neighbour: Login) -> Attempts:
        commands = (
            f"ACL SETUSER {neighbour.user} allkeys",
            f"ACL SETUSER {victim.user} >mine",
            "ACL SETUSER mine on nopass +@all allkeys",
            "ACL GETUSER default",
            "CONFIG SET maxmemory 0",
            "CONFIG REWRITE",
            "MODULE LIST",
            "AUTH default foobared",
        )
        attempts = self._attempts(neighbour, commands)
        for command in self.harmful:
            for node in self.nodes(neighbour):
                # Within a transaction that is dropped: what may not be done may not be queued either.
                attempts[_at(command, node, neighbour)] = self._queued(node, command)
        return attempts

    def _key(self, login: Login) -> str:
        return f"{login.place}leak-test"

    @asynccontextmanager
    async def _connection(
        self, login: Login, *, authenticated: bool = True, password: str | None = None
    ) -> AsyncGenerator[Any, None]:
        user: dict[str, Any] = {"username": login.user, "password": password or login.password} if authenticated else {}
        # RESP2 says no HELLO, so that a connection without a login comes as far as its command.
        options: dict[str, Any] = {"host": login.host, "port": login.port, "protocol": 2, "socket_timeout": 5, **user}
        connection: Any = (
            Connection(**options)
            if self.tls_ca_file is None
            else SSLConnection(ssl_ca_certs=self.tls_ca_file, **options)
        )
        try:
            await connection.connect()
            yield connection
        finally:
            await connection.disconnect()

    async def _command(self, login: Login, *words: str) -> Any:
        async with self._connection(login) as connection:
            await connection.send_command(*words)
            return await connection.read_response()

    async def _as_victim(self, victim: Login, *words: str) -> Any:
        """At the node that has the key, which is remembered."""
        self._home = victim
        try:
            return await self._command(victim, *words)
        except MovedError as error:
            moved: Any = error  # its host has no type
            self._home = replace(victim, host=moved.host or victim.host, port=moved.port)
            return await self._command(self._home, *words)

    def _attempts(self, login: Login, commands: Iterable[str], places: list[Login] | None = None) -> dict[str, Attempt]:
        def attempt(command: str, node: Login) -> Attempt:
            async def tried() -> str:
                await self._command(node, *command.split())
                return "the server did it"  # whatever it answered

            return tried

        nodes = self.nodes(login) if places is None else places
        return {_at(command, node, login): attempt(command, node) for command in commands for node in nodes}

    def _transaction(self, login: Login, *commands: str) -> Attempt:
        async def tried() -> str:
            async with self._connection(login) as connection:
                for command in ("MULTI", *commands, "EXEC"):
                    await connection.send_command(*command.split())
                    await connection.read_response()
            return "the server did it"

        return tried

    def _queued(self, login: Login, command: str) -> Attempt:
        async def tried() -> str:
            async with self._connection(login) as connection:
                for one in ("MULTI", command):
                    await connection.send_command(*one.split())
                    await connection.read_response()
                await connection.send_command("DISCARD")
                await connection.read_response()
            return "the server would do it"

        return tried

    def _login(self, login: Login, password: str) -> Attempt:
        async def tried() -> str:
            async with self._connection(login, password=password):
                return "logged in"

        return tried


class RedisClusterLeaks(RedisLeaks):
    """The same at every node of a Cluster, replicas too, and what shows or harms the cluster. Override `nodes`."""

    whole_server = (
        *RedisLeaks.whole_server,
        *("CLUSTER NODES", "CLUSTER SHARDS", "CLUSTER LINKS", "CLUSTER MYID", "CLUSTER KEYSLOT {prefix}x"),
        *("CLUSTER COUNTKEYSINSLOT 1", "CLUSTER GETKEYSINSLOT 1 10", "CLUSTER COUNT-FAILURE-REPORTS x"),
        *("READONLY", "SSUBSCRIBE {channel}", "DUMP {own}"),
    )
    harmful = (
        *RedisLeaks.harmful,
        *("CLUSTER FAILOVER", "CLUSTER FLUSHSLOTS", "CLUSTER FORGET x", "CLUSTER SETSLOT 1 STABLE"),
        *("CLUSTER SAVECONFIG", "CLUSTER RESET"),
    )


def _at(what: str, node: Login, login: Login) -> str:
    return what if node == login else f"{what} at {node.host}:{node.port}"
