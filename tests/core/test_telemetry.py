"""A call is one span and one point, and nothing where nobody listens."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import trace

from kmp_core.telemetry import Telemetry
from kmp_core.testing import Recorder


def test_a_call_is_one_span_and_one_point_with_the_conventional_names():
    with Recorder() as recorder:
        telemetry = Telemetry("db", "sqlite", project="acme", scope="kmp_storage")
        with telemetry.call("append", count=3):
            pass
    (span,) = recorder.spans
    (point,) = recorder.points
    attributes = {"kmp.project": "acme", "db.system.name": "sqlite", "db.operation.name": "append"}
    assert (span.name, span.kind, span.ended, span.failed) == ("append sqlite", trace.SpanKind.CLIENT, True, False)
    assert span.attributes == attributes | {"db.operation.batch.size": 3}
    assert (point.name, point.attributes) == ("db.client.operation.duration", attributes)
    assert point.value >= 0


def test_messaging_has_producers_and_consumers():
    with Recorder() as recorder:
        telemetry = Telemetry("messaging", "kafka", project="acme", scope="kmp_messaging")
        with telemetry.call("publish", count=2):
            pass
        with telemetry.handling(count=2):
            pass
    assert [span.kind for span in recorder.spans] == [trace.SpanKind.PRODUCER, trace.SpanKind.CONSUMER]
    assert [point.name for point in recorder.points] == [
        "messaging.client.operation.duration",
        "messaging.process.duration",
    ]
    assert all(span.attributes["messaging.batch.message_count"] == 2 for span in recorder.spans)


def test_an_error_is_told_by_its_type_alone():
    with Recorder() as recorder:
        telemetry = Telemetry("db", "sqlite", project="acme", scope="kmp_storage")
        with pytest.raises(ValueError, match="hunter2"), telemetry.call("append"):
            raise ValueError("hunter2")
    (span,) = recorder.spans
    assert span.failed
    assert span.ended
    assert span.attributes["error.type"] == "ValueError"
    assert recorder.points[0].attributes["error.type"] == "ValueError"
    assert "hunter2" not in repr(vars(span))


def test_a_call_belongs_to_the_span_around_it_and_a_handler_to_the_senders():
    with Recorder() as recorder:
        telemetry = Telemetry("messaging", "kafka", project="acme", scope="kmp_messaging")
        with telemetry.call("outer"), telemetry.call("inner"):
            pass
        sender = trace.SpanContext(0xABC, 0xDEF, is_remote=True)
        parent = trace.set_span_in_context(trace.NonRecordingSpan(sender))
        with telemetry.handling(parent=parent):
            inside = trace.get_current_span().get_span_context()
    outer, inner, handling = recorder.spans
    assert inner.parent == outer.get_span_context()
    assert handling.parent == sender
    assert inside.trace_id == 0xABC


def test_nothing_is_made_where_nobody_listens():
    telemetry = Telemetry("db", "sqlite", project="acme", scope="kmp_storage")
    assert not telemetry.listening
    assert telemetry.call("append") is telemetry.call("read", count=3) is telemetry.handling()
    with telemetry.call("append"):
        assert not trace.get_current_span().get_span_context().is_valid


def test_a_real_sdk_gets_spans_and_points():
    pytest.importorskip("opentelemetry.sdk")
    code = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from kmp_core.telemetry import Telemetry

spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))
telemetry = Telemetry("db", "sqlite", project="acme", scope="kmp_storage")
try:
    with telemetry.call("append", count=3):
        raise KeyError("x")
except KeyError:
    pass
(span,) = spans.get_finished_spans()
assert span.attributes["kmp.project"] == "acme", span.attributes
assert span.status.status_code is trace.StatusCode.ERROR
assert not span.events, "an exception event would quote the message"
metric = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0]
assert metric.name == "db.client.operation.duration"
(point,) = metric.data.data_points
assert point.count == 1 and point.attributes["error.type"] == "KeyError"
print("seen")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "seen\n", done.stderr
