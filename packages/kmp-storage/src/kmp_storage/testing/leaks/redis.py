"""The leak test of Redis, for a user per project whom the server keeps inside the project's keys and channels."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from kmp_core.plugins import extra
from kmp_storage.testing.leaks.suite import Attempt, Attempts, LeakTest, Login

with extra("redis", install="kmp-storage[redis]"):
    from redis.asyncio import Connection
    from redis.exceptions import AuthenticationError, NoPermissionError

__all__ = ["RedisLeaks"]


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

    def refused(self, error: Exception) -> bool:
        return isinstance(error, NoPermissionError | AuthenticationError)

    async def plant(self, victim: Login) -> None:
        await _command(victim, "SET", self._key(victim), self.secret)

    async def untouched(self, victim: Login) -> bool:
        return bool(await _command(victim, "GET", self._key(victim)) == self.secret.encode())

    def connect(self, victim: Login, neighbour: Login) -> Attempts:
        async def nobody() -> object:
            async with _connection(victim, authenticated=False) as connection:
                await connection.send_command("GET", self._key(victim))
                return await connection.read_response() or "an answer"

        return {"without a login": nobody}

    def read(self, victim: Login, neighbour: Login) -> Attempts:
        key, own = self._key(victim), self._key(neighbour)
        commands = (
            *(f"GET {key}", f"MGET {own} {key}", f"EXISTS {key}", f"PTTL {key}", f"WATCH {key}"),
            *(f"SUBSCRIBE {victim.place}changed",),
        )
        attempts = _attempts(neighbour, commands)
        attempts["GET in a transaction"] = lambda: _transaction(neighbour, f"GET {own}", f"GET {key}")
        return attempts

    def write(self, victim: Login, neighbour: Login) -> Attempts:
        key, own = self._key(victim), self._key(neighbour)
        commands = (
            *(f"SET {key} mine", f"SET {key} mine NX", f"INCRBY {key} 1", f"PEXPIRE {key} 1", f"EXPIRE {key} 1"),
            *(f"DEL {key}", f"UNLINK {key}", f"DEL {own} {key}", f"SET {victim.place}planted 1"),
            *(f"PUBLISH {victim.place}changed key", f"SPUBLISH {victim.place}changed key"),
            *(f"RENAME {own} {key}", f"COPY {own} {key}", f"APPEND {key} x"),
        )
        attempts = _attempts(neighbour, commands)
        attempts["SET in a transaction"] = lambda: _transaction(neighbour, f"SET {own} 1", f"SET {key} mine")
        return attempts

    def browse(self, victim: Login, neighbour: Login) -> Attempts:
        names = {"own": self._key(neighbour), "prefix": victim.place, "channel": f"{victim.place}changed"}
        return _attempts(neighbour, [command.format(**names) for command in self.whole_server])

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
        attempts = _attempts(neighbour, [f"GET {key}" for key in keys if not key.startswith(neighbour.place)])
        attempts |= _attempts(
            neighbour, [f"SUBSCRIBE {project}", f"SUBSCRIBE {neighbour.place[:-1]}*", f"PUBLISH {project} x"]
        )
        for what, password in {
            "the neighbour's password": neighbour.password,
            "its name as password": victim.user,
        }.items():
            attempts[f"the victim's user with {what}"] = _login(victim, password)
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
        attempts = _attempts(neighbour, commands)
        for command in self.harmful:
            # Within a transaction that is dropped: what may not be done may not be queued either.
            attempts[command] = _queued(neighbour, command)
        return attempts

    def _key(self, login: Login) -> str:
        return f"{login.place}leak-test"


@asynccontextmanager
async def _connection(
    login: Login, *, authenticated: bool = True, password: str | None = None
) -> AsyncGenerator[Any, None]:
    user: dict[str, Any] = {"username": login.user, "password": password or login.password} if authenticated else {}
    # RESP2 says no HELLO, so that a connection without a login comes as far as its command.
    connection: Any = Connection(host=login.host, port=login.port, protocol=2, socket_timeout=5, **user)
    try:
        await connection.connect()
        yield connection
    finally:
        await connection.disconnect()


async def _command(login: Login, *words: str) -> Any:
    async with _connection(login) as connection:
        await connection.send_command(*words)
        return await connection.read_response()


def _attempts(login: Login, commands: Iterable[str]) -> dict[str, Attempt]:
    def attempt(command: str) -> Attempt:
        async def tried() -> str:
            await _command(login, *command.split())
            return "the server did it"  # whatever it answered

        return tried

    return {command: attempt(command) for command in commands}


async def _transaction(login: Login, *commands: str) -> str:
    async with _connection(login) as connection:
        for command in ("MULTI", *commands, "EXEC"):
            await connection.send_command(*command.split())
            await connection.read_response()
    return "the server did it"


def _queued(login: Login, command: str) -> Attempt:
    async def tried() -> str:
        async with _connection(login) as connection:
            for one in ("MULTI", command):
                await connection.send_command(*one.split())
                await connection.read_response()
            await connection.send_command("DISCARD")
            await connection.read_response()
        return "the server would do it"

    return tried


def _login(login: Login, password: str) -> Attempt:
    async def tried() -> str:
        async with _connection(login, password=password):
            return "logged in"

    return tried
