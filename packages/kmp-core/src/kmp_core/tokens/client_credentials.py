"""A service's own tokens from an OAuth 2.0 authority: fetched once, kept until shortly before they expire.

```python
async with ClientCredentials(token_url, client_id="skyline/departures", secret=secret) as tokens:
    token = await tokens.token("delays")
```
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

from pydantic import SecretStr

from kmp_core.deadlines import Timeout, deadline, duration
from kmp_core.errors import KmpError, Overloaded, PermissionDenied, Unauthenticated, Unavailable
from kmp_core.http.errors import error_of, table_for
from kmp_core.http.origins import credential_origin
from kmp_core.plugins import extra
from kmp_core.resource import Provider
from kmp_core.retries import Retries
from kmp_core.tokens.strict_json import parse_object

with extra("httpx", install="kmp-core[http]"):
    import httpx

__all__ = ["ClientCredentials"]

_MAX_ANSWER = 64 * 1024
_MAX_TOKEN = 16 * 1024
_LIFETIME_UNSAID = 60  # seconds, where the authority does not tell
_COOL_DOWN = 1.0
_REFUSALS = frozenset({"invalid_target", "invalid_scope", "unauthorized_client", "access_denied"})


@dataclass(frozen=True, slots=True)
class _Held:
    token: str
    refresh_at: float
    usable_until: float


class ClientCredentials(Provider):
    """A `TokenSource` over the client credentials grant (RFC 6749, section 4.4).

    One fetch at a time for each audience, whoever asks, and none for a moment after one failed. A token is renewed
    when a quarter of its life is left, with jitter so that replicas do not ask together; meanwhile the old one is
    given out. Raises `Unauthenticated` when the authority does not know us, `PermissionDenied` when it does not let us
    call the audience, `Unavailable` or `DeadlineExceeded` when it does not answer.
    """

    def __init__(
        self,
        token_url: str,
        *,
        client_id: str,
        secret: SecretStr | str,
        timeout: Timeout = None,
        transport: httpx.AsyncBaseTransport | None = None,
        send_secret_in_the_clear: bool = False,
    ) -> None:
        credential_origin(token_url, field="token_url", plaintext=send_secret_in_the_clear)
        self._url = token_url
        self._client_id = client_id
        self._secret = secret if isinstance(secret, SecretStr) else SecretStr(secret)
        self._timeout = duration("5s" if timeout is None else timeout, field="timeout").total_seconds()
        self._transport = transport
        self._retries = Retries("authority")
        self._held: dict[str, _Held] = {}
        self._flights: dict[str, asyncio.Task[str]] = {}
        self._failed: dict[str, tuple[float, KmpError]] = {}

    async def token(self, audience: str) -> str:
        """A token for `audience` that lives for a while yet."""
        self.ensure_open()
        held, now = self._held.get(audience), time.monotonic()
        if held is not None and now < held.refresh_at:
            return held.token
        usable = held is not None and now < held.usable_until
        until, error = self._failed.get(audience, (0.0, None))
        if error is not None and now < until:
            if held is not None and usable:
                return held.token
            raise error.with_traceback(None)
        flight = self._flight(audience)
        if held is not None and usable:
            return held.token
        async with deadline(self._timeout, what="getting a token", backend="authority", outcome_unknown=False):
            return await asyncio.shield(flight)

    def forget(self, audience: str, token: str) -> None:
        """Do not give out this very token again; the next call fetches one."""
        held = self._held.get(audience)
        if held is not None and held.token == token:
            del self._held[audience]

    def _flight(self, audience: str) -> asyncio.Task[str]:
        flight = self._flights.get(audience)
        if flight is None:
            # In a context of its own: the fetch serves all who wait, and must not end with the first one's deadline.
            flight = asyncio.create_task(
                self._fetch(audience), name=f"token for {audience}", context=contextvars.Context()
            )
            self._flights[audience] = flight
            flight.add_done_callback(lambda done: self._landed(audience, done))
        return flight

    def _landed(self, audience: str, flight: asyncio.Task[str]) -> None:
        self._flights.pop(audience, None)
        if flight.cancelled():
            return
        error = flight.exception()  # asked for here, so that a renewal nobody waits for does not warn
        if isinstance(error, KmpError):
            pause = error.retry_after if isinstance(error, Overloaded) else _COOL_DOWN
            self._failed[audience] = (time.monotonic() + pause * random.uniform(0.5, 1), error)  # noqa: S311
        else:
            self._failed.pop(audience, None)

    async def _fetch(self, audience: str) -> str:
        asked = time.monotonic()
        async with deadline(self._timeout, what="getting a token", backend="authority", outcome_unknown=False):
            status, answer = await self._retries.call(lambda: self._ask(audience), idempotent=True)
        if status != httpx.codes.OK:
            raise _refusal(answer, audience)
        token, lifetime = _read(answer)
        self._held[audience] = _Held(
            token,
            refresh_at=asked + lifetime * random.uniform(0.7, 0.8),  # noqa: S311
            usable_until=asked + lifetime - min(5.0, lifetime * 0.1),
        )
        return token

    async def _ask(self, audience: str) -> tuple[int, dict[str, Any]]:
        # Section 2.3.1: both are form-encoded before they become a Basic header.
        auth = (quote_plus(self._client_id), quote_plus(self._secret.get_secret_value()))
        form = {"grant_type": "client_credentials", "audience": audience}
        with table_for("GET", "authority").translating():
            async with self._http.stream("POST", self._url, data=form, auth=auth) as response:
                content = b""
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _MAX_ANSWER:
                        raise _nonsense()
        error = error_of(response, safe=True, backend="authority")
        if isinstance(error, Unavailable):
            raise error
        if response.status_code >= 500 or response.is_redirect:
            raise Unavailable(f"The authority answered {response.status_code}", backend="authority")
        try:
            return response.status_code, parse_object(content)
        except (ValueError, RecursionError):
            raise _nonsense() from None

    async def _open(self) -> None:
        self._http = httpx.AsyncClient(transport=self._transport, timeout=self._timeout, trust_env=False)

    async def _close(self) -> None:
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        for flight in flights:
            with contextlib.suppress(asyncio.CancelledError, KmpError):
                await flight
        await self._http.aclose()

    async def _check(self) -> None:
        """A token that can be used, for any audience asked for before; with none asked for there is nothing to miss."""
        now = time.monotonic()
        for audience, (_, error) in self._failed.items():
            held = self._held.get(audience)
            if held is None or now >= held.usable_until:
                raise error.with_traceback(None)


def _nonsense() -> Unavailable:
    return Unavailable("The authority's answer is not one of RFC 6749", backend="authority")


def _refusal(answer: dict[str, Any], audience: str) -> KmpError:
    error = answer.get("error")
    if error == "invalid_client":
        return Unauthenticated("client", message="The authority does not accept this service's credential")
    if isinstance(error, str) and error in _REFUSALS:
        return PermissionDenied(f"The authority does not let this service call {audience!r}", key=audience)
    return _nonsense()


def _read(answer: dict[str, Any]) -> tuple[str, float]:
    token, kind, lifetime = (answer.get(name) for name in ("access_token", "token_type", "expires_in"))
    if not isinstance(token, str) or not 0 < len(token) <= _MAX_TOKEN or any(not "!" <= c <= "~" for c in token):
        raise _nonsense()
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise _nonsense()
    if lifetime is None:
        lifetime = _LIFETIME_UNSAID
    if type(lifetime) is not int or not 0 < lifetime <= 86_400 * 366:
        raise _nonsense()
    return token, float(lifetime)
