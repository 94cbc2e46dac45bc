"""Record what a provider tells OpenTelemetry, without an SDK: `with Recorder() as recorder: ...`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.util.types import AttributeValue

from kmp_core.telemetry import reporting_to

__all__ = ["Point", "RecordedSpan", "Recorder"]


@dataclass(frozen=True, slots=True)
class Point:
    """One value that a histogram was given."""

    name: str
    value: float
    attributes: Mapping[str, Any]


class RecordedSpan(trace.NonRecordingSpan):
    """A span that remembers what it was told."""

    def __init__(
        self,
        name: str,
        kind: trace.SpanKind,
        attributes: Mapping[str, AttributeValue] | None,
        parent: trace.SpanContext,
    ) -> None:
        trace_id = parent.trace_id or random.getrandbits(128)
        super().__init__(trace.SpanContext(trace_id, random.getrandbits(64), is_remote=False))
        self.parent = parent if parent.is_valid else None
        self.name = name
        self.kind = kind
        self.attributes: dict[str, AttributeValue] = dict(attributes or {})
        self.failed = False
        self.ended = False

    def is_recording(self) -> bool:
        return not self.ended

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self.attributes[key] = value

    def set_status(self, status: trace.Status | trace.StatusCode, description: str | None = None) -> None:
        code = status.status_code if isinstance(status, trace.Status) else status
        self.failed = code is trace.StatusCode.ERROR

    def end(self, end_time: int | None = None) -> None:
        self.ended = True


@dataclass
class Recorder:
    """Every span and every histogram point of the providers that are made inside the block."""

    spans: list[RecordedSpan] = field(default_factory=list[RecordedSpan])
    points: list[Point] = field(default_factory=list[Point])
    _scope: AbstractContextManager[None] | None = None

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self.spans.clear()
        self.points.clear()

    def __enter__(self) -> Self:
        self._scope = reporting_to(_Traces(self), _Meters(self))
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._scope is not None
        self._scope.__exit__(kind, error, traceback)


class _Traces(trace.NoOpTracerProvider):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return _Tracer(self._recorder)


class _Tracer(trace.NoOpTracer):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def start_span(  # noqa: PLR0917 - the signature of OpenTelemetry's API
        self,
        name: str,
        context: Context | None = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Mapping[str, AttributeValue] | None = None,
        links: Sequence[trace.Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        span = RecordedSpan(name, kind, attributes, parent=trace.get_current_span(context).get_span_context())
        self._recorder.spans.append(span)
        return span


class _Meters(metrics.NoOpMeterProvider):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def get_meter(self, *_: Any, **__: Any) -> metrics.Meter:
        return _Meter(self._recorder)


class _Meter(metrics.NoOpMeter):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__("kmp-test")
        self._recorder = recorder

    def create_histogram(self, name: str, *_: Any, **__: Any) -> metrics.Histogram:
        return _Histogram(name, self._recorder)


class _Histogram(metrics.NoOpHistogram):
    def __init__(self, name: str, recorder: Recorder) -> None:
        super().__init__(name)
        self._histogram = name
        self._recorder = recorder

    def record(
        self, amount: float, attributes: Mapping[str, AttributeValue] | None = None, context: Context | None = None
    ) -> None:
        self._recorder.points.append(Point(self._histogram, amount, dict(attributes or {})))
