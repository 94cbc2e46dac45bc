"""One span and one duration histogram per call, through OpenTelemetry's API, and nearly free when nobody listens.

    self._telemetry = Telemetry("db", "sqlite", project=project, scope="kmp_storage")

    async def append(self, *rows):
        with self._telemetry.call("append", count=len(rows)):
            ...

Names follow OpenTelemetry's semantic conventions for database clients (`db.client.operation.duration`,
`db.system.name`, `db.operation.name`) and messaging clients (`messaging.client.operation.duration`,
`messaging.process.duration`, `messaging.system`, `messaging.operation.name`). Every span and point carries
`kmp.project`.

Whether anybody listens is asked of the API when a provider is made, and kept: install the SDK before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Literal

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.util.types import AttributeValue

__all__ = ["Call", "Telemetry", "meter_of", "reporting_to"]

Kind = Literal["db", "messaging"]

_providers: ContextVar[tuple[trace.TracerProvider, metrics.MeterProvider] | None] = ContextVar(
    "kmp_telemetry_providers", default=None
)

_BATCH = {"db": "db.operation.batch.size", "messaging": "messaging.batch.message_count"}
_SPAN_KINDS = {"db": trace.SpanKind.CLIENT, "messaging": trace.SpanKind.PRODUCER}


class Call:
    """One call under way: a context manager that records its span and its duration when it ends."""

    __slots__ = ("_attributes", "_began", "_count", "_histogram", "_scope", "_span")

    def __init__(
        self,
        telemetry: Telemetry,
        operation: str,
        *,
        kind: trace.SpanKind,
        count: int | None,
        parent: Context | None = None,
        links: Sequence[trace.Link] | None = None,
    ) -> None:
        attributes = {**telemetry.attributes, f"{telemetry.kind}.operation.name": operation}
        self._attributes = attributes
        self._count = _BATCH[telemetry.kind]
        self._histogram = telemetry.processing if kind is trace.SpanKind.CONSUMER else telemetry.histogram
        self._span = telemetry.tracer.start_span(
            f"{operation} {telemetry.system}",
            context=parent,
            kind=kind,
            attributes=attributes if count is None else {**attributes, _BATCH[telemetry.kind]: count},
            links=links,
        )
        self._scope: AbstractContextManager[trace.Span] = trace.use_span(
            self._span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        )

    def __enter__(self) -> Call:
        self._began = time.perf_counter()
        self._scope.__enter__()
        return self

    def has_count(self, count: int) -> None:
        """Say how many items it was about, where that is known only when they have come."""
        self._span.set_attribute(self._count, count)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            # The type alone: a driver's message may quote a value.
            self._attributes["error.type"] = kind.__qualname__
            self._span.set_status(trace.StatusCode.ERROR, kind.__qualname__)
            self._span.set_attribute("error.type", kind.__qualname__)
        self._histogram.record(time.perf_counter() - self._began, self._attributes)
        self._scope.__exit__(None, None, None)


class _Silent:
    """Stands for a call that nobody listens to."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


_SILENT = _Silent()


class Telemetry:
    """Give every provider the same spans and metrics.

    `system` is the semantic convention's name of the technology: `sqlite`, `postgresql`, `neo4j`, `redis`, `kafka`.
    """

    __slots__ = ("attributes", "histogram", "kind", "listening", "processing", "system", "tracer")

    def __init__(self, kind: Kind, system: str, *, project: str, scope: str) -> None:
        self.kind = kind
        self.system = system
        self.attributes: dict[str, AttributeValue] = {
            "kmp.project": project,
            "db.system.name" if kind == "db" else "messaging.system": system,
        }
        traces, meters = _providers.get() or (trace.get_tracer_provider(), metrics.get_meter_provider())
        meter = meters.get_meter(scope)
        self.tracer = traces.get_tracer(scope)
        self.histogram = meter.create_histogram(
            f"{kind}.client.operation.duration", unit="s", description="How long a call to the backend took."
        )
        self.processing = (
            meter.create_histogram(
                "messaging.process.duration", unit="s", description="How long a handler took for what it was given."
            )
            if kind == "messaging"
            else self.histogram
        )
        self.listening = _listening(traces, meters)

    def call(self, operation: str, count: int | None = None) -> Call | _Silent:
        """Measure a call to the backend: kind CLIENT for a database, PRODUCER for messaging.

        `count` is the number of items where the call is about a batch.
        """
        if not self.listening:
            return _SILENT
        return Call(self, operation, kind=_SPAN_KINDS[self.kind], count=count)

    def handling(
        self,
        operation: str = "process",
        count: int | None = None,
        *,
        parent: Context | None = None,
        links: Sequence[trace.Link] | None = None,
    ) -> Call | _Silent:
        """Measure a handler at work on what came from the backend: kind CONSUMER, below the sender's span `parent`."""
        if not self.listening:
            return _SILENT
        return Call(self, operation, kind=trace.SpanKind.CONSUMER, count=count, parent=parent, links=links)


def meter_of(scope: str) -> metrics.Meter:
    """Where a part that is no call, such as a pool, reports its own metrics."""
    found = _providers.get()
    return (metrics.get_meter_provider() if found is None else found[1]).get_meter(scope)


@contextmanager
def reporting_to(traces: trace.TracerProvider, meters: metrics.MeterProvider) -> Iterator[None]:
    """Have the providers that are made inside the block report here instead of to the process's own SDK."""
    token = _providers.set((traces, meters))
    try:
        yield
    finally:
        _providers.reset(token)


def _listening(traces: trace.TracerProvider, meters: metrics.MeterProvider) -> bool:
    # The API's own providers are proxies until an SDK replaces them; the named classes say "nothing installed".
    silent = {"ProxyTracerProvider", "NoOpTracerProvider", "_ProxyMeterProvider", "NoOpMeterProvider"}
    return any(type(provider).__name__ not in silent for provider in (traces, meters))
