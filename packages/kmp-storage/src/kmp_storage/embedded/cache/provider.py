"""A cache that needs no server: one SQLite file that all processes of a project on this machine share."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Self

from kmp_core.context import Context
from kmp_core.deadlines import Timeout, deadline, within
from kmp_core.errors import Conflict, InvalidInput
from kmp_core.project import Project
from kmp_core.resource import Provider
from kmp_core.sqlite import Database
from kmp_core.telemetry import Telemetry
from kmp_storage.cache import check_key, time_to_live
from kmp_storage.cache.pauses import Pauses
from kmp_storage.embedded.cache import leases
from kmp_storage.embedded.cache.entries import MIGRATIONS, Entries
from kmp_storage.embedded.cache.file import CacheFile
from kmp_storage.embedded.cache.loads import Load, Loads, Terms
from kmp_storage.embedded.cache.settings import CacheSettings
from kmp_storage.embedded.files import embedded_path
from kmp_storage.protocols import Cache
from kmp_storage.values import CacheStatistics, Lease

__all__ = ["CacheSettings", "SqliteCache"]


class SqliteCache(Provider, Cache):
    """Cache in a file that several processes share (`sqlite:`), or in the memory of this one (`memory:`).

    What a killed process wrote stays; a power cut may take the last moments, as is right for a cache. When the file
    holds `max_bytes`, entries go whose time is over, then the least recently used, as far as the process that needs
    the room knows what was read: a read costs no write, so what others read counts from when it was stored. Failures
    of the file raise typed errors; a service that can do without its cache catches `BackendError`.
    """

    abilities = frozenset({"bounded", "durable", "early_refresh", "shared"})
    embedded = True

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
        path = embedded_path(url, self.project, directory, "cache")
        database = Database(
            path, project=self.project, capability="storage.cache", migrations=MIGRATIONS, synchronous="normal"
        )
        self._file = CacheFile(database, self.settings, clock)
        self._loads = Loads(self._file)
        self._hits = self._misses = 0
        if path is None:
            self.abilities -= {"durable", "shared"}

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the cache of a service's project."""
        return cls(url, project=context.project, directory=context.directory)

    async def _open(self) -> None:
        self._telemetry = Telemetry("db", "sqlite", project=self.project, scope="kmp_storage")
        await self._file.database.open()

    async def _close(self) -> None:
        await self._file.close()

    async def _check(self) -> None:
        await self._file.database.read(Entries.usage)

    async def get(self, key: str, *, timeout: Timeout = None) -> bytes | None:
        self.ensure_open()
        check_key(key)
        with self._telemetry.call("get"):
            found = await self._file.find(key, timeout)
        value = None if found is None else found.value
        self._count(value is not None)
        return value

    async def set(
        self, key: str, value: bytes, *, ttl: Timeout = None, if_absent: bool = False, timeout: Timeout = None
    ) -> bool:
        self.ensure_open()
        check_key(key)
        self._file.entries.check_value(value, key)
        seconds = time_to_live(ttl)

        def store(connection: sqlite3.Connection) -> bool:
            now = self._file.clock()
            if if_absent:
                found = self._file.entries.find(connection, key, now)
                if found is not None and found.value is not None:
                    return False
            expires = None if seconds is None else now + seconds
            self._file.entries.put(connection, key, value, now=now, expires=expires, reads=self._file.reads)
            leases.revoke(connection, "load", key, now=now)
            return True

        with self._telemetry.call("set"):
            stored = await self._file.write(store, timeout)
        if stored:
            self._loads.flights.forget(key)
        return stored

    async def delete(self, *keys: str, timeout: Timeout = None) -> int:
        self.ensure_open()
        for key in keys:
            check_key(key)

        def remove(connection: sqlite3.Connection) -> int:
            now = self._file.clock()
            for key in keys:
                leases.revoke(connection, "load", key, now=now)
            return self._file.entries.delete(connection, keys, now)

        with self._telemetry.call("delete", len(keys)):
            count = await self._file.write(remove, timeout)
        for key in keys:
            self._loads.flights.forget(key)
        return count

    async def increment(self, key: str, by: int = 1, *, ttl: Timeout = None, timeout: Timeout = None) -> int:
        self.ensure_open()
        check_key(key)
        if isinstance(by, bool) or not isinstance(by, int):
            raise InvalidInput("by", f"must be a whole number, not {type(by).__name__}", example="1", key=key)
        seconds = time_to_live(ttl)

        def add(connection: sqlite3.Connection) -> int:
            now = self._file.clock()
            expires = None if seconds is None else now + seconds
            leases.revoke(connection, "load", key, now=now)
            return self._file.entries.increment(connection, key, by, now=now, expires=expires, reads=self._file.reads)

        with self._telemetry.call("increment"):
            value = await self._file.write(add, timeout)
        self._loads.flights.forget(key)
        return value

    async def get_or_load(
        self, key: str, load: Load, *, ttl: Timeout, negative_ttl: Timeout = None, timeout: Timeout = None
    ) -> bytes | None:
        self.ensure_open()
        check_key(key)
        terms = Terms(load, _required(ttl), time_to_live(negative_ttl, "negative_ttl"))
        seconds = within(timeout, self.settings.load_timeout)
        ends = None if seconds is None else time.monotonic() + seconds
        with self._telemetry.call("get_or_load"):
            found = await self._file.find(key, seconds)
            self._count(found is not None)
            if found is not None and not self._loads.due(key, found):
                return found.value
            left = None if ends is None else max(0.0, ends - time.monotonic())
            async with deadline(left, what=f"get_or_load of {key!r}", backend="sqlite"):
                return await self._loads.get_or_load(key, terms, found)

    def lock(self, name: str, *, ttl: Timeout = "10s", timeout: Timeout = None) -> AbstractAsyncContextManager[Lease]:
        self.ensure_open()
        check_key(name, "name")
        return self._lock(name, _required(ttl), within(timeout, self.settings.timeout))

    async def statistics(self) -> CacheStatistics:
        self.ensure_open()
        with self._telemetry.call("statistics"):
            used, evictions = await self._file.database.read(Entries.usage, timeout=self.settings.timeout)
        return CacheStatistics(self._hits, self._misses, self._loads.count, used, evictions)

    @asynccontextmanager
    async def _lock(self, name: str, ttl: float, timeout: float | None) -> AsyncIterator[Lease]:
        owner = uuid.uuid4().hex
        with self._telemetry.call("lock"):
            try:
                async with deadline(timeout, what=f"waiting for the lock {name!r}", backend="sqlite"):
                    token = await self._acquire(name, owner, ttl)
            except BaseException:
                await self._file.release("lock", name, owner)
                raise
        try:
            async with self._file.renewing("lock", name, owner, ttl):
                yield Lease(name, token)
        except BaseException:
            await self._file.let_go("lock", name, owner)
            raise
        if not await self._file.release("lock", name, owner):
            raise Conflict(f"the lock {name!r} ran out and went to another holder before it was released", key=name)

    async def _acquire(self, name: str, owner: str, ttl: float) -> int:
        def claim(connection: sqlite3.Connection) -> int | None:
            now = self._file.clock()
            leases.purge(connection, now=now)
            return leases.claim(connection, "lock", name, owner, now=now, ttl=ttl)

        pauses = Pauses()
        while (token := await self._file.write(claim)) is None:
            await pauses.sleep()
            while not await self._file.database.read(lambda c: leases.is_free(c, "lock", name, self._file.clock())):
                await pauses.sleep()
        return token

    def _count(self, hit: bool) -> None:
        if hit:
            self._hits += 1
        else:
            self._misses += 1


def _required(ttl: Timeout) -> float:
    seconds = time_to_live(ttl)
    if seconds is None:
        raise InvalidInput("ttl", "is missing", example='"5m"')
    return seconds
