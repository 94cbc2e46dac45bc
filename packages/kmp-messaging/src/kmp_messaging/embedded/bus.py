"""An event bus that needs no server: one SQLite file that all processes of a project on this machine share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Container, Iterable
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from kmp_core.context import Context
from kmp_core.deadlines import Timeout, within
from kmp_core.errors import KmpError
from kmp_core.project import Project, ServiceName
from kmp_core.resource import Provider
from kmp_core.sqlite import database_path
from kmp_core.telemetry import Telemetry
from kmp_messaging.embedded.arguments import between, chunks, coroutine_function, group_name, topic_of, topic_of_event
from kmp_messaging.embedded.consumer import Consumer
from kmp_messaging.embedded.items import Route
from kmp_messaging.embedded.letters import read_letters
from kmp_messaging.embedded.publisher import Content, Publisher
from kmp_messaging.embedded.query import read_lag
from kmp_messaging.embedded.store import Store
from kmp_messaging.embedded.upkeep import Upkeep
from kmp_messaging.envelope import Encoder, trace_attribute
from kmp_messaging.models import Event
from kmp_messaging.protocols import BatchHandler, EventBus, Handler
from kmp_messaging.settings import BusSettings
from kmp_messaging.tracing import current_traceparent
from kmp_messaging.values import DeadLetter, Lag, Subscription

__all__ = ["SqliteBus"]

E = TypeVar("E", bound=Event)

_CHUNK = 500


class SqliteBus(Provider, EventBus):
    """Publish and handle events through a file that several processes share (`sqlite:`), or in memory (`memory:`).

    Delivery is at least once: after a crash, or when a member is stopped beyond its lease, events are handled again
    that were handled but not yet committed. So an effect must be idempotent: key it by what the event is about, or by
    `metadata_of(event).id`, which is the same at every delivery. Events that have the same key are handled in the
    order of publication; others in any.

    What was published survives a killed process and a power cut, unless the setting `synchronous` says otherwise. A
    power cut may take the last moments of what groups have committed: then these events are handled again.
    """

    abilities = frozenset({"batches", "dead_letters", "durable", "groups", "lag", "shared"})
    embedded = True

    def __init__(
        self,
        url: str = "sqlite:",
        *,
        project: str = "local",
        service: str = "local",
        directory: Path | None = None,
        settings: BusSettings | None = None,
    ) -> None:
        self.project = Project(project)
        self.settings = BusSettings.load() if settings is None else settings
        directory = Path(".kmp") / self.project if directory is None else directory
        path = database_path(directory, url, "bus")
        if path is None:
            self.abilities -= {"durable", "shared"}
        self._store = Store(
            path,
            project=self.project,
            synchronous="full" if self.settings.synchronous == "full" else "normal",
            partitions=self.settings.partitions,
        )
        source = f"/ns/{self.project}/sa/{ServiceName(service)}"
        self._encoder = Encoder(source, largest=self.settings.event_size)
        self._publisher = Publisher(self._store, self.settings, self._published)
        self._consumers: dict[tuple[str, str], Consumer] = {}
        self._upkeep = Upkeep(self._store, self.settings, self._written)
        self._started = False

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the bus of a service's project."""
        return cls(url, project=context.project, service=context.service, directory=context.directory)

    async def _open(self) -> None:
        self._telemetry = Telemetry("messaging", "sqlite", project=self.project, scope="kmp_messaging")
        await self._store.open()
        self._upkeep.keep_house()

    async def _close(self) -> None:
        with contextlib.suppress(KmpError):
            # Whoever wanted handlers to end in peace has drained before.
            await self._drain(1.0)
        await self._upkeep.end()
        await self._store.close()

    async def _check(self) -> None:
        await self._store.read(lambda connection: connection.execute("SELECT 1").fetchone())
        self._upkeep.check()
        for consumer in self._consumers.values():
            consumer.check()

    # -- publish

    async def publish(self, *events: Event, timeout: Timeout = None) -> None:
        self.ensure_open()
        with self._telemetry.call("publish", len(events)):
            if events:
                await self._publisher.publish(self._encode(events), timeout)

    async def publish_all(self, events: Iterable[Event] | AsyncIterable[Event], *, timeout: Timeout = None) -> int:
        self.ensure_open()
        count = 0
        async for chunk in chunks(events):
            await self.publish(*chunk, timeout=timeout)
            count += len(chunk)
        return count

    def _encode(self, events: Iterable[Any]) -> Content:
        tail = trace_attribute(current_traceparent())
        content: Content = {}
        sinks: dict[type[Event], list[tuple[str | None, bytes]]] = {}
        encode = self._encoder.encode
        for event in events:
            sink = sinks.get(event.__class__)
            if sink is None:
                sink = sinks[event.__class__] = content.setdefault(topic_of_event(event), [])
            sink.append(encode(event, tail))
        return content

    def _published(self, topics: Container[int]) -> None:
        for consumer in self._consumers.values():
            consumer.published(topics)

    def _written(self) -> None:
        for consumer in self._consumers.values():
            consumer.look()

    # -- subscribe

    @overload
    def subscribe(
        self, event: type[E], handler: Handler[E], *, group: str, retries: int = 5, concurrency: int = 16
    ) -> Subscription: ...

    @overload
    def subscribe(
        self, event: type[E], *, group: str, retries: int = 5, concurrency: int = 16
    ) -> Callable[[Handler[E]], Handler[E]]: ...

    def subscribe(
        self,
        event: type[E],
        handler: Handler[E] | None = None,
        *,
        group: str,
        retries: int = 5,
        concurrency: int = 16,
    ) -> Subscription | Callable[[Handler[E]], Handler[E]]:
        between("concurrency", concurrency, 1, 10_000)
        if handler is not None:
            return self._subscribe(Route(event, handler, retries, concurrency), group)

        def decorate(handler: Handler[E]) -> Handler[E]:
            self._subscribe(Route(event, handler, retries, concurrency), group)
            return handler

        return decorate

    def subscribe_batch(
        self, event: type[E], handler: BatchHandler[E], *, group: str, retries: int = 5, size: int = 500
    ) -> Subscription:
        between("size", size, 1, self.settings.in_flight_events)
        return self._subscribe(Route(event, handler, retries, 1, size), group)

    def _subscribe(self, route: Route, group: str) -> Subscription:
        self.ensure_open()
        between("retries", route.retries, 0, 1_000_000)
        coroutine_function(route.handler)
        topic = topic_of(route.event)
        key = (topic, group_name(group))
        consumer = self._consumers.get(key)
        if consumer is None:
            consumer = self._consumers[key] = Consumer(self._store, self.settings, self._telemetry, topic, group)
        consumer.add(route)
        if self._started:
            consumer.start()
        return _Subscription(self, consumer, route)

    async def cancel(self, consumer: Consumer, route: Route) -> None:
        """End one subscription; others of the same group and topic go on."""
        consumer.routes.remove(route)
        if consumer.routes:
            consumer.rerouted()
            return
        del self._consumers[consumer.topic_name, consumer.group_name]
        await consumer.drain(self.settings.drain_timeout.total_seconds())

    # -- intake

    async def start(self) -> None:
        self.ensure_open()
        self._started = True
        for consumer in self._consumers.values():
            consumer.start()
        self._upkeep.watch()

    async def drain(self, *, timeout: Timeout = None) -> None:
        self.ensure_open()
        seconds = within(timeout, self.settings.drain_timeout)
        await self._drain(3600.0 if seconds is None else seconds)

    async def _drain(self, seconds: float) -> None:
        self._started = False
        drained = [consumer.drain(seconds) for consumer in self._consumers.values() if consumer.running]
        for outcome in await asyncio.gather(*drained, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    # -- look

    async def lag(self, event: type[Event], *, group: str, timeout: Timeout = None) -> Lag:
        self.ensure_open()
        topic = topic_of(event)
        with self._telemetry.call("lag"):
            limit = within(timeout, self.settings.read_timeout)
            return await self._store.read(lambda c: read_lag(c, topic, group), timeout=limit)

    async def dead_letters(
        self, event: type[Event] | None = None, *, group: str | None = None, timeout: Timeout = None
    ) -> AsyncIterator[DeadLetter]:
        self.ensure_open()
        topic = None if event is None else topic_of(event)
        after = 0
        while True:
            with self._telemetry.call("dead_letters"):
                limit = within(timeout, self.settings.read_timeout)
                after, letters = await self._store.read(
                    lambda c, after=after: read_letters(c, after, topic=topic, group=group, limit=_CHUNK),  # type: ignore[misc]
                    timeout=limit,
                )
            for letter in letters:
                yield letter
            if len(letters) < _CHUNK:
                return


class _Subscription:
    """One handler of a bus."""

    def __init__(self, bus: SqliteBus, consumer: Consumer, route: Route) -> None:
        self._bus = bus
        self._consumer = consumer
        self._route: Route | None = route

    @property
    def group(self) -> str:
        return self._consumer.group_name

    async def cancel(self) -> None:
        """Stop intake, let the handler end, commit. Harmless when repeated."""
        route, self._route = self._route, None
        if route is not None:
            await self._bus.cancel(self._consumer, route)
