"""The provider: what `kmp_storage.protocols.Cache` asks for, on a directory of files."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

from directory_cache.files import KernelLock, Record, Store
from kmp_core.context import Context
from kmp_core.deadlines import Timeout, deadline, within
from kmp_core.errors import Conflict, ErrorTable, InvalidInput, Unavailable
from kmp_core.project import Project
from kmp_core.resource import Provider
from kmp_core.telemetry import Telemetry
from kmp_storage.cache import check_key, check_value, time_to_live
from kmp_storage.protocols import Cache
from kmp_storage.values import CacheStatistics, Lease

__all__ = ["DirectoryCache"]

_ERRORS = ErrorTable({OSError: Unavailable})
_SECONDS = 5.0
_LOAD_SECONDS = 30.0


class DirectoryCache(Provider, Cache):
    """Cache in plain files below a directory: `directory:` or `directory:///var/cache/mine`.

    The kernel releases the locks of a killed process at once, so nothing has to be renewed and a lock's `ttl` is
    not needed. It does not refresh early and its size has no bound, so it declares neither.
    """

    abilities = frozenset({"durable", "shared"})
    embedded = True

    def __init__(self, url: str = "directory:", *, project: str = "local", directory: Path | None = None) -> None:
        self.project = Project(project)
        path = url.partition(":")[2].removeprefix("//")
        base = Path(path) if path else (directory or Path(".kmp") / self.project) / "cache-files"
        self._store = Store(base / self.project)
        self._hits = self._misses = self._loads = 0

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the cache of a service's project."""
        return cls(url, project=context.project, directory=context.directory)

    async def _open(self) -> None:
        self._telemetry = Telemetry("db", "directory", project=self.project, scope="directory_cache")
        with _ERRORS.translating():
            await asyncio.to_thread(self._store.prepare)

    async def _close(self) -> None:
        """Files are open only while they are used."""

    async def _check(self) -> None:
        with _ERRORS.translating():
            await asyncio.to_thread(self._store.prepare)

    async def get(self, key: str, *, timeout: Timeout = None) -> bytes | None:
        self.ensure_open()
        check_key(key)
        async with self._call("get", timeout):
            record = await asyncio.to_thread(self._store.read, key)
        found = record.live(time.time()) and record.state == "value"
        self._count(found)
        return record.value if found else None

    async def set(
        self, key: str, value: bytes, *, ttl: Timeout = None, if_absent: bool = False, timeout: Timeout = None
    ) -> bool:
        self.ensure_open()
        check_key(key)
        check_value(value, key)
        new = Record(expires=_expires(time_to_live(ttl)), state="value", value=value)

        def decide(old: Record) -> Record | None:
            taken = if_absent and old.live(time.time()) and old.state == "value"
            return None if taken else new

        async with self._call("set", timeout):
            return await asyncio.to_thread(self._store.change, key, decide) is not None

    async def delete(self, *keys: str, timeout: Timeout = None) -> int:
        self.ensure_open()
        for key in keys:
            check_key(key)
        found: list[bool] = []

        def decide(old: Record) -> Record:
            found.append(old.live(time.time()) and old.state == "value")
            return Record()

        async with self._call("delete", timeout):
            for key in keys:
                await asyncio.to_thread(self._store.change, key, decide)
        return sum(found)

    async def increment(self, key: str, by: int = 1, *, ttl: Timeout = None, timeout: Timeout = None) -> int:
        self.ensure_open()
        check_key(key)
        _check_step(by, key)
        seconds = time_to_live(ttl)

        def decide(old: Record) -> Record:
            if not old.live(time.time()) or old.state != "value":
                old = Record(expires=_expires(seconds), state="value", value=b"0")
            return replace(old, value=_add(old.value, by, key))

        async with self._call("increment", timeout):
            new = await asyncio.to_thread(self._store.change, key, decide)
        return int(new.value) if new is not None else 0

    async def get_or_load(
        self,
        key: str,
        load: Callable[[], Awaitable[bytes | None]],
        *,
        ttl: Timeout,
        negative_ttl: Timeout = None,
        timeout: Timeout = None,
    ) -> bytes | None:
        self.ensure_open()
        check_key(key)
        seconds, negative = time_to_live(ttl), time_to_live(negative_ttl, "negative_ttl")
        if seconds is None:
            raise InvalidInput("ttl", "is missing", example='"5m"')
        async with self._call("get_or_load", timeout, _LOAD_SECONDS):
            record = await asyncio.to_thread(self._store.read, key)
            self._count(record.live(time.time()))
            if record.live(time.time()):
                return _value(record)
            async with self._held("loads", key):
                record = await asyncio.to_thread(self._store.read, key)
                if record.live(time.time()):
                    return _value(record)
                return await self._load(key, record, load, seconds, negative)

    async def _load(
        self,
        key: str,
        before: Record,
        load: Callable[[], Awaitable[bytes | None]],
        ttl: float,
        negative_ttl: float | None,
    ) -> bytes | None:
        self._loads += 1
        value = await load()
        if value is None and negative_ttl is None:
            return None
        if value is None:
            new = Record(expires=_expires(negative_ttl), state="nothing")
        else:
            check_value(value, key)
            new = Record(expires=_expires(ttl), state="value", value=value)

        def decide(old: Record) -> Record | None:
            return new if old.changes == before.changes else None  # else it was set or deleted while we loaded

        await asyncio.to_thread(self._store.change, key, decide)
        return value

    def lock(self, name: str, *, ttl: Timeout = "10s", timeout: Timeout = None) -> AbstractAsyncContextManager[Lease]:
        self.ensure_open()
        check_key(name, "name")
        time_to_live(ttl)
        return self._lock(name, timeout)

    @asynccontextmanager
    async def _lock(self, name: str, timeout: Timeout) -> AsyncGenerator[Lease, None]:
        lock = self._store.lock("locks", name)
        try:
            async with self._call("lock", timeout):
                await _take(lock)
                token = lock.count()
            yield Lease(name, token)
        finally:
            lock.release()

    async def statistics(self) -> CacheStatistics:
        self.ensure_open()
        async with self._call("statistics", None):
            used = await asyncio.to_thread(self._store.bytes_used)
        return CacheStatistics(self._hits, self._misses, self._loads, used)

    @asynccontextmanager
    async def _call(self, operation: str, timeout: Timeout, default: float = _SECONDS) -> AsyncGenerator[None, None]:
        """What every call has: a span, a deadline, and errors of ours."""
        with self._telemetry.call(operation), _ERRORS.translating():
            async with deadline(within(timeout, default), what=operation, backend="directory"):
                yield

    @asynccontextmanager
    async def _held(self, kind: Literal["loads", "locks"], name: str) -> AsyncGenerator[None, None]:
        lock = self._store.lock(kind, name)
        try:
            await _take(lock)
            yield
        finally:
            lock.release(remove=True)

    def _count(self, hit: bool) -> None:
        if hit:
            self._hits += 1
        else:
            self._misses += 1


async def _take(lock: KernelLock) -> None:
    pause = 0.002
    while not lock.try_take():
        await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreads those who wait
        pause = min(pause * 1.5, 0.1)


def _check_step(by: object, key: str) -> None:
    # An object: callers need not check types, and what is no number must not become one.
    if isinstance(by, bool) or not isinstance(by, int):
        raise InvalidInput("by", f"must be a whole number, not {type(by).__name__}", example="1", key=key)


def _expires(seconds: float | None) -> float:
    return 0 if seconds is None else time.time() + seconds


def _value(record: Record) -> bytes | None:
    return record.value if record.state == "value" else None


def _add(value: bytes, by: int, key: str) -> bytes:
    digits = value[1:] if value[:1] == b"-" else value
    if not digits.isdigit():
        raise Conflict("the value under this key is no counter; delete it first", key=key)
    total = int(value) + by
    if not -(1 << 63) <= total < 1 << 63:
        raise InvalidInput("by", "takes the counter beyond 64 bits", example="1", key=key)
    return b"%d" % total
