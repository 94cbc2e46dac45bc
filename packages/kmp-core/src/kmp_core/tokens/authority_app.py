"""Serve a development authority: an OAuth 2.0 token endpoint, its keys and its metadata, as a plain ASGI application.

    uvicorn.run(authority_app(authority), host="127.0.0.1", port=8400)

| path | what | source |
|---|---|---|
| `POST /token` | client credentials grant, Basic authentication | RFC 6749, sections 4.4 and 2.3.1 |
| `GET /jwks.json` | the public keys | RFC 7517 |
| `GET /.well-known/oauth-authorization-server` | metadata | RFC 8414 |

The audience comes as `audience`, or as `resource` (RFC 8707); it may be left out by a client that has one only.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from kmp_core.asgi.problems import ASGIApp, Receive, Scope, Send, header_values
from kmp_core.errors import PermissionDenied, Unauthenticated
from kmp_core.tokens.authority import Client, DevelopmentAuthority

__all__ = ["authority_app"]

_MAX_BODY = 16 * 1024
_FORM = "application/x-www-form-urlencoded"
_PARAMETERS = {"grant_type", "scope", "audience", "resource"}


class _Refused(Exception):
    """An answer of RFC 6749, section 5.2."""

    def __init__(self, error: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, **headers: str) -> None:
        super().__init__(error)
        self.error = error
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def authority_app(authority: DevelopmentAuthority, *, attempts: int = 10, window: float = 60.0) -> ASGIApp:
    """The authority's endpoints.

    After `attempts` wrong secrets for one client id from one address, that pair is answered 429 until `window` seconds
    have passed.
    """
    return _App(authority, _Attempts(authority, attempts, window))


class _App:
    def __init__(self, authority: DevelopmentAuthority, attempts: _Attempts) -> None:
        self._authority = authority
        self._attempts = attempts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _other(scope, receive, send)
            return
        documents = {"/jwks.json": self._authority.jwks, "/.well-known/oauth-authorization-server": self._metadata}
        path, method = scope["path"], scope["method"]
        if path == "/token" and method == "POST":
            await self._token(scope, receive, send)
        elif path in documents and method in ("GET", "HEAD"):
            await _answer(send, HTTPStatus.OK, documents[path](), {"cache-control": "public, max-age=60"})
        elif path == "/token" or path in documents:
            await _answer(
                send, HTTPStatus.METHOD_NOT_ALLOWED, {}, {"allow": "POST" if path == "/token" else "GET, HEAD"}
            )
        else:
            await _answer(send, HTTPStatus.NOT_FOUND, {})

    async def _token(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"cache-control": "no-store", "pragma": "no-cache"}  # RFC 6749, section 5.1
        try:
            parameters = await _parameters(scope, receive)
            answer = self._grant(self._client(scope), parameters)
        except _Refused as refused:
            await _answer(send, refused.status, {"error": refused.error}, headers | refused.headers)
        else:
            await _answer(send, HTTPStatus.OK, answer, headers)

    def _client(self, scope: Scope) -> Client:
        client_id, secret = _basic(scope)
        who = (client_id, (scope.get("client") or ("",))[0])
        self._attempts.check(who)
        try:
            client = self._authority.authenticate(client_id, secret)
        except Unauthenticated:
            self._attempts.failed(who)
            raise _invalid_client() from None
        self._attempts.succeeded(who)
        return client

    def _grant(self, client: Client, parameters: Mapping[str, str]) -> dict[str, Any]:
        if parameters.get("grant_type") != "client_credentials":
            raise _Refused("unsupported_grant_type" if "grant_type" in parameters else "invalid_request")
        if "audience" in parameters and "resource" in parameters:
            raise _Refused("invalid_request")
        audience = parameters.get("audience", parameters.get("resource"))
        scopes = parameters["scope"].split() if parameters.get("scope") else None
        try:
            token = self._authority.grant(client, audience=audience, scopes=scopes)
        except PermissionDenied as error:
            raise _Refused("invalid_target" if error.key == "audience" else "invalid_scope") from None
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": self._authority.ttl}
        granted = sorted(client.scopes if scopes is None else scopes)
        return answer | ({"scope": " ".join(granted)} if granted else {})

    def _metadata(self) -> dict[str, Any]:
        issuer = self._authority.issuer
        return {
            "issuer": issuer,
            "token_endpoint": f"{issuer}/token",
            "jwks_uri": f"{issuer}/jwks.json",
            "response_types_supported": [],
            "grant_types_supported": ["client_credentials"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
        }


class _Attempts:
    """Counts wrong secrets, for a bounded number of clients and addresses."""

    def __init__(self, authority: DevelopmentAuthority, allowed: int, window: float) -> None:
        self._clock = authority.clock
        self._allowed = allowed
        self._window = window
        self._failures: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def check(self, who: tuple[str, str]) -> None:
        count, until = self._failures.get(who, (0, 0.0))
        left = until - self._clock()
        if left <= 0:
            self._failures.pop(who, None)
        elif count >= self._allowed:
            raise _Refused("invalid_client", HTTPStatus.TOO_MANY_REQUESTS, retry_after=str(int(left) + 1))

    def failed(self, who: tuple[str, str]) -> None:
        count, until = self._failures.get(who, (0, self._clock() + self._window))
        self._failures[who] = (count + 1, until)
        if len(self._failures) > 10_000:
            self._failures.popitem(last=False)

    def succeeded(self, who: tuple[str, str]) -> None:
        self._failures.pop(who, None)


async def _parameters(scope: Scope, receive: Receive) -> dict[str, str]:
    kinds = header_values(scope, b"content-type")
    if len(kinds) != 1 or kinds[0].partition(";")[0].strip().lower() != _FORM:
        raise _Refused("invalid_request")
    try:
        pairs = parse_qsl(
            (await _body(receive)).decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=32,
        )
    except ValueError:
        raise _Refused("invalid_request") from None
    parameters = dict(pairs)
    # Section 3.2: none twice, unknown ones ignored. Credentials in the body are not offered (section 2.3.1).
    if len(parameters) != len(pairs) or "client_secret" in parameters:
        raise _Refused("invalid_request")
    return {name: value for name, value in parameters.items() if name in _PARAMETERS and value}


async def _body(receive: Receive) -> bytes:
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise _Refused("invalid_request")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > _MAX_BODY:
            raise _Refused("invalid_request", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return body


def _basic(scope: Scope) -> tuple[str, str]:
    values = header_values(scope, b"authorization")
    kind, _, encoded = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    if kind.lower() != "basic":
        raise _invalid_client()
    try:
        name, colon, secret = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except ValueError:
        raise _invalid_client() from None
    if not colon:
        raise _invalid_client()
    # Both were form-encoded before they were put together (section 2.3.1).
    return unquote_plus(name, errors="replace"), unquote_plus(secret, errors="replace")


def _invalid_client() -> _Refused:
    return _Refused("invalid_client", HTTPStatus.UNAUTHORIZED, www_authenticate='Basic realm="kmp", charset="UTF-8"')


async def _other(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    while True:  # lifespan: there is nothing to start or stop
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _answer(
    send: Send, status: HTTPStatus, content: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> None:
    body = json.dumps(content).encode()
    named = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": raw})
    await send({"type": "http.response.body", "body": body})
