"""What a bus does beside its calls: look whether other processes have written, and delete what nobody needs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Coroutine
from typing import Any

from kmp_core.deadlines import detached
from kmp_core.errors import KmpError, Unavailable
from kmp_messaging.embedded.failures import jitter
from kmp_messaging.embedded.log import trim
from kmp_messaging.embedded.store import Store
from kmp_messaging.settings import BusSettings

__all__ = ["Upkeep"]

_LOGGER = logging.getLogger(__name__)
_SHORTEST_POLL = 0.002
_HOUSEKEEPING = 60.0


class Upkeep:
    """Chores that are done again and again; one that fails is reported to `check`, and begins again a little later."""

    def __init__(self, store: Store, settings: BusSettings, written: Callable[[], None]) -> None:
        self._store = store
        self._settings = settings
        self._written = written
        self._pause = _SHORTEST_POLL
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, KmpError] = {}

    def keep_house(self) -> None:
        """From now on, delete what is older than the retention and handled by all."""
        self._begin("retention", self._trim_all)

    def watch(self) -> None:
        """From now on, tell when another process has written."""
        if self._store.path is not None:
            self._begin("poll", self._poll)

    def check(self) -> None:
        """Raise what is wrong with a chore."""
        for trouble in self._troubles.values():
            raise trouble

    async def end(self) -> None:
        """Do nothing more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _begin(self, name: str, chore: Callable[[], Coroutine[Any, Any, float]]) -> None:
        if name not in self._tasks:
            work = self._repeat(name, chore)
            self._tasks[name] = asyncio.create_task(work, name=f"kmp-bus-{name}", context=detached())

    async def _repeat(self, name: str, chore: Callable[[], Coroutine[Any, Any, float]]) -> None:
        failures = 0
        while True:
            try:
                pause = await chore()
                failures = 0
                self._troubles.pop(name, None)
            except Exception as error:
                failures += 1
                pause = jitter(failures, 0.05, 2.0)
                if name not in self._troubles:
                    kind = type(error).__qualname__
                    _LOGGER.exception("bus: %s met %s and begins anew", name, kind)
                    self._troubles[name] = Unavailable(f"{name} met {kind}", backend="sqlite")
            await asyncio.sleep(pause)

    async def _poll(self) -> float:
        # Looks often after traffic, and less and less often when there is none.
        longest = self._settings.poll_interval.total_seconds()
        if self._store.changed():
            self._pause = min(_SHORTEST_POLL, longest)
            self._written()
        else:
            self._pause = min(self._pause * 1.2, longest)
        return self._pause

    async def _trim_all(self) -> float:
        older_than = time.time() - self._settings.retention.total_seconds()
        for topic in self._store.topics:
            size = int(self._settings.retention_size) // len(topic.slots)
            for slot in topic.slots:
                with contextlib.suppress(KmpError):  # a busy or full disk: the next minute tries again
                    await self._trim(slot, older_than, size)
        return _HOUSEKEEPING

    async def _trim(self, slot: int, older_than: float, size: int) -> None:
        def work(connection: sqlite3.Connection) -> bool:
            return trim(connection, slot, older_than=older_than, size=size)

        while await self._store.write(work, timeout=self._settings.read_timeout):
            pass
