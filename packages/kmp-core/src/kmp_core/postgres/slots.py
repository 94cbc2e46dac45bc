"""Places in a pool, given in the order in which they were asked for."""

from __future__ import annotations

import asyncio

from kmp_core.errors import LifecycleError, PoolExhausted

__all__ = ["Slots"]


class Slots:
    """A fair, bounded number of places: who asks first is served first, and nobody overtakes those who wait."""

    def __init__(self, size: int, *, backend: str) -> None:
        self.size = size
        self._backend = backend
        self._free = size
        self._closed = False
        self._waiters: dict[asyncio.Future[None], None] = {}

    @property
    def waiting(self) -> int:
        """How many tasks wait for a place."""
        return len(self._waiters)

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self.size - self._free

    async def take(self, seconds: float) -> None:
        """Wait for a place. Raises `PoolExhausted` when none became free in time; a cancelled task takes none."""
        if self._closed:
            raise LifecycleError("the pool is closed")
        if self._free and not self._waiters:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters[waiter] = None
        timer = loop.call_later(seconds, self._expire, waiter, seconds)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give()  # it was served in the very moment in which it was cancelled
            raise
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)

    def give(self) -> None:
        """Hand a place to whoever has waited longest."""
        while self._waiters:
            waiter = next(iter(self._waiters))
            del self._waiters[waiter]
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1

    def close(self) -> None:
        """Send away everybody who waits and whoever comes."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(LifecycleError("the pool is closed"))

    def _expire(self, waiter: asyncio.Future[None], seconds: float) -> None:
        if not waiter.done():
            message = (
                f"none of {self.size} connections became free within {seconds:.3g} s ({self.waiting} callers wait); "
                "raise the pool's size, or do less at once"
            )
            waiter.set_exception(PoolExhausted(message, backend=self._backend))
