"""A second server that answers questions while it is known to be near enough to the first.

How near is not asked of a clock or of the replica alone, which does not know what it has not heard of yet: the primary
tells its position in the log, and once the replica has replayed that position, it has all that the primary had when it
was asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from kmp_core.deadlines import deadline, detached
from kmp_core.errors import ConfigurationError, DeadlineExceeded, Fault, KmpError
from kmp_core.plugins import extra
from kmp_core.postgres import PostgresPool

with extra("asyncpg", install="kmp-storage[timescale]"):
    import asyncpg

__all__ = ["Replica"]

_log = logging.getLogger("kmp_storage.timescale")

_LOOKS = 4
"""So often within the bound the positions are compared, while there are questions."""

_SOON = 1.0
"""Seconds until the next look at a replica that is not asked, at most."""

_PATIENCE = 1.0
"""Whoever waited so long in vain speaks of the replica; who was in a greater hurry speaks of their hurry."""

_LOOK_SECONDS = 5.0
"""So long a look takes at most: it asks nothing that takes time."""

_PRIMARY = "SELECT (pg_current_wal_lsn() - '0/0')::bigint, (SELECT system_identifier FROM pg_control_system())"
_REPLICA = (
    "SELECT pg_is_in_recovery(), (pg_last_wal_replay_lsn() - '0/0')::bigint, "
    "(SELECT system_identifier FROM pg_control_system())"
)


class Replica:
    """Gives the replica's pool while that is at most `most_behind` behind the primary; nobody waits to be told.

    A replica that is away, too far behind, or no replica any more (promoted) is left alone until it is near again.
    """

    def __init__(self, make: Callable[[], PostgresPool], primary: PostgresPool, *, most_behind: timedelta) -> None:
        self._make = make
        self._primary = primary
        self._seconds = most_behind.total_seconds()
        self._pool: PostgresPool | None = None
        self._positions: deque[tuple[float, int]] = deque()
        self._as_of: float | None = None
        self._looked_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._told = False

    async def open(self) -> None:
        """Look for it; one that does not answer is no reason not to start.

        Raises `ConfigurationError` where it is another server's.
        """
        await self._look()

    async def close(self) -> None:
        """Let go of its connections."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._pool is not None:
            await self._pool.close()

    def near(self) -> PostgresPool | None:
        """Its connections, where it is known to be near enough."""
        now = _now()
        near = self._as_of is not None and now - self._as_of <= self._seconds
        pause = self._seconds / _LOOKS if near else min(self._seconds / _LOOKS, _SOON)
        if now - self._looked_at >= pause:
            self._look_soon()
        return self._pool if near else None

    def doubt(self, error: KmpError) -> None:
        """It failed somebody: nobody asks it before it was looked at again."""
        self._as_of = None
        if not self._told:
            _log.warning("the replica is not asked for now: %s", type(error).__name__)
        self._told = True

    def late(self, seconds: float) -> None:
        """Somebody's time was over after so many seconds. Where they were few, it is looked at before it is doubted."""
        if seconds >= _PATIENCE:
            self.doubt(DeadlineExceeded("the replica did not answer in time"))
        else:
            self._look_soon()

    def _look_soon(self) -> None:
        if self._looking is None or self._looking.done():
            # Of nobody's call, and so without its deadline.
            self._looking = asyncio.get_running_loop().create_task(self._look_again(), context=detached())

    async def _look_again(self) -> None:
        try:
            await self._look()
        except ConfigurationError as error:
            self.doubt(error)

    async def _look(self) -> None:
        self._looked_at = _now()
        # As patient as its bound, where that is short: an answer that comes later would be of no use.
        seconds = max(1.0, min(self._seconds, _LOOK_SECONDS))
        try:
            async with deadline(seconds, what="looking for the replica", fresh=True, outcome_unknown=False):
                if self._pool is None:
                    pool = self._make()
                    await pool.open()
                    self._pool = pool
                await self._compare(self._pool)
        except ConfigurationError as error:
            # The store has the same database on the primary: it was made a moment ago, and is not there yet.
            if not isinstance(error.__cause__, asyncpg.InvalidCatalogNameError):
                raise
            self.doubt(error)
        except KmpError as error:
            self.doubt(error)

    async def _compare(self, pool: PostgresPool) -> None:
        asked = _now()
        async with self._primary.acquire(reset=False) as connection:
            written, ours = tuple(await connection.fetch_row(_PRIMARY) or ())
        async with pool.acquire(reset=False) as connection:
            follows, replayed, its = tuple(await connection.fetch_row(_REPLICA) or ())
        if its != ours:
            raise ConfigurationError(
                Fault("KMP_STORAGE_TIMESCALE_REPLICA_URL", "leads to a server that is no replica of the store's own")
            )
        if not follows:
            self._positions.clear()
            self._as_of = None
            return
        self._positions.append((asked, written))
        while self._positions and self._positions[0][1] <= replayed:
            self._as_of = self._positions.popleft()[0]
            self._told = False
        while self._positions and asked - self._positions[0][0] > self._seconds:
            self._positions.popleft()


def _now() -> float:
    return asyncio.get_running_loop().time()
