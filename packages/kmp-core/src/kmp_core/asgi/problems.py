"""Answer a request that is refused: RFC 9457 problem documents that tell a stranger the status and nothing else.

Every `Problem` is an ASGI application, so that it can be the response of any framework.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from kmp_core.errors import (
    BreakerOpen,
    DeadlineExceeded,
    KmpError,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)

__all__ = ["ASGIApp", "Message", "Problem", "Receive", "Scope", "Send", "header_values", "problem_of"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1
_TRY_AGAIN_LATER = 1013  # registered with IANA


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal, the same for every reason that leads to its status."""

    status: HTTPStatus
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._deny(scope, receive, send)
        else:
            await self._respond("http", send)

    async def _deny(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # "websocket.connect"; nothing may be sent before it
        if "websocket.http.response" in (scope.get("extensions") or {}):
            await self._respond("websocket.http", send)
        else:
            later = self.status == HTTPStatus.SERVICE_UNAVAILABLE
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER if later else _POLICY_VIOLATION})

    async def _respond(self, kind: str, send: Send) -> None:
        body = json.dumps({"type": "about:blank", "title": self.status.phrase, "status": int(self.status)}).encode()
        headers = {
            "content-type": "application/problem+json",
            "content-length": str(len(body)),
            "cache-control": "no-store",
            **self.headers,
        }
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": f"{kind}.response.start", "status": int(self.status), "headers": raw})
        await send({"type": f"{kind}.response.body", "body": body})


def problem_of(error: KmpError) -> Problem | None:
    """The refusal that an error of ours stands for, or None where it is the service's own fault or business."""
    match error:
        case Unauthenticated():
            # RFC 6750, section 3.1: no error code for a request that carried no credentials at all.
            code = "" if error.reason == "missing" else ', error="invalid_token"'
            return Problem(HTTPStatus.UNAUTHORIZED, {"www-authenticate": f'Bearer realm="kmp"{code}'})
        case PermissionDenied():
            challenge = 'Bearer realm="kmp", error="insufficient_scope"'
            return Problem(HTTPStatus.FORBIDDEN, {"www-authenticate": challenge})
        case Overloaded() | BreakerOpen():
            return Problem(HTTPStatus.SERVICE_UNAVAILABLE, {"retry-after": str(max(1, math.ceil(error.retry_after)))})
        case Unavailable():
            return Problem(HTTPStatus.SERVICE_UNAVAILABLE, {"retry-after": "1"})
        case DeadlineExceeded():
            return Problem(HTTPStatus.GATEWAY_TIMEOUT)
        case _:
            return None


def header_values(scope: Scope, name: bytes) -> list[str]:
    """All values of a header, `name` in lower case as ASGI has it."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
