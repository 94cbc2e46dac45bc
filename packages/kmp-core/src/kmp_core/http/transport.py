"""What every attempt of a call carries: the token, the trace and the time that is left, and to one origin only."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from opentelemetry import metrics, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from kmp_core.deadlines import format_timeout, remaining
from kmp_core.errors import ErrorTable, KmpError
from kmp_core.http.errors import table_for
from kmp_core.http.origins import Origin, origin_of
from kmp_core.plugins import extra
from kmp_core.tokens import ForgetfulTokenSource, TokenSource

with extra("httpx", install="kmp-core[http]"):
    import httpx

__all__ = ["EXTENSION", "ServiceTransport"]

EXTENSION = "kmp.token"
"""The extension in which a request brings the token for the service, so that getting one is no call to it."""

_PROPAGATOR = TraceContextTextMapPropagator()
_UNAUTHORIZED = 401


class ServiceTransport(httpx.AsyncBaseTransport):
    """Sends as `inner` does, with what belongs to the service at `origin` added, and errors in our words.

    The headers are added below httpx's redirects and cannot be copied to another origin by them.
    """

    def __init__(
        self, inner: httpx.AsyncBaseTransport, *, origin: Origin, tokens: TokenSource, audience: str, backend: str
    ) -> None:
        self._inner = inner
        self._origin = origin
        self._tokens = tokens
        self._audience = audience
        self._backend = backend
        self._tracer = trace.get_tracer("kmp_core.http")
        self._histogram = metrics.get_meter("kmp_core.http").create_histogram(
            "http.client.request.duration", unit="s", description="How long a request took until its answer began."
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.serves(request.url):
            return await self._send(request, None)
        token: str = request.extensions.get(EXTENSION) or await self.token()
        response = await self._send(request, token)
        # A refused token may have been withdrawn before its time. The call was not looked at, so any method may be
        # sent again, provided that its body can be.
        if response.status_code == _UNAUTHORIZED and isinstance(request.stream, httpx.ByteStream):
            fresh = await self._fresh(token)
            if fresh is not None:
                await response.aclose()
                response = await self._send(request, fresh)
        return response

    def serves(self, url: httpx.URL) -> bool:
        """Whether the address is the service's own."""
        return origin_of(url.scheme, url.host, url.port) == self._origin

    async def token(self) -> str:
        """The token to send."""
        return await self._tokens.token(self._audience)

    async def _fresh(self, refused: str) -> str | None:
        if not isinstance(self._tokens, ForgetfulTokenSource):
            return None
        self._tokens.forget(self._audience, refused)
        try:
            token = await self.token()
        except KmpError:
            return None  # the refusal that we have is the better answer
        return None if token == refused else token

    async def _send(self, request: httpx.Request, token: str | None) -> httpx.Response:
        attributes = {"http.request.method": request.method, "server.address": request.url.host}
        began = time.perf_counter()
        table = table_for(request.method, self._backend)
        with self._tracer.start_as_current_span(
            request.method, kind=trace.SpanKind.CLIENT, attributes=attributes
        ) as span:
            try:
                with table.translating():
                    response = await self._inner.handle_async_request(_equip(request, token))
            except Exception as error:
                self._histogram.record(
                    time.perf_counter() - began, {**attributes, "error.type": type(error).__qualname__}
                )
                raise
            span.set_attribute("http.response.status_code", response.status_code)
            self._histogram.record(
                time.perf_counter() - began, {**attributes, "http.response.status_code": response.status_code}
            )
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, table)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


def _equip(request: httpx.Request, token: str | None) -> httpx.Request:
    headers = request.headers.copy()
    extensions = {name: value for name, value in request.extensions.items() if name != EXTENSION}
    left = remaining()
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
        _PROPAGATOR.inject(headers)
        if left is not None:
            headers["grpc-timeout"] = format_timeout(left)
    if left is not None:
        timeouts = extensions.get("timeout") or {}
        extensions["timeout"] = {
            phase: left if timeouts.get(phase) is None else min(timeouts[phase], left)
            for phase in ("connect", "read", "write", "pool")
        }
    # A copy: a redirect is built from the request that the client sees, and that one never holds the token.
    return httpx.Request(request.method, request.url, headers=headers, stream=request.stream, extensions=extensions)


class _Body(httpx.AsyncByteStream):
    """An answer's body whose errors are ours too."""

    def __init__(self, inner: httpx.AsyncByteStream, table: ErrorTable) -> None:
        self._inner = inner
        self._table = table

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._table.translating():
            async for chunk in self._inner:
                yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
