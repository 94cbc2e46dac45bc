"""Loading what Redis does not have: once for all callers of all processes, early before a value ends, and without
Redis where it is away."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kmp_core.deadlines import deadline, remaining
from kmp_core.errors import BackendError
from kmp_storage.cache.flights import Flights, Landed
from kmp_storage.cache.pauses import Pauses
from kmp_storage.redis.cluster import Servers
from kmp_storage.redis.entries import NOTHING, Found, Keys, decode, encode
from kmp_storage.redis.errors import is_outage
from kmp_storage.redis.leases import Leases
from kmp_storage.settings.redis import RedisSettings

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["Load", "Loads", "Look", "Terms"]

Load = Callable[[], Awaitable[bytes | None]]

_POSTPONED_AT_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Terms:
    """What a caller of `get_or_load` asked for; times in seconds."""

    load: Load
    ttl: float
    negative_ttl: float | None


@dataclass(frozen=True, slots=True)
class Look:
    """What stands under a key: a value, or the news that there is none, or who loads it."""

    found: Found | None
    nothing: bool
    loading: bool

    @property
    def answers(self) -> bool:
        """Whether a caller need not load."""
        return self.found is not None or self.nothing

    @property
    def value(self) -> bytes | None:
        return None if self.found is None else self.found.value


class Loads:
    """The loads of one open cache."""

    def __init__(self, connections: Servers, leases: Leases, keys: Keys, settings: RedisSettings) -> None:
        self._connections = connections
        self._leases = leases
        self._keys = keys
        self._settings = settings
        self._timeout = settings.timeout.total_seconds()
        self._lease_ms = int(settings.load_lease.total_seconds() * 1000)
        self._postponed: MutableMapping[str, float] = {}
        self.flights = Flights()
        self.count = self.written = 0

    async def get_or_load(
        self, key: str, terms: Terms, looked: Callable[[Look | None], None], *, away: bool = False
    ) -> bytes | None:
        """The value, found or loaded; `looked` is told what the first look found, None where Redis is away."""
        counted = False
        while True:
            try:
                look = None if away else await self.look(key)
            except BackendError as error:
                if self._settings.outage == "error" or not is_outage(error):
                    raise
                look = None
            if not counted:
                counted = True
                looked(look)
            if look is not None and look.answers:
                due = look.found is not None and look.found.is_due and not self._waits(key)
                return await self._refresh(key, terms, look.found) if due and look.found else look.value
            if not self.flights.flying(key):
                load = partial(self._load_when_free, key, terms, away=look is None)
                return (await self.flights.lead(key, load)).value
            landed = await self.flights.join(key)
            if landed is not None:
                return landed.value

    async def look(self, key: str) -> Look:
        """What stands under a key, in one round trip."""
        value, lease = self._keys.value(key), self._keys.lease(key)
        (content, holder), left = await self._connections.ask(
            ("MGET", value, lease), ("PTTL", value), seconds=self.patience()
        )
        return Look(decode(content, left), holder == NOTHING, holder is not None and holder != NOTHING)

    def patience(self) -> float:
        """A share of what the caller has, so that there is time to load where Redis does not answer."""
        left = remaining()
        return self._timeout if left is None else min(self._timeout, left / 2)

    def _waits(self, key: str) -> bool:
        return self.flights.flying(key) or self._postponed.get(key, 0.0) > time.monotonic()

    async def _refresh(self, key: str, terms: Terms, found: Found) -> bytes | None:
        """Load a value that is about to end, if nobody does so yet; the old one serves everybody else."""
        ends = time.monotonic() + (found.left or 0.0)

        async def load() -> Landed:
            owner = _owner()
            try:
                claimed = await self._claim(key, owner)
                look = await self.look(key)
                if not claimed or (look.found is not None and not look.found.is_due):
                    if claimed:
                        self._leases.let_go(self._keys.lease(key), owner)
                    return Landed(look.value if look.answers else found.value)
            except BaseException:
                self._leases.let_go(self._keys.lease(key), owner)
                raise
            return await self._load(key, terms, owner)

        try:
            # Less than all of the caller's time, so that there is some left to fall back on the old value.
            async with deadline((remaining() or 0) * 0.9, what="early refresh", backend="redis"):
                return (await self.flights.lead(key, load)).value
        except Exception:
            now = time.monotonic()
            if now >= ends:
                raise
            # The old value still holds: the loader's trouble is not yet this caller's. The next try comes later.
            if len(self._postponed) >= _POSTPONED_AT_MOST:
                self._postponed.clear()
            self._postponed[key] = now + (ends - now) / 2
            return found.value

    async def _load_when_free(self, key: str, terms: Terms, *, away: bool) -> Landed:
        """Load, unless another process does: then wait for what it brings, or for its lease to end."""
        owner, pauses = _owner(), Pauses()
        if away:
            return await self._load_alone(terms)
        try:
            while not await self._claim(key, owner):
                look = await self.look(key)
                while look.loading and not look.answers:
                    await pauses.sleep()
                    look = await self.look(key)
                if look.answers:
                    return Landed(look.value)
            look = await self.look(key)  # it may have been stored between our first look and our claim
            if look.found is not None:
                self._leases.let_go(self._keys.lease(key), owner)
                return Landed(look.value)
        except BackendError as error:
            if self._settings.outage == "error" or not is_outage(error):
                raise
            return await self._load_alone(terms)
        except BaseException:
            self._leases.let_go(self._keys.lease(key), owner)  # it may have been ours in the very moment
            raise
        return await self._load(key, terms, owner)

    async def _claim(self, key: str, owner: bytes) -> bool:
        """Take the right to load, unless somebody has it or it is known that there is nothing."""
        lease = self._keys.lease(key)
        claim = self._connections.ask(("SET", lease, owner, "NX", "PX", self._lease_ms), seconds=self.patience())
        (taken,) = await self._leases.take(lease, owner, claim)
        return taken is not None

    async def _load_alone(self, terms: Terms) -> Landed:
        self.count += 1
        return Landed(await terms.load())

    async def _load(self, key: str, terms: Terms, owner: bytes) -> Landed:
        lease = self._keys.lease(key)
        self.count += 1
        try:
            async with self._leases.renewing(lease, owner, self._lease_ms / 1000):
                value = await terms.load()
            stored = await self._store(key, value, terms, owner)
        except BaseException:
            self._leases.let_go(lease, owner)
            raise
        return Landed(value, shared=stored)

    async def _store(self, key: str, value: bytes | None, terms: Terms, owner: bytes) -> bool:
        """Store what was loaded while the lease is still ours: a write takes it, since what was loaded may be older."""
        name, lease = self._keys.value(key), self._keys.lease(key)
        ttl = terms.ttl if value is not None else terms.negative_ttl
        tell = ("PUBLISH", self._keys.channel, key)
        try:
            if value is None and ttl is None:
                return await self._leases.if_mine(lease, owner, ("DEL", name, lease), tell)
            assert ttl is not None
            ttl *= 1 - random.uniform(0, self._settings.jitter)  # noqa: S311 - spreads ends, no secret
            milliseconds = max(1, int(ttl * 1000))
            if value is None:
                remember = ("SET", lease, NOTHING, "PX", milliseconds)
                return await self._leases.if_mine(lease, owner, ("DEL", name), remember, tell)
            share = self._settings.refresh_after
            content = encode(
                value, key, most=self._settings.max_value_bytes, due=ttl * (1 - share) if share < 1 else None
            )
            self.written += len(key.encode()) + len(content)
            keep = ("SET", name, content, "PX", milliseconds)
            return await self._leases.if_mine(lease, owner, keep, ("DEL", lease), tell)
        except BackendError as error:
            if self._settings.outage == "error" or not is_outage(error):
                raise
            self._leases.let_go(lease, owner)
            return True  # loaded, if not kept: those who waited get it


def _owner() -> bytes:
    return uuid.uuid4().hex.encode()
