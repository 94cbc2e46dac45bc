"""The embedded cache's file, and the leases in it that this process holds: renewed, and released whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from kmp_core.deadlines import Timeout, within
from kmp_core.errors import KmpError
from kmp_core.sqlite import Database
from kmp_storage.embedded.cache import leases
from kmp_storage.embedded.cache.entries import Entries, Found
from kmp_storage.embedded.cache.lookups import Lookups
from kmp_storage.embedded.cache.settings import CacheSettings

__all__ = ["CacheFile"]

T = TypeVar("T")

_TOUCHED_AT_MOST = 4096


class CacheFile:
    """Rows and leases of one open cache, in transactions of its database."""

    def __init__(self, database: Database, settings: CacheSettings, clock: Callable[[], float]) -> None:
        self.database = database
        self.settings = settings
        self.entries = Entries(settings.max_bytes, settings.max_value_bytes)
        self.clock = clock
        self._lookups = Lookups(database)
        self._touched: dict[str, float] = {}
        self._cleaning: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for what is being released, then close the file."""
        if self._cleaning:
            await asyncio.wait(self._cleaning, timeout=2)
        await self.database.close()

    async def find(self, key: str, timeout: Timeout = None) -> Found | None:
        """The live entry, noted as read."""
        now = self.clock()
        seconds = within(timeout, self.settings.timeout)
        found = await self._lookups.find(key, now, seconds)
        if found is not None:
            touched = self._touched  # the writer's thread may put a new one in its place
            touched.pop(key, None)  # to the end: the first is the one that was read longest ago
            touched[key] = now
            if len(touched) > _TOUCHED_AT_MOST:
                del touched[next(iter(touched))]
        return found

    async def write(self, work: Callable[[sqlite3.Connection], T], timeout: Timeout = None) -> T:
        """Run one transaction, in the default time where none is given."""
        return await self.database.write(work, timeout=within(timeout, self.settings.timeout))

    def reads(self) -> list[tuple[str, float]]:
        """What was read since this was last asked."""
        reads, self._touched = self._touched, {}
        return list(reads.items())

    @asynccontextmanager
    async def renewing(self, kind: leases.Kind, name: str, owner: str, ttl: float) -> AsyncIterator[None]:
        """Keep a lease from running out while the block runs."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(ttl / 3)
                # One failed renewal is not the end: there are two more before the lease runs out.
                with contextlib.suppress(KmpError):
                    await self.write(
                        lambda connection: leases.renew(connection, kind, name, owner, now=self.clock()), ttl / 3
                    )

        task = asyncio.create_task(renew(), name=f"kmp-renew-{kind}", context=contextvars.Context())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def let_go(self, kind: leases.Kind, name: str, owner: str) -> None:
        """Release on the way out of a failure; what cannot be released runs out by itself."""
        with contextlib.suppress(KmpError):
            await self.release(kind, name, owner)

    async def release(self, kind: leases.Kind, name: str, owner: str) -> bool:
        """Release even where the caller is being cancelled or its time is over."""

        def release(connection: sqlite3.Connection) -> bool:
            return leases.release(connection, kind, name, owner, now=self.clock())

        work = self.database.write(release, timeout=self.settings.timeout)
        # An empty context: the caller's deadline, which may be over, must not stop this.
        task = asyncio.create_task(work, context=contextvars.Context())
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)
        return await asyncio.shield(task)
