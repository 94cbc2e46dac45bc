"""Intake of one group in one topic: fetch, hand out, commit what was handled, and share the slots with other members.

One transaction commits what was handled and fetches what comes next. A member that was stopped beyond its lease
finds its slots gone when it goes on: it hands out nothing any more, and its commits are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from itertools import repeat

from kmp_core.deadlines import detached
from kmp_core.errors import InvalidInput, KmpError, LifecycleError, Unavailable
from kmp_core.telemetry import Telemetry
from kmp_messaging.embedded import groups
from kmp_messaging.embedded.batches import BatchWorkers
from kmp_messaging.embedded.failures import Failures, jitter
from kmp_messaging.embedded.groups import Division, Mark, Row
from kmp_messaging.embedded.items import Route
from kmp_messaging.embedded.log import Topic
from kmp_messaging.embedded.partition import Partition
from kmp_messaging.embedded.process import alive, this_process
from kmp_messaging.embedded.schema import LAST, SHIFT
from kmp_messaging.embedded.store import Store
from kmp_messaging.embedded.workers import Workers
from kmp_messaging.envelope import Decoder
from kmp_messaging.identifiers import new_id
from kmp_messaging.models import declared_events
from kmp_messaging.settings import BusSettings

__all__ = ["Consumer"]

_LOGGER = logging.getLogger(__name__)
_BEATS = 3
_LAST_COMMIT = 1.0


class Consumer:
    """A member of a group. `trouble` is what went wrong last, and None when the last try was fine."""

    def __init__(self, store: Store, settings: BusSettings, telemetry: Telemetry, topic: str, group: str) -> None:
        self.topic_name = topic
        self.group_name = group
        self.routes: list[Route] = []
        self.trouble: KmpError | None = None
        self.topic: Topic | None = None
        self._store = store
        self._settings = settings
        self._telemetry = telemetry
        self._member = new_id()
        self._lease = settings.lease.total_seconds()
        self._commit_interval = settings.commit_interval.total_seconds()
        self._group = 0
        self._epoch = -1
        self._next_beat = 0.0
        self._committed_at = 0.0
        self._behind = True
        self._turn = 0
        self._elsewhere = False
        self._bytes = 0
        self._partitions: dict[int, Partition] = {}
        self._leaving: dict[int, Partition] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._workers: Workers | None = None
        self._task: asyncio.Task[None] | None = None

    # -- life

    @property
    def running(self) -> bool:
        """Whether intake has begun and not ended."""
        return self._task is not None

    def start(self) -> None:
        """Begin intake."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"kmp-bus-{self.group_name}", context=detached())

    def add(self, route: Route) -> None:
        """Handle a class of events too. One topic and group has one way of handling: single events, or one batch."""
        if any(known.event is route.event for known in self.routes):
            problem = f"handles {route.event.__name__} here already"
            raise InvalidInput(
                f"group {self.group_name!r}", problem, example="another group, which gets every event too"
            )
        if self.routes and (route.size is not None or self.routes[0].size is not None):
            problem = f"handles the topic {self.topic_name} here already, and batches are handled alone"
            raise InvalidInput(
                f"group {self.group_name!r}", problem, example="another group, which gets every event too"
            )
        self.routes.append(route)
        self.rerouted()

    def rerouted(self) -> None:
        """The routes have changed."""
        if self._workers is not None:
            self._set_routes(self._workers)

    def published(self) -> None:
        """This process has published to the topic."""
        self._behind = True
        self._wake.set()

    def look(self) -> None:
        """Somebody has written something."""
        self._elsewhere = True
        self._wake.set()

    async def drain(self, seconds: float) -> None:
        """Stop intake, let handlers end for so long, commit, and let the slots go."""
        ends = time.monotonic() + seconds
        self._stopping = True
        self._wake.set()
        if self._workers is not None:
            # Some of the time is for the commit.
            await self._workers.stop(max(0.0, seconds - min(1.0, seconds / 4)))
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=max(0.0, ends - time.monotonic()))
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._group:
            marks = [partition.mark for partition in (*self._partitions.values(), *self._leaving.values())]
            # Without this commit all that was handled would be handled again, so it always gets a moment.
            left = max(_LAST_COMMIT, ends - time.monotonic())
            await self._store.write(lambda c: groups.leave(c, self._group, self._member, marks), timeout=left)
            for partition in self._partitions.values():
                partition.discard()
            self._partitions, self._leaving, self._group = {}, {}, 0
        self._workers, self._bytes, self._next_beat, self._stopping = None, 0, 0.0, False

    # -- the loop

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                await self._step()
                failures, self.trouble = 0, None
            except KmpError as error:
                if isinstance(error, LifecycleError):
                    return  # the bus was closed
                failures += 1
                self._report(error)
                await asyncio.sleep(jitter(failures, 0.05, 2.0))

    def _report(self, error: KmpError) -> None:
        if self.trouble is None or type(self.trouble) is not type(error):
            _LOGGER.warning("bus: group %s of topic %s: %s", self.group_name, self.topic_name, error)
        self.trouble = error

    async def _step(self) -> None:
        workers = self._workers or await self._join()
        if workers.broken is not None:
            raise Unavailable(f"a worker ended: {type(workers.broken).__qualname__}", backend="sqlite")
        if self._elsewhere:
            await self._look()
        now = time.monotonic()
        if now >= self._next_beat or now >= workers.lease_ends:
            await self._divide(workers)
        self._wake.clear()
        if self._leaving:
            await self._release()
        for partition in self._partitions.values():
            self._bytes -= partition.freed()
        if self._may_fetch(workers) or self._commit_due(now):
            await self._cycle(workers)
            return
        await self._pause(now)

    async def _join(self) -> Workers:
        self.topic = topic = await self._store.topic(self.topic_name)
        self._group = await self._store.write(lambda c: groups.ensure_group(c, self.group_name, topic))
        decoder = Decoder(self.topic_name)
        failures = Failures(
            self._store,
            self._settings,
            group=self._group,
            names=(self.topic_name, self.group_name),
            report=self._report,
        )
        low = self._settings.in_flight_events // 4
        self._decoder = decoder
        kind = Workers if self.routes[0].size is None else BatchWorkers
        self._workers = workers = kind(decoder, failures, hungry=self._wake.set, low=low)
        workers.handler_timeout = self._settings.handler_timeout.total_seconds()
        self._set_routes(workers)
        return workers

    def _set_routes(self, workers: Workers) -> None:
        for cls in declared_events(self.topic_name):
            if any(issubclass(cls, route.event) for route in self.routes):
                self._decoder.add(cls)
        workers.set_routes(self.routes)
        batches = any(route.size is not None for route in self.routes)
        workers.start(1 if batches else max((route.concurrency for route in self.routes), default=1))

    async def _pause(self, now: float) -> None:
        ends = self._next_beat
        if any(partition.done > partition.committed for partition in self._partitions.values()):
            ends = min(ends, self._committed_at + self._commit_interval)
        if self._workers is not None:
            self._workers.cancel_overdue()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(ends - now, self._settings.handler_timeout.total_seconds() / 4))):
                await self._wake.wait()

    # -- sharing

    async def _look(self) -> None:
        self._elsewhere = False
        assert self.topic is not None
        number = self.topic.id

        def work(connection: sqlite3.Connection) -> tuple[int, dict[int, int]]:
            epoch = connection.execute("SELECT epoch FROM consumer_group WHERE id = ?", (self._group,)).fetchone()
            return epoch[0], dict(connection.execute("SELECT id, head FROM slot WHERE topic = ?", (number,)).fetchall())

        epoch, heads = await self._store.read(work)
        if epoch != self._epoch:
            self._next_beat = 0.0
        self._behind = self._behind or any(heads[p.slot] > p.fetched for p in self._partitions.values())

    async def _divide(self, workers: Workers) -> None:
        now = time.monotonic()
        active = {slot for slot, partition in self._partitions.items() if partition.active} | set(self._leaving)

        def work(connection: sqlite3.Connection) -> Division:
            return groups.divide(
                connection,
                self._group,
                self._member,
                active=active,
                process=this_process(),
                alive=alive,
                now=now,
                lease=self._lease,
            )

        division = await self._store.write(work)
        for slot, partition in tuple(self._partitions.items()):
            if not partition.active or division.held.get(slot) != partition.generation:
                self._lose(slot)
            elif slot in division.surplus:
                self._leaving[slot] = self._partitions.pop(slot)
                self._bytes -= partition.discard()
        for claim in division.claims:
            self._partitions[claim.slot] = Partition(claim)
        self._behind = self._behind or bool(division.claims)
        self._epoch = division.epoch
        self._next_beat = now + self._lease / _BEATS
        # The lease is over for us before it is for others.
        workers.lease_ends = now + self._lease * 0.9
        workers.wake()

    def _lose(self, slot: int) -> None:
        partition = self._partitions.pop(slot, None)
        if partition is not None:
            self._bytes -= partition.discard()
            self._next_beat = 0.0

    async def _release(self) -> None:
        free = [partition for partition in self._leaving.values() if not partition.running]
        if not free:
            return
        marks = [partition.mark for partition in free]
        await self._store.write(lambda c: groups.release(c, self._group, self._member, marks))
        for partition in free:
            del self._leaving[partition.slot]
        self._next_beat = 0.0

    # -- fetch and commit

    def _may_fetch(self, workers: Workers) -> bool:
        return (
            self._behind
            and len(workers.ready) <= self._settings.in_flight_events // 4
            and self._room() > 0
            and self._bytes < self._settings.in_flight_size
        )

    def _room(self) -> int:
        return self._settings.in_flight_events - sum(partition.held for partition in self._partitions.values())

    def _commit_due(self, now: float) -> bool:
        if now < self._committed_at + self._commit_interval:
            return False
        return any(partition.done > partition.committed for partition in self._partitions.values())

    def _wanted(self) -> list[tuple[int, int]]:
        # One key that is being retried holds up its slot, so no slot may fill all of the room.
        most = self._settings.in_flight_events // 2
        slots = [(p.slot, p.fetched) for p in self._partitions.values() if p.active and p.held < most]
        self._turn += 1
        first = self._turn % len(slots) if slots else 0
        return slots[first:] + slots[:first]

    async def _cycle(self, workers: Workers) -> None:
        marks = {slot: p.mark for slot, p in self._partitions.items() if p.active}
        handled = {slot for slot, p in self._partitions.items() if p.active and p.done > p.committed}
        wanted = self._wanted() if self._may_fetch(workers) else []
        attempted = any(self._partitions[slot].attempts for slot in handled)
        room, size = self._room(), self._settings.in_flight_size - self._bytes

        def work(connection: sqlite3.Connection) -> tuple[list[Row], bool, set[int]]:
            rows, more = groups.fetch(connection, wanted, events=room, size=size) if wanted else ([], False)
            dispatched = {row[0] >> SHIFT: row[0] & LAST for row in rows}
            changed = [marks[slot] for slot in handled | dispatched.keys()]
            lost = groups.advance(connection, self._group, changed, dispatched, attempted) if changed else set()
            return rows, more, lost

        if wanted:
            self._behind = False  # before the look: whoever publishes meanwhile sets it again
        try:
            with self._telemetry.call("receive") if wanted else contextlib.nullcontext():
                rows, more, lost = await self._store.write(work)
        except BaseException:
            self._behind = True
            raise
        self._committed(handled, marks)
        for slot in lost:
            self._lose(slot)
        self._behind = self._behind or more
        self._hand_out(workers, rows)

    def _committed(self, handled: set[int], marks: dict[int, Mark]) -> None:
        self._committed_at = time.monotonic()
        for slot in handled & self._partitions.keys():
            partition = self._partitions[slot]
            partition.committed = marks[slot][2]
            if partition.attempts:
                for position in [p for p in partition.attempts if p <= partition.committed]:
                    del partition.attempts[position]

    def _hand_out(self, workers: Workers, rows: list[Row]) -> None:
        for number, count, _, content in rows:
            partition, last = self._partitions.get(number >> SHIFT), number & LAST
            if partition is None:
                continue
            contents = [content] if count == 1 else content.split(b"\n")
            if len(contents) != count:
                # Damaged: each of its positions becomes a dead letter, the first with the bytes as they are.
                contents = [content, *repeat(b"", count - 1)]
            first = last - count + 1
            skipped = max(0, partition.fetched + 1 - first)
            positions = range(first + skipped, last + 1)
            workers.ready.extend(zip(repeat(partition), positions, contents[skipped:], strict=False))
            partition.took(last, len(content))
            self._bytes += len(content)
        if rows:
            workers.wake()
