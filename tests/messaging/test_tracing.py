"""Trace context that travels as text."""

import pytest
from opentelemetry import trace

from kmp_messaging.tracing import current_traceparent, parse_traceparent

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_what_was_sent_is_what_is_read():
    context = trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        text = current_traceparent()
    assert text == f"00-{1:032x}-{2:016x}-01"
    found = parse_traceparent(text)
    assert (found.trace_id, found.span_id, found.trace_flags, found.is_remote) == (1, 2, 1, True)


def test_nothing_is_sent_outside_of_a_span():
    assert current_traceparent() is None


def test_a_later_version_may_say_more():
    assert parse_traceparent("01" + GOOD[2:] + "-more").is_valid


@pytest.mark.parametrize(
    "text",
    ["", "x", GOOD.upper(), GOOD + "-more", "ff" + GOOD[2:], GOOD[:3] + "0" * 32 + GOOD[35:], GOOD.replace("b7", "zz")],
)
def test_a_strangers_header_is_no_error(text):
    assert not parse_traceparent(text).is_valid
