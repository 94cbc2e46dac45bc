"""Stay useful under more load than you can serve: refuse early, and let no caller live at the others' cost.

A fixed number of requests run at once, a bounded number wait for a place, and the rest are answered 503 with
`Retry-After` while that is still cheap. A free place goes to the waiting caller that has the fewest at work. When the
queue is full the longest line in it gives way to a caller with a shorter one. A request whose remaining time cannot
be met is refused at once rather than served for nobody.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from pydantic import Field

from kmp_core.asgi.fairness import FairQueue
from kmp_core.asgi.problems import ASGIApp, Receive, Scope, Send, problem_of
from kmp_core.deadlines import Duration, duration, remaining
from kmp_core.errors import Overloaded
from kmp_core.settings import Settings
from kmp_core.tokens.principal import current_caller

__all__ = ["Overload", "OverloadSettings"]


class OverloadSettings(Settings, prefix="core.overload"):
    """How many requests a service takes on at once."""

    concurrency: int = Field(100, ge=1, le=100_000)
    """Requests served at the same time, at most."""

    queue_length: int = Field(200, ge=0, le=1_000_000)
    """Requests that may wait for a place; beyond it they are refused."""

    queue_timeout: Duration = duration("1s")
    """How long a request may wait for a place before it is refused."""

    caller_share: float = Field(0.8, gt=0, le=1)
    """The part of `concurrency` that one caller may hold; the rest is kept for the others, even while it is idle."""

    websockets: int = Field(1000, ge=0, le=1_000_000)
    """WebSocket connections open at the same time, at most; one caller may hold `caller_share` of them."""


class Overload:
    """Bound what a service takes on, fairly between its callers.

    A caller is the service that `Authentication`, which stands outside of this, has proved; else the client's address
    (for IPv6 its /64 network). GET and HEAD of the paths in `exempt` are always served, so that a busy service is not
    taken for a dead one.
    """

    def __init__(self, app: ASGIApp, *, settings: OverloadSettings | None = None, exempt: Collection[str] = ()) -> None:
        settings = OverloadSettings.load() if settings is None else settings
        self._app = app
        self._exempt = frozenset(exempt)
        self._wait = settings.queue_timeout.total_seconds()
        share = settings.caller_share
        self._requests = FairQueue(settings.concurrency, settings.queue_length, share=share)
        self._sockets = FairQueue(settings.websockets, 0, share=share)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket") or (
            kind == "http" and scope["path"] in self._exempt and scope["method"] in ("GET", "HEAD")
        ):
            await self._app(scope, receive, send)
            return
        queue = self._requests if kind == "http" else self._sockets
        caller = caller_key(scope)
        try:
            began = await queue.enter(caller, timeout=self._wait, deadline=remaining())
        except Overloaded as error:
            problem = problem_of(error)
            assert problem is not None
            await problem(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            queue.leave(caller, began)


def caller_key(scope: Scope) -> str:
    """Whose share a request counts against."""
    principal = current_caller()
    if principal is not None:
        return principal.subject
    client = scope.get("client")
    address = client[0] if client else ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return f"address {address}"  # a Unix socket has none
    if parsed.version == 6:
        # One host has a whole /64 to call from.
        parsed = ipaddress.IPv6Network((parsed, 64), strict=False).network_address
    return f"address {parsed}"
