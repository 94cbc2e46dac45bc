"""Looking entries up: what one tick of the event loop asks for together is one job in one thread.

A way through a thread costs ten times what SQLite needs to find a row. A look-up that comes alone goes at once; those
that come while one is under way wait for the end of the tick and share a job. In memory, where nothing can block,
they are answered on the spot.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import Future
from dataclasses import dataclass
from typing import Any

from kmp_core.errors import DeadlineExceeded
from kmp_core.sqlite import Database
from kmp_storage.embedded.cache.entries import Entries, Found

__all__ = ["Lookups"]


@dataclass(frozen=True, slots=True)
class _Lookup:
    key: str
    now: float
    seconds: float | None
    answer: Future[Found | None]


class Lookups:
    """The look-ups of one open cache."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._under_way = 0
        self._waiting: list[_Lookup] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def find(self, key: str, now: float, seconds: float | None) -> Found | None:
        """The entry that is live at `now`. Raises `DeadlineExceeded` after `seconds`, whatever others wait for."""
        if self._database.idle and (seconds is None or seconds > 0):
            return self._database.run(lambda connection: Entries.find(connection, key, now))
        if self._under_way:
            return await self._together(key, now, seconds)
        self._under_way += 1
        try:
            return await self._database.read(lambda connection: Entries.find(connection, key, now), timeout=seconds)
        finally:
            self._under_way -= 1

    async def _together(self, key: str, now: float, seconds: float | None) -> Found | None:
        loop = asyncio.get_running_loop()
        answer: Future[Found | None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append(_Lookup(key, now, seconds, answer))
        timer = None if seconds is None else loop.call_later(seconds, _expire, answer, seconds)
        try:
            return await answer
        finally:
            if timer is not None:
                timer.cancel()

    def _send(self) -> None:
        lookups, self._waiting = self._waiting, []
        # An empty context: the deadline of one caller is not that of the others.
        task = asyncio.get_running_loop().create_task(self._read(lookups), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, lookups: list[_Lookup]) -> None:
        limits = [lookup.seconds for lookup in lookups if lookup.seconds is not None]
        seconds = max(limits) if len(limits) == len(lookups) else None
        self._under_way += 1
        try:
            found = await self._database.read(
                lambda connection: [Entries.find(connection, lookup.key, lookup.now) for lookup in lookups],
                timeout=seconds,
            )
        except asyncio.CancelledError:
            for lookup in lookups:
                lookup.answer.cancel()
            raise
        except Exception as error:
            for lookup in lookups:
                if not lookup.answer.done():
                    lookup.answer.set_exception(error)
        else:
            for lookup, entry in zip(lookups, found, strict=True):
                if not lookup.answer.done():
                    lookup.answer.set_result(entry)
        finally:
            self._under_way -= 1


def _expire(answer: Future[Found | None], seconds: float) -> None:
    if not answer.done():
        answer.set_exception(DeadlineExceeded(f"SQLite did not finish within {seconds:.3g} s", backend="sqlite"))
