"""Intake of one group in one topic: it takes events in until it is told to stop, and never ends in silence.

What the backend refuses is tried again. Where something happens that nobody foresaw, the member lets everything go,
says so in the log and to `check`, and joins anew a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Container

from kmp_core.deadlines import detached
from kmp_core.errors import InvalidInput, KmpError, Unavailable
from kmp_core.telemetry import Telemetry
from kmp_messaging.embedded.batches import BatchWorkers
from kmp_messaging.embedded.failures import Failures, jitter
from kmp_messaging.embedded.fetching import Fetching
from kmp_messaging.embedded.items import Route
from kmp_messaging.embedded.measures import ProcessingTime
from kmp_messaging.embedded.membership import Membership
from kmp_messaging.embedded.store import Store
from kmp_messaging.embedded.workers import Workers
from kmp_messaging.envelope import Decoder
from kmp_messaging.models import declared_events
from kmp_messaging.settings import BusSettings

__all__ = ["Consumer"]

_LOGGER = logging.getLogger(__name__)
_LAST_COMMIT = 1.0


class _WorkerEnded(Exception):
    """A worker met what it does not expect of handlers, its cause."""


class Consumer:
    """A member of a group at work. `trouble` is what went wrong last, and None when the last try was fine."""

    def __init__(self, store: Store, settings: BusSettings, telemetry: Telemetry, topic: str, group: str) -> None:
        self.topic_name = topic
        self.group_name = group
        self.routes: list[Route] = []
        self.trouble: KmpError | None = None
        self._store = store
        self._settings = settings
        self._telemetry = telemetry
        self._elsewhere = False
        self._wake = asyncio.Event()
        self._stopping = False
        self._membership: Membership | None = None
        self._workers: Workers | None = None
        self._fetching: Fetching | None = None
        self._decoder = Decoder(topic)
        self._task: asyncio.Task[None] | None = None

    # -- life

    @property
    def running(self) -> bool:
        """Whether intake has begun and not ended."""
        return self._task is not None

    def check(self) -> None:
        """Raise the error that says why nothing is taken in, where that is so."""
        if self.trouble is not None:
            raise self.trouble
        if self._task is not None and self._task.done() and not self._stopping:
            raise Unavailable(f"the intake of group {self.group_name} was cancelled", backend="sqlite")

    def start(self) -> None:
        """Begin intake."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"kmp-bus-{self.group_name}", context=detached())

    def add(self, route: Route) -> None:
        """Handle a class of events too. One topic and group has one way of handling: single events, or one batch."""
        problem = None
        if any(known.event is route.event for known in self.routes):
            problem = f"handles {route.event.__name__} here already"
        elif self.routes and (route.size is not None or self.routes[0].size is not None):
            problem = f"handles the topic {self.topic_name} here already, and batches are handled alone"
        if problem is not None:
            example = "another group, which gets every event too"
            raise InvalidInput(f"group {self.group_name!r}", problem, example=example)
        self.routes.append(route)
        self.rerouted()

    def rerouted(self) -> None:
        """The routes have changed."""
        if self._workers is not None:
            self._set_routes(self._workers)

    def published(self, topics: Container[int]) -> None:
        """This process has published to the topics of these numbers."""
        if self._fetching is not None and self._membership is not None and self._membership.topic.id in topics:
            self._fetching.behind = True
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
        try:
            if self._workers is not None:
                # Some of the time is for the commit.
                await self._workers.stop(max(0.0, seconds - min(1.0, seconds / 4)))
            if self._task is not None:
                await asyncio.wait((self._task,), timeout=max(0.0, ends - time.monotonic()))
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
                self._task = None
            # Without this commit all that was handled would be handled again, so it always gets a moment.
            await self._leave(max(_LAST_COMMIT, ends - time.monotonic()))
        finally:
            self._stopping = False

    async def _leave(self, seconds: float) -> None:
        workers, self._workers, self._fetching = self._workers, None, None
        membership, self._membership = self._membership, None
        if workers is not None:
            await workers.stop(seconds)
        if membership is not None:
            await membership.leave(seconds)

    # -- the loop

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                await self._step()
                failures, self.trouble = 0, None
            except Exception as error:
                failures += 1
                if isinstance(error, KmpError):
                    self._report(error)
                else:
                    await self._begin_anew(error)
                await asyncio.sleep(jitter(failures, 0.05, 2.0))

    def _report(self, error: KmpError) -> None:
        if self.trouble is None or type(self.trouble) is not type(error):
            _LOGGER.warning("bus: group %s of topic %s: %s", self.group_name, self.topic_name, error)
        self.trouble = error

    async def _begin_anew(self, error: Exception) -> None:
        """Nobody foresaw this: of what is in memory, only how far handlers came is to be trusted."""
        cause = error.__cause__ if isinstance(error, _WorkerEnded) and error.__cause__ is not None else error
        said = f"the intake of group {self.group_name} met {type(cause).__qualname__} and begins anew"
        _LOGGER.error("bus: topic %s: %s", self.topic_name, said, exc_info=cause)
        self.trouble = Unavailable(said, backend="sqlite")
        self.trouble.__cause__ = cause
        try:
            await self._leave(self._settings.drain_timeout.total_seconds())
        except Exception as second:
            # What could not be let go is free when the lease ends.
            _LOGGER.warning("bus: group %s could not leave: %s", self.group_name, type(second).__qualname__)

    async def _step(self) -> None:
        if self._membership is None or self._workers is None or self._fetching is None:
            membership, workers, fetching = await self._join()
        else:
            membership, workers, fetching = self._membership, self._workers, self._fetching
        if workers.broken is not None:
            raise _WorkerEnded from workers.broken
        if self._elsewhere:
            self._elsewhere = False
            fetching.behind = await membership.look() or fetching.behind
        now = time.monotonic()
        if membership.renewal_due(now):
            fetching.behind = await membership.renew() or fetching.behind
            workers.lease_ends = membership.lease_ends
            workers.wake()
        self._wake.clear()
        await membership.release()
        if fetching.due(now):
            await fetching.run()
        else:
            await self._pause(now, membership, workers, fetching)

    async def _join(self) -> tuple[Membership, Workers, Fetching]:
        lease = self._settings.lease.total_seconds()
        self._membership = membership = await Membership.join(self._store, self.topic_name, self.group_name, lease)
        names = (self.topic_name, self.group_name)
        failures = Failures(self._store, self._settings, group=membership.group, names=names, report=self._report)
        kind = Workers if self.routes[0].size is None else BatchWorkers
        low = self._settings.in_flight_events // 4
        measure = ProcessingTime(self._telemetry, self.topic_name, self.group_name)
        self._workers = workers = kind(self._decoder, failures, measure, hungry=self._wake.set, low=low)
        workers.handler_timeout = self._settings.handler_timeout.total_seconds()
        self._set_routes(workers)
        self._fetching = Fetching(self._store, self._settings, self._telemetry, membership, workers)
        return membership, workers, self._fetching

    def _set_routes(self, workers: Workers) -> None:
        for cls in declared_events(self.topic_name):
            if any(issubclass(cls, route.event) for route in self.routes):
                self._decoder.add(cls)
        workers.set_routes(self.routes)
        batches = any(route.size is not None for route in self.routes)
        workers.start(1 if batches else max((route.concurrency for route in self.routes), default=1))

    async def _pause(self, now: float, membership: Membership, workers: Workers, fetching: Fetching) -> None:
        ends = min(membership.next_beat, now + self._settings.handler_timeout.total_seconds() / 4)
        commit = fetching.next_commit()
        if commit is not None:
            ends = min(ends, commit)
        workers.cancel_overdue()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, ends - now)):
                await self._wake.wait()
