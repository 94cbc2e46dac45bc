"""Locks over all processes, for efficiency: one SET NX with an end, a token that grows, renewal while held.

Redis answers before it has written to disk or to a replica, so a lock may be lost with its server, and two may hold it
then. What must not happen twice is guarded by the token, at the store that the work writes to.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kmp_core.deadlines import deadline
from kmp_core.errors import Conflict
from kmp_core.telemetry import Telemetry
from kmp_storage.cache.pauses import Pauses
from kmp_storage.redis.cluster import Servers
from kmp_storage.redis.entries import Keys
from kmp_storage.redis.leases import Leases
from kmp_storage.values import Lease

__all__ = ["Locks"]

_TOKEN_SECONDS = 7 * 86_400
"""How long a token is remembered after the last holder. A later one begins at the clock, which is beyond it."""


class Locks:
    """The locks of one open cache."""

    def __init__(self, connections: Servers, leases: Leases, keys: Keys, *, timeout: float) -> None:
        self._connections = connections
        self._leases = leases
        self._keys = keys
        self._timeout = timeout

    @asynccontextmanager
    async def hold(self, name: str, ttl: float, timeout: float | None, telemetry: Telemetry) -> AsyncIterator[Lease]:
        """Wait for the lock, hold it and renew it, and let go of it."""
        owner, key = uuid.uuid4().hex.encode(), self._keys.lock(name)
        with telemetry.call("lock"):
            try:
                async with deadline(timeout, what=f"waiting for the lock {name!r}", backend="redis"):
                    token = await self._acquire(name, owner, ttl)
            except BaseException:
                self._leases.let_go(key, owner)
                raise
        try:
            async with self._leases.renewing(key, owner, ttl):
                yield Lease(name, token)
        except BaseException:
            self._leases.let_go(key, owner)
            raise
        if not await self._leases.release(key, owner) and await self._last_token(name) != token:
            raise Conflict(f"the lock {name!r} ran out and went to another holder before it was released", key=name)

    async def _acquire(self, name: str, owner: bytes, ttl: float) -> int:
        lock, token, pauses = self._keys.lock(name), self._keys.token(name), Pauses()
        while True:
            # The token in the same transaction: a holder that stood still between the two would get one that is
            # greater than its successor's. Its first value is the time in microseconds, so that tokens go on growing
            # where Redis lost the last one.
            claim = self._connections.transact(
                ("SET", token, int(time.time() * 1_000_000), "NX"),
                ("SET", lock, owner, "NX", "PX", int(ttl * 1000)),
                ("INCR", token),
                ("EXPIRE", token, _TOKEN_SECONDS),
                seconds=self._timeout,
                idempotent=False,
            )
            _, taken, number, _ = await self._leases.take(lock, owner, claim)
            if taken is not None:
                return int(number)
            await pauses.sleep()
            while await self._is_held(lock):
                await pauses.sleep()

    async def _is_held(self, lock: bytes) -> bool:
        (count,) = await self._connections.ask(("EXISTS", lock), seconds=self._timeout)
        return bool(count)

    async def _last_token(self, name: str) -> int | None:
        # Nobody came after us where the last token is still our own: the lock only ran out.
        (token,) = await self._connections.ask(("GET", self._keys.token(name)), seconds=self._timeout)
        return None if token is None else int(token)
