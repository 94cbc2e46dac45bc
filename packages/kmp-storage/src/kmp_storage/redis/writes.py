"""Keys whose change did not reach Redis: what it still has of them is old, and goes before it is asked again."""

from __future__ import annotations

import structlog

from kmp_storage.redis.connections import Connections
from kmp_storage.redis.entries import Keys

__all__ = ["Unsaid"]

_MOST = 10_000
_AT_ONCE = 500


class Unsaid:
    """What a process set or deleted while Redis was away, or without hearing whether it took effect.

    The keys are deleted before the next call of this process, so none of its callers gets an old value back. They are
    forgotten with the process, and beyond ten thousand the eldest are.
    """

    def __init__(self, connections: Connections, keys: Keys, *, timeout: float) -> None:
        self._connections = connections
        self._keys = keys
        self._timeout = timeout
        self._pending: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._pending)

    def remember(self, keys: tuple[str, ...]) -> None:
        """These are to be deleted."""
        self._pending.update(dict.fromkeys(keys))
        lost = len(self._pending) - _MOST
        for key in list(self._pending)[: max(0, lost)]:
            del self._pending[key]
        if lost > 0:
            structlog.get_logger(__name__).warning("redis_writes_forgotten", count=lost)

    async def say(self) -> None:
        """Delete them now. Raises what the connection raises, and then remembers them on."""
        while self._pending:
            keys = list(self._pending)[:_AT_ONCE]
            names = [name for key in keys for name in (self._keys.value(key), self._keys.lease(key))]
            tell = ("PUBLISH", self._keys.channel, "\n".join(keys))
            await self._connections.ask(("DEL", *names), tell, seconds=self._timeout)
            for key in keys:
                self._pending.pop(key, None)
