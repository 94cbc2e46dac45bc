"""Keys whose change did not reach Redis: what it still has of them is old, and goes before it is asked again."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from kmp_core.errors import DeadlineExceeded
from kmp_storage.redis.cluster import Servers
from kmp_storage.redis.connections import left_until
from kmp_storage.redis.entries import Keys

__all__ = ["Unsaid", "each"]

_MOST = 10_000
_AT_ONCE = 500
_SIDE_BY_SIDE = 100


class Unsaid:
    """What a process set or deleted while Redis was away, or without hearing whether it took effect.

    The keys are deleted before this process asks their server again, so none of its callers gets an old value back.
    They are forgotten with the process, and beyond ten thousand the eldest are.
    """

    def __init__(self, connections: Servers, keys: Keys) -> None:
        self._connections = connections
        self._keys = keys
        self._pending: dict[str, None] = {}
        self._homes: dict[object, dict[str, None]] = {}
        self._sorted_by: int | None = None
        self._turns: dict[object, asyncio.Lock] = {}

    def __bool__(self) -> bool:
        return bool(self._pending)

    def remember(self, keys: tuple[str, ...]) -> None:
        """These are to be deleted."""
        for key in keys:
            self._pending[key] = None
            self._homes.setdefault(self._home(key), {})[key] = None
        lost = len(self._pending) - _MOST
        for key in list(itertools.islice(self._pending, max(0, lost))):
            self._forget(key)
        if lost > 0:
            structlog.get_logger(__name__).warning("redis_writes_forgotten", count=lost)

    async def say(self, *wanted: str, due: float) -> None:
        """Delete them by this time, where these are kept. Raises what the connection raises, and remembers them on."""
        for home in {self._home(key) for key in wanted}:
            if not self._at(home):
                continue
            async with self._turn(home, due):  # who waited finds it done
                while keys := self._at(home):
                    await self._say(keys, due)

    async def _say(self, keys: list[str], due: float) -> None:
        parts = self._connections.together([self._keys.value(key) for key in keys])
        await in_line(parts, lambda part: self._delete([keys[position] for position in part], due))

    @asynccontextmanager
    async def _turn(self, home: object, due: float) -> AsyncIterator[None]:
        turn = self._turns.setdefault(home, asyncio.Lock())
        try:
            async with asyncio.timeout_at(due):
                await turn.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded("no time was left to ask Redis", backend="redis") from error
        try:
            yield
        finally:
            turn.release()

    def _home(self, key: str) -> object:
        return self._connections.home(self._keys.value(key))

    def _at(self, home: object) -> list[str]:
        """Some of the pending keys that are kept there: every get asks, so they are sorted only when slots moved."""
        if self._sorted_by != self._connections.moves:
            self._sorted_by, self._homes = self._connections.moves, {}
            for key in self._pending:
                self._homes.setdefault(self._home(key), {})[key] = None
        return list(itertools.islice(self._homes.get(home, ()), _AT_ONCE))

    def _forget(self, key: str) -> None:
        self._pending.pop(key, None)
        self._homes.get(self._home(key), {}).pop(key, None)

    async def _delete(self, keys: list[str], due: float) -> None:
        names = [name for key in keys for name in (self._keys.value(key), self._keys.lease(key))]
        tell = ("PUBLISH", self._keys.channel, "\n".join(keys))
        await self._connections.ask(("DEL", *names), tell, seconds=left_until(due))
        for key in keys:
            self._forget(key)


async def each(
    parts: list[list[int]], change: Callable[[list[int]], Awaitable[object]], home: Callable[[list[int]], object]
) -> None:
    """Make these changes, which no transaction can make together, side by side.

    What goes wrong ends the changes of its own home, and is raised when those of the others are made.
    """
    lines: dict[object, list[list[int]]] = {}
    for part in parts:
        lines.setdefault(home(part), []).append(part)
    outcomes = await asyncio.gather(*(in_line(line, change) for line in lines.values()), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


async def in_line(parts: list[list[int]], change: Callable[[list[int]], Awaitable[object]]) -> None:
    """Make the changes of one home, many at a time.

    Raises what went wrong first, and begins nothing more then: the next ones would cost as much time again.
    """
    for begin in range(0, len(parts), _SIDE_BY_SIDE):
        some = parts[begin : begin + _SIDE_BY_SIDE]
        for outcome in await asyncio.gather(*(change(part) for part in some), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
