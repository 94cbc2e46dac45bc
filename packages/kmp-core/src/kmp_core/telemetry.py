"""One span and one duration histogram per call, through OpenTelemetry's API, and nearly free when nobody listens.

Names follow OpenTelemetry's semantic conventions for database clients (`db.client.operation.duration`,
`db.system.name`, `db.operation.name`) and messaging clients (`messaging.client.operation.duration`,
`messaging.system`, `messaging.operation.name`). Every span and point carries `kmp.project`.

Whether anybody listens is asked of the API when a provider opens, and cached: install the SDK before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Literal

from opentelemetry import metrics, trace
from opentelemetry.util.types import AttributeValue

__all__ = ["Call", "Telemetry", "reporting_to"]

Kind = Literal["db", "messaging"]

_providers: ContextVar[tuple[trace.TracerProvider, metrics.MeterProvider] | None] = ContextVar(
    "kmp_telemetry_providers", default=None
)


class Call:
    """One call under way: a context manager that records its span and its duration when it ends."""

    __slots__ = ("_attributes", "_began", "_scope", "_span", "_telemetry")

    def __init__(self, telemetry: Telemetry, operation: str, count: int | None) -> None:
        kind = telemetry.kind
        self._telemetry = telemetry
        attributes: dict[str, AttributeValue] = {
            **telemetry.attributes,
            f"{kind}.operation.name": operation,
        }
        self._attributes = attributes
        self._span = telemetry.tracer.start_span(
            f"{operation} {telemetry.system}",
            kind=trace.SpanKind.CLIENT if kind == "db" else trace.SpanKind.PRODUCER,
            attributes=attributes,
        )
        if count is not None:
            self._span.set_attribute(
                "db.operation.batch.size" if kind == "db" else "messaging.batch.message_count", count
            )
        self._scope = trace.use_span(
            self._span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        )

    def __enter__(self) -> Call:
        self._began = time.perf_counter()
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            # The type alone: a driver's message may quote a value.
            self._attributes["error.type"] = kind.__qualname__
            self._span.set_status(trace.StatusCode.ERROR, kind.__qualname__)
            self._span.set_attribute("error.type", kind.__qualname__)
        self._telemetry.histogram.record(time.perf_counter() - self._began, self._attributes)
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
    """Give every provider the same spans and metrics: `with telemetry.call("append", count=len(rows)): …`.

    `system` is the semantic convention's name of the technology: `sqlite`, `postgresql`, `neo4j`, `redis`, `kafka`.
    """

    __slots__ = ("attributes", "histogram", "kind", "listening", "system", "tracer")

    def __init__(self, kind: Kind, system: str, *, project: str, scope: str) -> None:
        self.kind = kind
        self.system = system
        self.attributes: dict[str, AttributeValue] = {
            "kmp.project": project,
            "db.system.name" if kind == "db" else "messaging.system": system,
        }
        traces, meters = _providers.get() or (trace.get_tracer_provider(), metrics.get_meter_provider())
        self.tracer = traces.get_tracer(scope)
        self.histogram = meters.get_meter(scope).create_histogram(
            f"{kind}.client.operation.duration", unit="s", description="How long a call to the backend took."
        )
        self.listening = _listening(traces, meters)

    def call(self, operation: str, count: int | None = None) -> Call | _Silent:
        """Measure a block. `count` is the number of items where the call is about a batch."""
        return Call(self, operation, count) if self.listening else _SILENT


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
