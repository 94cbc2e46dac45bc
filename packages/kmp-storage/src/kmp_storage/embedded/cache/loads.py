"""Loading what a cache does not have: once for all callers of all processes, and early before a value ends."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kmp_core.deadlines import deadline, remaining
from kmp_core.errors import KmpError
from kmp_storage.cache.flights import Flights, Landed
from kmp_storage.cache.pauses import Pauses
from kmp_storage.embedded.cache import leases
from kmp_storage.embedded.cache.entries import Entries, Found
from kmp_storage.embedded.cache.file import CacheFile

__all__ = ["Load", "Loads", "Terms"]

Load = Callable[[], Awaitable[bytes | None]]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a caller of `get_or_load` asked for; times in seconds."""

    load: Load
    ttl: float
    negative_ttl: float | None


class Loads:
    """The loads of one open cache."""

    def __init__(self, file: CacheFile) -> None:
        self._file = file
        self.flights = Flights()
        self.count = 0

    def due(self, key: str, found: Found) -> bool:
        """Whether the value is about to end, and nobody in this process loads a new one yet."""
        return found.refresh is not None and self._file.clock() >= found.refresh and not self.flights.flying(key)

    async def get_or_load(self, key: str, terms: Terms, found: Found | None) -> bytes | None:
        """The value, loaded unless the first look found it, and a new one where that is due."""
        while True:
            if found is not None:
                return await self._refresh(key, terms, found) if self.due(key, found) else found.value
            if not self.flights.flying(key):
                return (await self.flights.lead(key, lambda: self._load_when_free(key, terms))).value
            landed = await self.flights.join(key)
            if landed is not None:
                return landed.value
            found = await self._file.find(key)

    async def _refresh(self, key: str, terms: Terms, found: Found) -> bytes | None:
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
                return (await self.flights.lead(key, load)).value
        except Exception:
            if found.expires is not None and self._file.clock() >= found.expires:
                raise
            # The old value still holds: the loader's trouble is not yet this caller's. The next try comes later.
            with contextlib.suppress(KmpError):
                await self._file.write(lambda connection: self._postpone(connection, key, found))
            return found.value

    async def _load_when_free(self, key: str, terms: Terms) -> Landed:
        """Load, unless another process does: then wait for what it brings, or for its lease to end."""
        owner, pauses = uuid.uuid4().hex, Pauses()
        while True:
            claimed = await self._claim_load(key, owner, unless=lambda live: True)
            if isinstance(claimed, Found):
                return Landed(claimed.value)
            if claimed:
                return await self._load(key, terms, owner)
            while not await self._file.database.read(lambda connection: self._may_claim(connection, key)):
                await pauses.sleep()

    def _may_claim(self, connection: sqlite3.Connection, key: str) -> bool:
        now = self._file.clock()
        return leases.is_free(connection, "load", key, now) or Entries.find(connection, key, now) is not None

    async def _claim_load(self, key: str, owner: str, *, unless: Callable[[Found], bool]) -> Found | bool:
        """Take the right to load: a live entry where that makes it needless, else whether we have it."""

        def claim(connection: sqlite3.Connection) -> Found | bool:
            now = self._file.clock()
            found = self._file.entries.find(connection, key, now)
            if found is not None and unless(found):
                return found
            ttl = self._file.settings.load_lease.total_seconds()
            return leases.claim(connection, "load", key, owner, now=now, ttl=ttl) is not None

        try:
            return await self._file.write(claim)
        except BaseException:
            await self._file.let_go("load", key, owner)  # it may have been committed in the very moment of the cancel
            raise

    async def _load(self, key: str, terms: Terms, owner: str) -> Landed:
        self.count += 1
        try:
            async with self._file.renewing("load", key, owner, self._file.settings.load_lease.total_seconds()):
                value = await terms.load()
            if value is not None:
                self._file.entries.check_value(value, key)
            stored = await self._file.write(lambda connection: self._store_loaded(connection, key, value, terms, owner))
        except BaseException:
            await self._file.let_go("load", key, owner)
            raise
        return Landed(value, shared=stored)

    def _store_loaded(
        self, connection: sqlite3.Connection, key: str, value: bytes | None, terms: Terms, owner: str
    ) -> bool:
        now = self._file.clock()
        if not leases.release(connection, "load", key, owner, now=now):
            return False  # written or deleted meanwhile, or somebody else loads: ours may be older
        ttl = terms.ttl if value is not None else terms.negative_ttl
        if ttl is None:
            self._file.entries.delete(connection, (key,), now)
            return True
        ttl *= 1 - random.uniform(0, self._file.settings.jitter)  # noqa: S311 - spreads ends, no secret
        share = self._file.settings.refresh_after
        refresh = now + ttl * share if share < 1 and value is not None else None
        self._file.entries.put(
            connection, key, value, now=now, expires=now + ttl, refresh=refresh, reads=self._file.reads
        )
        return True

    def _postpone(self, connection: sqlite3.Connection, key: str, found: Found) -> None:
        now = self._file.clock()
        later = now + ((found.expires or now) - now) / 2
        connection.execute("UPDATE entry SET refresh = ? WHERE key = ? AND refresh = ?", (later, key, found.refresh))
