"""Leases in Redis without scripts: a key with an end that its owner renews, and lets go only while it is its own.

What a script would do at once is a WATCH, a look and a transaction here: when the key changes in between, the
transaction does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from kmp_core.errors import KmpError
from kmp_storage.redis.channel import Command
from kmp_storage.redis.cluster import Servers

__all__ = ["Leases"]

T = TypeVar("T")


class Leases:
    """The leases that this process holds, renewed while they are held and let go of whatever happens."""

    def __init__(self, connections: Servers, *, timeout: float) -> None:
        self._connections = connections
        self._timeout = timeout
        self._releasing: set[asyncio.Task[bool]] = set()

    async def close(self) -> None:
        """Wait for what is being let go."""
        if self._releasing:
            await asyncio.wait(self._releasing, timeout=2)

    async def if_mine(self, name: bytes, owner: bytes, *commands: Command, seconds: float | None = None) -> bool:
        """Run the commands as one transaction while the lease is the owner's; False, and nothing done, where not."""
        seconds = self._timeout if seconds is None else seconds
        return await self._connections.if_equal(name, owner, *commands, seconds=seconds)

    async def take(self, name: bytes, owner: bytes, work: Coroutine[Any, Any, T]) -> T:
        """Await the exchange that may take the lease, to its end even where the caller is cancelled, and let go then.

        A release that was sent at once could overtake it on another connection, and the lease would be nobody's.
        """
        task = asyncio.create_task(work, name="kmp-take-lease", context=contextvars.Context())
        task.add_done_callback(_retrieved)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._releasing_task(name, owner, after=task)
            raise

    @asynccontextmanager
    async def renewing(self, name: bytes, owner: bytes, ttl: float) -> AsyncIterator[None]:
        """Keep a lease from running out while the block runs."""
        milliseconds = int(ttl * 1000)

        async def renew() -> None:
            while True:
                await asyncio.sleep(ttl / 3)
                # One failed renewal is not the end: there are two more before the lease runs out.
                with contextlib.suppress(KmpError):
                    await self.if_mine(name, owner, ("PEXPIRE", name, milliseconds), seconds=ttl / 3)

        task = asyncio.create_task(renew(), name="kmp-renew-lease", context=contextvars.Context())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def release(self, name: bytes, owner: bytes) -> bool:
        """Let go, even where the caller is being cancelled or its time is over; False where it was not its own."""
        return await asyncio.shield(self._releasing_task(name, owner))

    def let_go(self, name: bytes, owner: bytes) -> None:
        """Release on the way out of a failure, without waiting: what cannot be released runs out by itself."""
        self._releasing_task(name, owner)

    def _releasing_task(
        self, name: bytes, owner: bytes, *, after: asyncio.Task[Any] | None = None
    ) -> asyncio.Task[bool]:
        async def release() -> bool:
            if after is not None:
                await asyncio.wait((after,))
            return await self.if_mine(name, owner, ("DEL", name))

        # An empty context: the caller's deadline, which may be over, must not stop this.
        task = asyncio.create_task(release(), name="kmp-release-lease", context=contextvars.Context())
        self._releasing.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[bool]) -> None:
        self._releasing.discard(task)
        _retrieved(task)


def _retrieved(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waited for it may have been cancelled
