"""A cache that needs no server: one SQLite file that all processes of a project on this machine share."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from kmp_core.context import Context
from kmp_core.deadlines import Timeout, deadline, remaining, within
from kmp_core.errors import Conflict, InvalidInput, KmpError
from kmp_core.project import Project
from kmp_core.resource import Provider
from kmp_core.sqlite import Database, database_path
from kmp_core.telemetry import Telemetry
from kmp_storage.cache import check_key, time_to_live
from kmp_storage.embedded import cache_leases as leases
from kmp_storage.embedded.cache_entries import MIGRATIONS, Entries, Found
from kmp_storage.embedded.cache_flights import Flights, Landed
from kmp_storage.embedded.cache_settings import CacheSettings
from kmp_storage.protocols import Cache
from kmp_storage.values import CacheStatistics, Lease

__all__ = ["CacheSettings", "SqliteCache"]

T = TypeVar("T")
Load = Callable[[], Awaitable[bytes | None]]

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
_TOUCHED_AT_MOST = 4096


class SqliteCache(Provider, Cache):
    """Cache in a file that several processes share (`sqlite:`), or in the memory of this one (`memory:`).

    What a killed process wrote stays; a power cut may take the last moments, as is right for a cache. When the file
    holds `max_bytes`, entries go whose time is over, then the least recently used, as far as the process that needs
    the room knows what was read: a read costs no write, so what others read counts from when it was stored. Failures
    of the file raise typed errors; a service that can do without its cache catches `BackendError`.
    """

    abilities: ClassVar[frozenset[str]] = frozenset({"bounded", "durable", "early_refresh", "shared"})

    def __init__(
        self,
        url: str = "sqlite:",
        *,
        project: str = "local",
        directory: Path | None = None,
        settings: CacheSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.project = Project(project)
        self.settings = CacheSettings.load() if settings is None else settings
        directory = Path(".kmp") / self.project if directory is None else directory
        path = database_path(directory, url, "cache")
        self._database = Database(path, project=self.project, migrations=MIGRATIONS, synchronous="normal")
        self._entries = Entries(self.settings.max_bytes, self.settings.max_value_bytes)
        self._clock = clock
        self._flights = Flights()
        self._touched: dict[str, float] = {}
        self._cleaning: set[asyncio.Task[Any]] = set()
        self._hits = self._misses = self._loads = 0

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the cache of a service's project."""
        return cls(url, project=context.project, directory=context.directory)

    async def _open(self) -> None:
        self._telemetry = Telemetry("db", "sqlite", project=self.project, scope="kmp_storage")
        await self._database.open()

    async def _close(self) -> None:
        if self._cleaning:
            await asyncio.wait(self._cleaning, timeout=2)
        await self._database.close()

    async def _check(self) -> None:
        await self._database.read(Entries.usage)

    async def get(self, key: str, *, timeout: Timeout = None) -> bytes | None:
        self.ensure_open()
        check_key(key)
        with self._telemetry.call("get"):
            found = await self._find(key, timeout)
        value = None if found is None else found.value
        self._count(value is not None)
        return value

    async def set(
        self, key: str, value: bytes, *, ttl: Timeout = None, if_absent: bool = False, timeout: Timeout = None
    ) -> bool:
        self.ensure_open()
        check_key(key)
        self._entries.check_value(value, key)
        seconds = time_to_live(ttl)

        def store(connection: sqlite3.Connection) -> bool:
            now = self._clock()
            if if_absent:
                found = self._entries.find(connection, key, now)
                if found is not None and found.value is not None:
                    return False
            expires = None if seconds is None else now + seconds
            self._entries.put(connection, key, value, now=now, expires=expires, reads=self._reads)
            leases.revoke(connection, "load", key, now=now)
            return True

        with self._telemetry.call("set"):
            stored = await self._write(store, timeout)
        if stored:
            self._flights.forget(key)
        return stored

    async def delete(self, *keys: str, timeout: Timeout = None) -> int:
        self.ensure_open()
        for key in keys:
            check_key(key)

        def remove(connection: sqlite3.Connection) -> int:
            now = self._clock()
            for key in keys:
                leases.revoke(connection, "load", key, now=now)
            return self._entries.delete(connection, keys, now)

        with self._telemetry.call("delete", len(keys)):
            count = await self._write(remove, timeout)
        for key in keys:
            self._flights.forget(key)
        return count

    async def increment(self, key: str, by: int = 1, *, ttl: Timeout = None, timeout: Timeout = None) -> int:
        self.ensure_open()
        check_key(key)
        if isinstance(by, bool) or not isinstance(by, int):
            raise InvalidInput("by", f"must be a whole number, not {type(by).__name__}", example="1", key=key)
        seconds = time_to_live(ttl)

        def add(connection: sqlite3.Connection) -> int:
            now = self._clock()
            expires = None if seconds is None else now + seconds
            leases.revoke(connection, "load", key, now=now)
            return self._entries.increment(connection, key, by, now=now, expires=expires, reads=self._reads)

        with self._telemetry.call("increment"):
            value = await self._write(add, timeout)
        self._flights.forget(key)
        return value

    async def get_or_load(
        self, key: str, load: Load, *, ttl: Timeout, negative_ttl: Timeout = None, timeout: Timeout = None
    ) -> bytes | None:
        self.ensure_open()
        check_key(key)
        terms = _Terms(load, _required(ttl), time_to_live(negative_ttl, "negative_ttl"))
        seconds = within(timeout, self.settings.load_timeout)
        with self._telemetry.call("get_or_load"):
            async with deadline(seconds, what=f"get_or_load of {key!r}", backend="sqlite"):
                return await self._get_or_load(key, terms)

    def lock(self, name: str, *, ttl: Timeout = "10s", timeout: Timeout = None) -> AbstractAsyncContextManager[Lease]:
        self.ensure_open()
        check_key(name, "name")
        return self._lock(name, _required(ttl), within(timeout, self.settings.timeout))

    async def statistics(self) -> CacheStatistics:
        self.ensure_open()
        with self._telemetry.call("statistics"):
            used, evictions = await self._database.read(Entries.usage, timeout=self.settings.timeout)
        return CacheStatistics(self._hits, self._misses, self._loads, used, evictions)

    # Loading

    async def _get_or_load(self, key: str, terms: _Terms) -> bytes | None:
        counted = False
        while True:
            found = await self._find(key)
            if not counted:
                counted = True
                self._count(found is not None)
            if found is not None:
                due = found.refresh is not None and self._clock() >= found.refresh and not self._flights.flying(key)
                return await self._refresh(key, terms, found) if due else found.value
            if not self._flights.flying(key):
                return (await self._flights.lead(key, lambda: self._load_when_free(key, terms))).value
            landed = await self._flights.join(key)
            if landed is not None:
                return landed.value

    async def _refresh(self, key: str, terms: _Terms, found: Found) -> bytes | None:
        """Load a value that is about to end, if nobody does so yet; the old one serves everybody else."""
        owner = uuid.uuid4().hex

        async def load() -> Landed:
            claimed = await self._claim_load(key, owner, unless=lambda live: live.refresh != found.refresh)
            if claimed is True:
                return await self._load(key, terms, owner)
            return Landed((claimed or found).value)

        try:
            # Less than all of the caller's time, so that there is some left to fall back on the old value.
            async with deadline((remaining() or 0) * 0.9, what="early refresh", backend="sqlite"):
                return (await self._flights.lead(key, load)).value
        except Exception:
            if found.expires is not None and self._clock() >= found.expires:
                raise
            # The old value still holds: the loader's trouble is not yet this caller's. The next try comes later.
            with contextlib.suppress(KmpError):
                await self._write(lambda connection: self._postpone(connection, key, found))
            return found.value

    async def _load_when_free(self, key: str, terms: _Terms) -> Landed:
        """Load, unless another process does: then wait for what it brings, or for its lease to end."""
        owner, pauses = uuid.uuid4().hex, _Pauses()
        while True:
            claimed = await self._claim_load(key, owner, unless=lambda live: True)
            if isinstance(claimed, Found):
                return Landed(claimed.value)
            if claimed:
                return await self._load(key, terms, owner)
            while not await self._database.read(lambda connection: self._may_claim(connection, key)):
                await pauses.sleep()

    def _may_claim(self, connection: sqlite3.Connection, key: str) -> bool:
        now = self._clock()
        return leases.is_free(connection, "load", key, now) or Entries.find(connection, key, now) is not None

    async def _claim_load(self, key: str, owner: str, *, unless: Callable[[Found], bool]) -> Found | bool:
        """Take the right to load: a live entry where that makes it needless, else whether we have it."""

        def claim(connection: sqlite3.Connection) -> Found | bool:
            now = self._clock()
            found = self._entries.find(connection, key, now)
            if found is not None and unless(found):
                return found
            ttl = self.settings.load_lease.total_seconds()
            return leases.claim(connection, "load", key, owner, now=now, ttl=ttl) is not None

        try:
            return await self._write(claim)
        except BaseException:
            await self._let_go("load", key, owner)  # it may have been committed in the very moment of the cancel
            raise

    async def _load(self, key: str, terms: _Terms, owner: str) -> Landed:
        self._loads += 1
        try:
            async with self._renewing("load", key, owner, self.settings.load_lease.total_seconds()):
                value = await terms.load()
            if value is not None:
                self._entries.check_value(value, key)
            stored = await self._write(lambda connection: self._store_loaded(connection, key, value, terms, owner))
        except BaseException:
            await self._let_go("load", key, owner)
            raise
        return Landed(value, shared=stored)

    def _store_loaded(
        self, connection: sqlite3.Connection, key: str, value: bytes | None, terms: _Terms, owner: str
    ) -> bool:
        now = self._clock()
        if not leases.release(connection, "load", key, owner, now=now):
            return False  # written or deleted meanwhile, or somebody else loads: ours may be older
        ttl = terms.ttl if value is not None else terms.negative_ttl
        if ttl is None:
            self._entries.delete(connection, (key,), now)
            return True
        ttl *= 1 - random.uniform(0, self.settings.jitter)  # noqa: S311 - spreads ends, no secret
        share = self.settings.refresh_after
        refresh = now + ttl * share if share < 1 and value is not None else None
        self._entries.put(connection, key, value, now=now, expires=now + ttl, refresh=refresh, reads=self._reads)
        return True

    def _postpone(self, connection: sqlite3.Connection, key: str, found: Found) -> None:
        now = self._clock()
        later = now + ((found.expires or now) - now) / 2
        connection.execute("UPDATE entry SET refresh = ? WHERE key = ? AND refresh = ?", (later, key, found.refresh))

    # Locks

    @asynccontextmanager
    async def _lock(self, name: str, ttl: float, timeout: float | None) -> AsyncIterator[Lease]:
        owner = uuid.uuid4().hex
        with self._telemetry.call("lock"):
            try:
                async with deadline(timeout, what=f"waiting for the lock {name!r}", backend="sqlite"):
                    token = await self._acquire(name, owner, ttl)
            except BaseException:
                await self._release("lock", name, owner)
                raise
        try:
            async with self._renewing("lock", name, owner, ttl):
                yield Lease(name, token)
        except BaseException:
            await self._let_go("lock", name, owner)
            raise
        if not await self._release("lock", name, owner):
            raise Conflict(f"the lock {name!r} ran out and went to another holder before it was released", key=name)

    async def _acquire(self, name: str, owner: str, ttl: float) -> int:
        def claim(connection: sqlite3.Connection) -> int | None:
            now = self._clock()
            leases.purge(connection, now=now)
            return leases.claim(connection, "lock", name, owner, now=now, ttl=ttl)

        pauses = _Pauses()
        while (token := await self._write(claim)) is None:
            await pauses.sleep()
            while not await self._database.read(lambda c: leases.is_free(c, "lock", name, self._clock())):
                await pauses.sleep()
        return token

    @asynccontextmanager
    async def _renewing(self, kind: leases.Kind, name: str, owner: str, ttl: float) -> AsyncIterator[None]:
        async def renew() -> None:
            while True:
                await asyncio.sleep(ttl / 3)
                # One failed renewal is not the end: there are two more before the lease runs out.
                with contextlib.suppress(KmpError):
                    await self._write(
                        lambda connection: leases.renew(connection, kind, name, owner, now=self._clock()), ttl / 3
                    )

        task = asyncio.create_task(renew(), name=f"kmp-renew-{kind}", context=contextvars.Context())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def _let_go(self, kind: leases.Kind, name: str, owner: str) -> None:
        """Release on the way out of a failure; what cannot be released runs out by itself."""
        with contextlib.suppress(KmpError):
            await self._release(kind, name, owner)

    async def _release(self, kind: leases.Kind, name: str, owner: str) -> bool:
        """Release even where the caller is being cancelled or its time is over."""

        def release(connection: sqlite3.Connection) -> bool:
            return leases.release(connection, kind, name, owner, now=self._clock())

        work = self._database.write(release, timeout=self.settings.timeout)
        # An empty context: the caller's deadline, which may be over, must not stop this.
        task = asyncio.create_task(work, context=contextvars.Context())
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)
        return await asyncio.shield(task)

    # Rows

    async def _find(self, key: str, timeout: Timeout = None) -> Found | None:
        now = self._clock()
        seconds = within(timeout, self.settings.timeout)
        found = await self._database.read(lambda connection: Entries.find(connection, key, now), timeout=seconds)
        if found is not None:
            touched = self._touched  # the writer's thread may put a new one in its place
            touched.pop(key, None)  # to the end: the first is the one that was read longest ago
            touched[key] = now
            if len(touched) > _TOUCHED_AT_MOST:
                del touched[next(iter(touched))]
        return found

    async def _write(self, work: Callable[[sqlite3.Connection], T], timeout: Timeout = None) -> T:
        return await self._database.write(work, timeout=within(timeout, self.settings.timeout))

    def _reads(self) -> list[tuple[str, float]]:
        reads, self._touched = self._touched, {}
        return list(reads.items())

    def _count(self, hit: bool) -> None:
        if hit:
            self._hits += 1
        else:
            self._misses += 1


class _Terms:
    """What a caller of `get_or_load` asked for."""

    __slots__ = ("load", "negative_ttl", "ttl")

    def __init__(self, load: Load, ttl: float, negative_ttl: float | None) -> None:
        self.load = load
        self.ttl = ttl
        self.negative_ttl = negative_ttl


class _Pauses:
    """Short waits that grow and are spread, so that many who wait do not ask in step."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = _FIRST_PAUSE

    async def sleep(self) -> None:
        await asyncio.sleep(random.uniform(self._next / 2, self._next))  # noqa: S311 - spreads callers, no secret
        self._next = min(self._next * 1.5, _LONGEST_PAUSE)


def _required(ttl: Timeout) -> float:
    seconds = time_to_live(ttl)
    if seconds is None:
        raise InvalidInput("ttl", "is missing", example='"5m"')
    return seconds
