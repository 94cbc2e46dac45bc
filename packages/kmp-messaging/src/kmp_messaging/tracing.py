"""Carry the trace of whoever published to whoever handles, in W3C Trace Context's `traceparent`.

The text travels with the event and is parsed only when a handler starts a span, as most handlers never do.
"""

from __future__ import annotations

import re
from contextvars import Token

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

__all__ = ["attach", "current_traceparent", "detach", "parse_traceparent"]

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


def current_traceparent() -> str | None:
    """The header that makes whoever handles an event a child of the span that is current here."""
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def parse_traceparent(text: str) -> SpanContext:
    """The remote span, or an invalid one where the text is not a `traceparent`: a stranger's header is no error."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5] is not None):
        return trace.INVALID_SPAN_CONTEXT
    return SpanContext(int(match[2], 16), int(match[3], 16), is_remote=True, trace_flags=TraceFlags(int(match[4], 16)))


class _RemoteParent(NonRecordingSpan):
    """Stands for the publisher's span, and looks at its `traceparent` when somebody asks."""

    def __init__(self, traceparent: str) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self._traceparent: str | None = traceparent

    def get_span_context(self) -> SpanContext:
        if self._traceparent is not None:
            self._context = parse_traceparent(self._traceparent)
            self._traceparent = None
        return self._context


def attach(traceparent: str) -> Token[Context]:
    """Make the publisher's span the parent of spans that are started from here on."""
    return context.attach(trace.set_span_in_context(_RemoteParent(traceparent)))


def detach(token: Token[Context]) -> None:
    """Undo `attach`."""
    context.detach(token)
