"""Continue what the caller began: its trace, and the time it still has, for every request that is served.

`RequestContext` reads the W3C `traceparent` and the `grpc-timeout` header, serves the request inside one span and one
deadline, and answers for errors of ours that escape: 401, 403, 503 with `Retry-After`, 504.
"""

from __future__ import annotations

import time
from datetime import timedelta

from opentelemetry import context, metrics, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from kmp_core.asgi.problems import ASGIApp, Message, Receive, Scope, Send, header_values, problem_of
from kmp_core.deadlines import Timeout, deadline, duration, parse_timeout
from kmp_core.errors import DeadlineExceeded, KmpError
from kmp_core.tokens.principal import Principal

__all__ = ["MAX_TIMEOUT", "RequestContext"]

MAX_TIMEOUT = timedelta(seconds=30)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
# Trace context alone: baggage from outside would travel on to every service behind us.
_PROPAGATOR = TraceContextTextMapPropagator()


class RequestContext:
    """Serve each request within the caller's trace and deadline.

    A request has what its `grpc-timeout` header grants and never more than `max_timeout`; when the time is over it is
    cancelled and answered with 504, or cut off where the answer had begun. A WebSocket has a span and no deadline.
    """

    def __init__(self, app: ASGIApp, *, max_timeout: Timeout = MAX_TIMEOUT) -> None:
        self._app = app
        limit = MAX_TIMEOUT if max_timeout is None else max_timeout
        self._limit = duration(limit, field="max_timeout").total_seconds()
        self._tracer = trace.get_tracer("kmp_core.asgi.inbound")
        self._histogram = metrics.get_meter("kmp_core.asgi.inbound").create_histogram(
            "http.server.request.duration", unit="s", description="How long a request took to serve."
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        token = context.attach(_extract(scope))
        try:
            await self._serve(scope, receive, _Answer(send))
        finally:
            context.detach(token)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        method = _method(scope)
        attributes = _attributes(scope, method)
        began = time.perf_counter()
        with self._tracer.start_as_current_span(method, kind=trace.SpanKind.SERVER, attributes=attributes) as span:
            try:
                await self._answer(scope, receive, answer)
            except Exception as error:
                attributes["error.type"] = type(error).__qualname__
                raise
            finally:
                route = _describe(attributes, scope, answer)
                span.set_attributes(attributes)
                span.update_name(f"{method} {route}" if route else method)
                if answer.status >= 500:
                    span.set_status(trace.StatusCode.ERROR)
                if scope["type"] == "http":
                    self._histogram.record(time.perf_counter() - began, attributes)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, receive, answer.send)
            return
        try:
            seconds = self._allowed(scope)
            if seconds <= 0:
                raise DeadlineExceeded("The caller's time was over before the request was served")
            async with deadline(seconds, what="serving the request"):
                await self._app(scope, receive, answer.send)
        except KmpError as error:
            problem = problem_of(error)
            # Half an answer cannot be taken back: the server cuts the connection, and the caller sees that.
            if problem is None or answer.status:
                raise
            await problem(scope, receive, answer.send)

    def _allowed(self, scope: Scope) -> float:
        values = header_values(scope, b"grpc-timeout")
        asked = parse_timeout(values[0]) if values else None
        return self._limit if asked is None else min(asked, self._limit)


class _Answer:
    """Remembers whether the answer has begun, and with what status."""

    __slots__ = ("_send", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
        await self._send(message)


def _extract(scope: Scope) -> context.Context:
    carrier = {name.decode(): header_values(scope, name) for name in (b"traceparent", b"tracestate")}
    # Two parents are none (W3C Trace Context, section 3.2.1).
    if len(carrier["traceparent"]) != 1:
        return context.get_current()
    return _PROPAGATOR.extract({name: values for name, values in carrier.items() if values}, context.get_current())


def _method(scope: Scope) -> str:
    method: str = scope.get("method", "GET")
    return method if method in _METHODS else "_OTHER"  # what a stranger invented does not become a label


def _attributes(scope: Scope, method: str) -> dict[str, AttributeValue]:
    # OpenTelemetry's semantic conventions for HTTP.
    return {
        "http.request.method": method,
        "url.scheme": str(scope.get("scheme", "http")),
        "network.protocol.version": str(scope.get("http_version", "1.1")),
    }


def _describe(attributes: dict[str, AttributeValue], scope: Scope, answer: _Answer) -> str | None:
    if answer.status:
        attributes["http.response.status_code"] = answer.status
    principal = scope.get("state", {}).get("principal")
    if isinstance(principal, Principal):
        attributes["kmp.caller.project"] = str(principal.project)
        attributes["kmp.caller.service"] = str(principal.service)
    # Frameworks put the route they chose into the scope; the path itself has no bounded number of values.
    route = getattr(scope.get("route"), "path", None)
    if not isinstance(route, str):
        return None
    attributes["http.route"] = route
    return route
