"""One way to run a transaction, whether the bus lives in a file or in memory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kmp_core.deadlines import Timeout, within
from kmp_core.errors import DeadlineExceeded
from kmp_core.project import Project
from kmp_core.sqlite import Database, Synchronous
from kmp_messaging.embedded.log import Topic, ensure_topic
from kmp_messaging.embedded.schema import MIGRATIONS

__all__ = ["Store"]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


class Store:
    """The database of a bus, with the topics that were met. A file is worked on in threads, memory at once."""

    def __init__(self, path: Path | None, *, project: Project, synchronous: Synchronous, partitions: int) -> None:
        self._database = Database(
            path, project=project, capability="messaging.bus", migrations=MIGRATIONS, synchronous=synchronous
        )
        self._partitions = partitions
        self._topics: dict[str, Topic] = {}
        self._watch: sqlite3.Connection | None = None
        self._version = 0
        self.path = path

    async def open(self) -> None:
        await self._database.open()
        if self.path is not None:
            self._watch = sqlite3.connect(self.path, timeout=0, isolation_level=None)
            self.changed()

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        await self._database.close()

    async def write(self, work: Work[T], *, timeout: Timeout = None) -> T:
        """Run `work` in one transaction. On `DeadlineExceeded` nothing was written.

        It may be lost at a power cut, together with all that was written later: then events are handled again.
        """
        if self.path is not None:
            return await self._database.write(work, timeout=timeout, may_be_lost_at_power_cut=True)
        return await self._at_once(work, timeout)

    async def keep(self, work: Work[T], *, timeout: Timeout = None) -> T:
        """Run `work` in one transaction that is on the disk when this returns, as is all that was written before."""
        if self.path is not None:
            return await self._database.write(work, timeout=timeout)
        return await self._at_once(work, timeout)

    async def read(self, work: Work[T], *, timeout: Timeout = None) -> T:
        """Run `work` on one snapshot."""
        if self.path is not None:
            return await self._database.read(work, timeout=timeout)
        return await self._at_once(work, timeout)

    async def _at_once(self, work: Work[T], timeout: Timeout) -> T:
        seconds = within(timeout)
        if seconds is not None and seconds <= 0:
            raise DeadlineExceeded("no time is left for the call; nothing was done", backend="sqlite")
        result = self._database.run(work)
        await asyncio.sleep(0)  # a caller in a loop must not keep the others waiting
        return result

    async def topic(self, name: str, *, timeout: Timeout = None) -> Topic:
        """The topic of that name, created when it is first met."""
        topic = self._topics.get(name)
        if topic is None:
            topic = await self.write(lambda c: ensure_topic(c, name, self._partitions), timeout=timeout)
            topic = self._topics.setdefault(name, topic)
        return topic

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The topics that this process has met."""
        return tuple(self._topics.values())

    def changed(self) -> bool:
        """Whether anybody has written since this was last asked: a look at shared memory that takes microseconds."""
        if self._watch is None:
            return False
        try:
            version: int = self._watch.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.OperationalError:
            return True  # somebody holds the file for himself for a moment
        before, self._version = self._version, version
        return version != before
