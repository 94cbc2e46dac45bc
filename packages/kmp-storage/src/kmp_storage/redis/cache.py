"""A cache that all processes of a project share through Redis.

async with RedisCache("redis://cache.internal", project="skyline") as cache:
    airports = cache.of(Airport, ttl="1h")
    jfk = await airports.get_or_load("JFK", load_from_database)
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

import structlog

from kmp_core.breaker import Breaker
from kmp_core.context import Context
from kmp_core.deadlines import Timeout, deadline, detached, within
from kmp_core.errors import BackendError, Conflict, DeadlineExceeded, InvalidInput, OutcomeUnknown, Unavailable
from kmp_core.pool_metrics import PoolMetrics
from kmp_core.project import Project, backend_name
from kmp_core.resource import Provider
from kmp_core.secrets import Secret, SecretStore
from kmp_core.telemetry import Telemetry
from kmp_storage.cache import check_key, time_to_live
from kmp_storage.protocols import Cache
from kmp_storage.redis.address import Password, RedisAddress
from kmp_storage.redis.channel import Command
from kmp_storage.redis.cluster import Cluster, Servers
from kmp_storage.redis.connections import Connections, due_in, left_until
from kmp_storage.redis.entries import Found, Keys, decode, encode, is_number
from kmp_storage.redis.errors import Untrusted, is_outage
from kmp_storage.redis.leases import Leases
from kmp_storage.redis.limits import Allowance, Limits
from kmp_storage.redis.loads import Load, Loads, Look, Terms
from kmp_storage.redis.locks import Locks
from kmp_storage.redis.near import Near, Reservation
from kmp_storage.redis.reads import Reads
from kmp_storage.redis.writes import Unsaid, each
from kmp_storage.settings.redis import RedisSettings
from kmp_storage.values import CacheStatistics, Lease

__all__ = ["RedisCache"]

_INT64 = 1 << 63
_DOUBTFUL = (asyncio.CancelledError, Unavailable, DeadlineExceeded, OutcomeUnknown)


class RedisCache(Provider, Cache):
    """Cache in Redis, under keys that begin with the project, as a user whom the server lets see nothing else.

    While Redis is away a get is a miss and a set is not kept, unless the setting `outage` says `error`; it is used
    again within seconds of its return. What this process wrote or deleted meanwhile is deleted first then, so that no
    old value comes back. What was written survives as long as the server's own persistence has it.
    """

    abilities = frozenset({"durable", "early_refresh", "shared"})

    def __init__(
        self,
        url: str = "redis://localhost",
        *,
        project: str = "local",
        settings: RedisSettings | None = None,
        password: Password | None = None,
    ) -> None:
        self.project = Project(project)
        self.settings = RedisSettings.load() if settings is None else settings
        user = backend_name(self.project, "redis")
        self.address = RedisAddress.read(url, user=user, settings=self.settings, password=password)
        self._timeout = self.settings.timeout.total_seconds()
        self._keys = Keys(self.project)
        self._hits = self._misses = self._written = 0
        near = self.settings.near_max_bytes
        self._near = Near(max_bytes=near, ttl=self.settings.near_ttl.total_seconds()) if near else None
        self._hearing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the cache of a service's project."""
        settings = RedisSettings.load()
        name = settings.password_secret

        async def password() -> Secret:
            return await (await context.get(SecretStore)).get(name or "")

        return cls(url, project=context.project, settings=settings, password=password if name else None)

    async def _open(self) -> None:
        settings = self.settings
        self._telemetry = Telemetry("db", "redis", project=self.project, scope="kmp_storage")
        name = f"{self.address.host}:{self.address.port}"
        self._metrics = PoolMetrics(project=self.project, name=name, scope="kmp_storage")
        self._connections = self._servers()
        self._metrics.start(self._connections)
        self._reads = Reads(self._connections, timeout=self._timeout, times=self._near is not None)
        self._leases = Leases(self._connections, timeout=self._timeout)
        self._loads = Loads(self._connections, self._leases, self._keys, settings)
        self._locks = Locks(self._connections, self._leases, self._keys, timeout=self._timeout)
        self._limits = Limits(self._connections, self._keys)
        self._unsaid = Unsaid(self._connections, self._keys)
        try:
            await self._check()
        except BackendError as error:
            if settings.outage == "error" or isinstance(error, Untrusted) or not is_outage(error):
                raise
            structlog.get_logger(__name__).warning("redis_away_at_opening", project=self.project, cause=str(error))
        if self._near is not None:
            hear = self._near.listen(
                self._connections,
                self._keys,
                tracking=settings.near_tracking,
                connect_timeout=settings.connect_timeout.total_seconds(),
            )
            self._hearing = asyncio.create_task(hear, name="kmp-redis-changes", context=detached())

    def _servers(self) -> Servers:
        address, size, metrics = self.address, self.settings.pool_size, self._metrics
        connect_timeout = self.settings.connect_timeout.total_seconds()

        def breaker() -> Breaker:
            # A pause that is short enough to be back within seconds, and a patience below the time of a call.
            return Breaker("redis", longest_pause="3s", patience=self._timeout / 2)

        if address.cluster:
            return Cluster(address, size=size, connect_timeout=connect_timeout, breaker=breaker, metrics=metrics)
        return Connections(address, size=size, connect_timeout=connect_timeout, breaker=breaker(), metrics=metrics)

    async def _close(self) -> None:
        if self._hearing is not None:
            self._hearing.cancel()
            await asyncio.wait((self._hearing,))
        await self._leases.close()
        self._metrics.stop()
        self._connections.close()
        await self._reads.close()
        await asyncio.sleep(0)  # a turn of the event loop, in which the sockets are closed

    async def _check(self) -> None:
        await self._connections.check(self._keys.value("check"), within(None, self._timeout))

    async def get(self, key: str, *, timeout: Timeout = None) -> bytes | None:
        # What is kept near was checked when it came, and is forgotten at close: it needs no more than this.
        if (near := self._near) is not None and near.live and type(key) is str:
            entry = near.young.get(key)
            if (
                entry is not None
                and entry[0] > time.monotonic()
                and self._pid == os.getpid()
                and not self._telemetry.listening
            ):
                self._hits += 1
                return entry[1]
        self.ensure_open()
        check_key(key)
        try:
            with self._telemetry.call("get"):
                value = await self._get(key, within(timeout, self._timeout))
        except BackendError as error:
            if not self._is_miss(error):
                raise
            value = None
        if value is None:
            self._misses += 1
        else:
            self._hits += 1
        return value

    async def set(
        self, key: str, value: bytes, *, ttl: Timeout = None, if_absent: bool = False, timeout: Timeout = None
    ) -> bool:
        """Store a value for `ttl`; with `if_absent`, False where there was one. False also where Redis is away."""
        self.ensure_open()
        check_key(key)
        content = encode(value, key, most=self.settings.max_value_bytes)
        seconds = time_to_live(ttl)
        end: Command = () if seconds is None else ("PX", max(1, int(seconds * 1000)))
        condition: Command = ("NX",) if if_absent else ()
        store: Command = ("SET", self._keys.value(key), content, *end, *condition)
        try:
            with self._telemetry.call("set"):
                answers = await self._change((key,), store, due=self._due(timeout), idempotent=not if_absent)
                stored = answers[0] is not None
        except BackendError as error:
            if if_absent or not self._is_miss(error):
                raise
            return False
        if stored:
            self._written += len(key.encode()) + len(content)
        return stored

    async def delete(self, *keys: str, timeout: Timeout = None) -> int:
        self.ensure_open()
        for key in keys:
            check_key(key)
        counts: list[int] = []
        try:
            with self._telemetry.call("delete", len(keys)):
                await self._delete(keys, self._due(timeout), counts)
        except BackendError as error:
            if not self._is_miss(error):
                raise
        return sum(counts)

    async def increment(self, key: str, by: int = 1, *, ttl: Timeout = None, timeout: Timeout = None) -> int:
        self.ensure_open()
        check_key(key)
        if isinstance(by, bool) or not isinstance(by, int):
            raise InvalidInput("by", f"must be a whole number, not {type(by).__name__}", example="1", key=key)
        seconds = time_to_live(ttl)
        if not -_INT64 <= by < _INT64:
            raise InvalidInput("by", "takes the counter beyond 64 bits", example="1", key=key)
        name = self._keys.value(key)
        add: tuple[Command, ...] = (("INCRBY", name, by),)
        if seconds is not None:
            add = (("SET", name, 0, "NX", "PX", max(1, int(seconds * 1000))), *add)
        with self._telemetry.call("increment"):
            due = self._due(timeout)
            try:
                return int((await self._change((key,), *add, due=due, idempotent=False))[-1])
            except BackendError as error:
                if is_outage(error):
                    raise
                raise await self._uncountable(key, error, due) from error

    async def get_or_load(
        self, key: str, load: Load, *, ttl: Timeout, negative_ttl: Timeout = None, timeout: Timeout = None
    ) -> bytes | None:
        self.ensure_open()
        check_key(key)
        terms = Terms(load, _required(ttl), time_to_live(negative_ttl, "negative_ttl"))
        seconds = within(timeout, self.settings.load_timeout)
        with self._telemetry.call("get_or_load"):
            async with deadline(seconds, what=f"get_or_load of {key!r}", backend="redis"):
                return await self._get_or_load(key, terms)

    def lock(self, name: str, *, ttl: Timeout = "10s", timeout: Timeout = None) -> AbstractAsyncContextManager[Lease]:
        self.ensure_open()
        check_key(name, "name")
        seconds = within(timeout, self.settings.timeout)
        return self._locks.hold(name, _required(ttl), seconds, self._telemetry)

    async def limit(self, name: str, *, rate: int, per: Timeout, cost: int = 1, timeout: Timeout = None) -> Allowance:
        """Whether one more call is within `rate` in a window of `per`, counted over all processes.

        Raises `Unavailable` while Redis is away: whether to go on then is the caller's to say.
        """
        self.ensure_open()
        check_key(name, "name")
        window = _required(per, "per")
        seconds = within(timeout, self._timeout)
        with self._telemetry.call("limit"):
            return await self._limits.take(name, rate=rate, per=window, cost=cost, seconds=seconds)

    async def statistics(self) -> CacheStatistics:
        """How well it serves. Redis tells no project what it takes: `bytes_used` is what this process wrote."""
        self.ensure_open()
        with self._telemetry.call("statistics"):
            return CacheStatistics(self._hits, self._misses, self._loads.count, self._written + self._loads.written)

    def _due(self, timeout: Timeout) -> float:
        """The one time by which all must have ended that a call asks of Redis, what it makes good before included."""
        return asyncio.get_running_loop().time() + (within(timeout, self._timeout) or 0.0)

    async def _delete(self, keys: tuple[str, ...], due: float, counts: list[int]) -> None:
        names, left = [self._keys.value(key) for key in keys], set(keys)

        async def remove(part: list[int]) -> None:
            some = tuple(keys[position] for position in part)
            (count,) = await self._change(some, ("DEL", *(names[position] for position in part)), due=due)
            left.difference_update(some)
            counts.append(int(count))

        def home(part: list[int]) -> object:
            return self._connections.home(names[part[0]])

        try:
            await each(self._connections.together(names), remove, home)
        except BaseException as error:
            self._forget(tuple(left))
            if isinstance(error, _DOUBTFUL):
                self._unsaid.remember(tuple(left))  # also what was not begun
            raise

    async def _get(self, key: str, seconds: float | None) -> bytes | None:
        if self._unsaid:
            due = due_in(seconds)
            await self._unsaid.say(key, due=due)
            seconds = left_until(due)
        near = self._near
        if near is None:
            content, _ = await self._reads.get(self._keys.value(key), seconds)
            found = decode(content)
            return None if found is None else found.value
        value = near.find(key) if near.live else None
        if value is not None:
            return value
        reservation, found = near.reserve(key), None
        try:
            found = decode(*await self._reads.get(self._keys.value(key), seconds))
        finally:
            self._settle(key, reservation, found)
        return None if found is None else found.value

    def _settle(self, key: str, reservation: Reservation, found: Found | None) -> None:
        if self._near is not None:
            heard = found is not None and self._connections.hears(self._keys.value(key))
            self._near.settle(key, reservation, found if heard else None)

    async def _get_or_load(self, key: str, terms: Terms) -> bytes | None:
        near = self._near
        value = near.find(key) if near is not None and near.live else None
        if value is not None:
            self._hits += 1
            return value
        away = False
        if self._unsaid:
            try:
                await self._unsaid.say(key, due=due_in(self._loads.patience()))
            except BackendError as error:
                if not self._is_miss(error):
                    raise
                away = True  # and what it would answer in the next moment may be old
        reservation = None if near is None else near.reserve(key)

        def looked(look: Look | None) -> None:
            found = None if look is None else look.found
            if found is None and not (look is not None and look.nothing):
                self._misses += 1
            else:
                self._hits += 1
            if reservation is not None:
                self._settle(key, reservation, found)

        try:
            return await self._loads.get_or_load(key, terms, looked, away=away)
        finally:
            if reservation is not None and not reservation.settled:
                self._settle(key, reservation, None)

    async def _change(
        self, keys: tuple[str, ...], *commands: Command, due: float, idempotent: bool = True
    ) -> list[Any]:
        """Write, outdate the loads of these keys and tell who keeps them near, all at once."""
        leases: Command = ("DEL", *(self._keys.lease(key) for key in keys))
        tell: Command = ("PUBLISH", self._keys.channel, "\n".join(keys))
        self._forget(keys)
        try:
            if self._unsaid:
                await self._unsaid.say(*keys, due=due)
            left = left_until(due)
            answers = await self._connections.transact(*commands, leases, tell, seconds=left, idempotent=idempotent)
            return answers[: len(commands)]
        except BaseException as error:
            # Not what is not idempotent: a counter would begin anew, and somebody else's claim would be gone.
            if idempotent and isinstance(error, _DOUBTFUL):
                self._unsaid.remember(keys)
            raise
        finally:
            self._forget(keys)

    def _forget(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            self._loads.flights.forget(key)
        if self._near is not None:
            self._near.drop(*keys)

    async def _uncountable(self, key: str, error: BackendError, due: float) -> Exception:
        (content,) = await self._connections.ask(("GET", self._keys.value(key)), seconds=left_until(due))
        if content is None:
            return error
        if is_number(content):
            return InvalidInput("by", "takes the counter beyond 64 bits", example="1", key=key)
        return Conflict("the value under this key is no counter; delete it first", key=key)

    def _is_miss(self, error: BackendError) -> bool:
        return self.settings.outage == "miss" and is_outage(error)


def _required(ttl: Timeout, field: str = "ttl") -> float:
    seconds = time_to_live(ttl, field)
    if seconds is None:
        raise InvalidInput(field, "is missing", example='"5m"')
    return seconds
