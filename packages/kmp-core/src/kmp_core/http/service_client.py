"""Call another service as yourself: a ready `httpx.AsyncClient` with your token, your trace and your deadline.

    async with client("https://delays.skyline.example", tokens=tokens, audience="delays") as delays:
        answer = await delays.get("/routes", params={"origin": "JFK"})

Needs `pip install 'kmp-core[http]'`. `ClientCredentials` is the usual source of tokens.
"""

from __future__ import annotations

import ssl
from typing import Any

from kmp_core.breaker import Breaker
from kmp_core.deadlines import Timeout, deadline, duration
from kmp_core.http.errors import IDEMPOTENT, SAFE, error_of, table_for
from kmp_core.http.origins import credential_origin
from kmp_core.http.transport import EXTENSION, ServiceTransport
from kmp_core.plugins import extra
from kmp_core.retries import Retries
from kmp_core.tokens import TokenSource
from kmp_core.tokens.client_credentials import ClientCredentials

with extra("httpx", install="kmp-core[http]"):
    import httpx

__all__ = ["ClientCredentials", "ServiceClient", "client"]

_TIMEOUT = duration("10s")


def client(
    base_url: str,
    *,
    tokens: TokenSource,
    audience: str,
    timeout: Timeout = None,
    max_connections: int = 100,
    retries: Retries | None = None,
    tls: ssl.SSLContext | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    send_tokens_in_the_clear: bool = False,
) -> ServiceClient:
    """A client for the one service at `base_url`, which knows us by the tokens for `audience`.

    `timeout` bounds each call as a whole, retries included (10 s unless given); for a streamed answer it bounds the
    way to its beginning and then the wait for each chunk. Tokens go to the origin of `base_url` only, wherever it
    redirects to, and only over https or to this machine, unless `send_tokens_in_the_clear`. Methods that may be
    repeated are retried, by `retries` where several clients of one backend share a budget. Raises `ConfigurationError`
    for an address that is no good.
    """
    origin = credential_origin(base_url, field="base_url", plaintext=send_tokens_in_the_clear)
    backend = f"{origin[1]}:{origin[2]}"
    if transport is None:
        # With a transport of its own, httpx asks no variable for a proxy, which would get the token.
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        transport = httpx.AsyncHTTPTransport(verify=tls if tls is not None else True, limits=limits)
    total = duration(_TIMEOUT if timeout is None else timeout, field="timeout").total_seconds()
    return ServiceClient(
        retries=retries or Retries(backend, breaker=Breaker(backend)),
        total=total,
        base_url=base_url,
        timeout=total,
        service=ServiceTransport(transport, origin=origin, tokens=tokens, audience=audience, backend=backend),
    )


class ServiceClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` whose calls end in time and fail in our words.

    Raises `Unauthenticated` for 401, `PermissionDenied` for 403, `Overloaded` or `Unavailable` for 503 and 429,
    `DeadlineExceeded` for 504 and when the time is over, `Unavailable` when the service cannot be reached, and
    `OutcomeUnknown` when the connection broke under a call that may have taken effect. All other answers are returned.
    """

    def __init__(self, *, service: ServiceTransport, retries: Retries, total: float, **options: Any) -> None:
        super().__init__(transport=service, **options)
        self._service = service
        self._retries = retries
        self._backend = retries.backend
        self._total = total

    async def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        own = (request.extensions.get("timeout") or {}).get("read")
        async with deadline(
            self._total if own is None else own,
            what="the request",
            backend=self._backend,
            outcome_unknown=request.method not in SAFE,
        ):
            # Before the backend's breaker and retries: an authority that is down says nothing about the service.
            if self._service.serves(request.url):
                request.extensions[EXTENSION] = await self._service.token()
            return await self._retries.call(
                lambda: self._attempt(request, stream=stream, **options),
                # A body that comes from a stream is gone after the first try.
                idempotent=request.method in IDEMPOTENT and isinstance(request.stream, httpx.ByteStream),
            )

    async def _attempt(self, request: httpx.Request, *, stream: bool, **options: Any) -> httpx.Response:
        with table_for(request.method, self._backend).translating():
            response = await super().send(request, stream=stream, **options)
        error = error_of(response, safe=request.method in SAFE, backend=self._backend)
        if error is not None:
            await response.aclose()
            raise error
        return response
