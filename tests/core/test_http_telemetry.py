"""What a request leaves behind on both sides: one span and one duration each, in one trace, with the caller's name."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from kmp_core.asgi import Inbound, require
from kmp_core.errors import Unauthenticated
from kmp_core.http import client
from kmp_core.tokens.authority import DevelopmentAuthority


class Tokens:
    def __init__(self, authority: DevelopmentAuthority) -> None:
        self.authority = authority

    async def token(self, audience: str) -> str:
        return self.authority.issue(project="skyline", service="departures", audience=audience)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    yield reader
    provider.shutdown()


def durations(reader: InMemoryMetricReader) -> dict[str, int]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: sum(point.count for point in metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_call_and_request_are_one_trace(spans: InMemorySpanExporter, reader: InMemoryMetricReader) -> None:
    authority = DevelopmentAuthority()

    async def report(request: Request) -> Response:
        await require(project="skyline")()
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/reports/{name}", report)])
    app.add_middleware(Inbound, verifier=authority.verifier(audience="delays"))
    tokens = Tokens(authority)
    transport = httpx.ASGITransport(app)
    async with client("http://localhost", tokens=tokens, audience="delays", transport=transport) as delays:
        assert (await delays.get("/reports/2013?secret=1")).text == "ok"
    served, sent = spans.get_finished_spans()
    assert (served.kind, sent.kind) == (trace.SpanKind.SERVER, trace.SpanKind.CLIENT)
    assert served.parent is not None
    assert served.parent.span_id == sent.context.span_id
    assert served.context.trace_id == sent.context.trace_id
    attributes = dict(served.attributes or {})
    assert attributes["http.response.status_code"] == 200
    assert (attributes["kmp.caller.project"], attributes["kmp.caller.service"]) == ("skyline", "departures")
    # The address has no bounded number of values, and may hold a secret.
    assert "secret" not in str(attributes) + served.name
    assert "2013" not in str(attributes) + served.name
    assert durations(reader) == {"http.server.request.duration": 1, "http.client.request.duration": 1}


async def test_refused_request_is_seen_too(spans: InMemorySpanExporter, reader: InMemoryMetricReader) -> None:
    authority, stranger = DevelopmentAuthority(), DevelopmentAuthority()
    app = Inbound(Starlette(), verifier=authority.verifier(audience="delays"))
    transport = httpx.ASGITransport(app)
    async with client("http://localhost", tokens=Tokens(stranger), audience="delays", transport=transport) as delays:
        with pytest.raises(Unauthenticated):
            await delays.request("BREW", "/pot")
    served, _ = spans.get_finished_spans()
    attributes = dict(served.attributes or {})
    assert attributes["http.response.status_code"] == 401
    assert attributes["http.request.method"] == served.name == "_OTHER"
    assert not any(name.startswith("kmp.caller") for name in attributes)
    assert durations(reader) == {"http.server.request.duration": 1, "http.client.request.duration": 1}
