"""Let nobody in whom you cannot name: `app.add_middleware(Inbound, verifier=verifier)`.

`Inbound` is the whole of it, in the right order: trace and deadline (`kmp_core.asgi.inbound`), the caller's token
(`Authentication`), then overload (`kmp_core.asgi.overload`), which needs to know the caller to be fair. Each works
alone. All are plain ASGI, for Starlette, FastAPI and everything else that speaks it.

    @app.get("/delays")
    async def delays(principal: Annotated[Principal, Depends(require(project="skyline"))]) -> list[Delay]: ...
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any

import structlog

from kmp_core.asgi.inbound import MAX_TIMEOUT, RequestContext
from kmp_core.asgi.overload import Overload, OverloadSettings
from kmp_core.asgi.problems import ASGIApp, Receive, Scope, Send, header_values, problem_of
from kmp_core.deadlines import Timeout
from kmp_core.errors import InvalidInput, KmpError, Unauthenticated
from kmp_core.project import Project, ServiceName
from kmp_core.tokens import TokenVerifier
from kmp_core.tokens.principal import Principal, acting_as, caller

__all__ = ["HEALTH_PATHS", "Authentication", "Inbound", "Require", "require"]

HEALTH_PATHS = tuple(prefix + path for prefix in ("", "/health") for path in ("/livez", "/readyz", "/startupz"))
"""What a kubelet asks without a token."""


class Authentication:
    """Prove the caller of every request, and answer 401 to all others, telling them nothing.

    The `Principal` is in `scope["state"]["principal"]` (`request.state.principal`), at
    `kmp_core.tokens.principal.caller()`, and its project and service are in every log line as `caller_project` and
    `caller_service`. `exempt` names the paths, exactly as they are requested, that GET and HEAD may read without a
    token. A WebSocket is refused before it is accepted.
    """

    def __init__(self, app: ASGIApp, *, verifier: TokenVerifier, exempt: Collection[str] = HEALTH_PATHS) -> None:
        self._app = app
        self._verifier = verifier
        self._exempt = _paths(exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _is_exempt(scope, self._exempt):
            await self._app(scope, receive, send)
            return
        try:
            principal = await self._verifier.verify(_bearer(scope))
        except KmpError as error:
            problem = problem_of(error)
            if problem is None:
                raise
            _log().info("request refused", reason=getattr(error, "reason", type(error).__name__))
            await problem(scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {}), "principal": principal}
        names = {"caller_project": str(principal.project), "caller_service": str(principal.service)}
        with acting_as(principal), structlog.contextvars.bound_contextvars(**names):
            await self._app(scope, receive, send)


class Require:
    """Keep a whole application, or a mounted part of one, for the callers named; 403 for others.

    Stands inside `Authentication`: `Mount("/internal", Require(routes, project="skyline"))`.
    """

    def __init__(
        self, app: ASGIApp, *, project: str | None = None, service: str | None = None, scope: str | None = None
    ) -> None:
        self._app = app
        self._guard = require(project=project, service=service, scope=scope)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                await self._guard()
            except KmpError as error:
                problem = problem_of(error)
                if problem is None:
                    raise
                await problem(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Inbound:
    """All that stands before a service's own code, in one: context and deadline, authentication, overload."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        verifier: TokenVerifier,
        exempt: Collection[str] = HEALTH_PATHS,
        max_timeout: Timeout = MAX_TIMEOUT,
        overload: OverloadSettings | None = None,
    ) -> None:
        guarded = Overload(app, settings=overload, exempt=exempt)
        self._app = RequestContext(Authentication(guarded, verifier=verifier, exempt=exempt), max_timeout=max_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def require(
    *, project: str | None = None, service: str | None = None, scope: str | None = None
) -> Callable[[], Coroutine[Any, Any, Principal]]:
    """A guard for one endpoint: await it, or give it to FastAPI's `Depends`; it returns the principal.

    It raises `PermissionDenied`, which `RequestContext` answers with 403, and `Unauthenticated` (401) where nobody was
    proved. A guard that demands nothing is refused when it is made, with `InvalidInput`.
    """
    if project is None and service is None and scope is None:
        raise InvalidInput("require", "names nothing that is required", example='require(project="skyline")')
    owner = None if project is None else Project(project)
    name = None if service is None else ServiceName(service)

    async def guard() -> Principal:
        principal = caller()
        principal.require(project=owner, service=name, scope=scope)
        return principal

    return guard


def _bearer(scope: Scope) -> str:
    values = header_values(scope, b"authorization")
    if not values:
        raise Unauthenticated("missing")
    # Two headers are two opinions on who is calling.
    kind, space, token = values[0].partition(" ")
    if len(values) != 1 or not space or kind.lower() != "bearer":
        raise Unauthenticated("malformed")
    return token


def _is_exempt(scope: Scope, paths: frozenset[str]) -> bool:
    return scope["type"] == "http" and scope["path"] in paths and scope["method"] in ("GET", "HEAD")


def _paths(paths: Collection[str]) -> frozenset[str]:
    if isinstance(paths, str):
        raise InvalidInput("exempt", "must be a list of paths, not one text", example='("/livez", "/readyz")')
    for path in paths:
        if not path.startswith("/"):
            raise InvalidInput("exempt", "holds a path that does not begin with '/'", example='"/livez"')
    return frozenset(paths)


def _log() -> Any:
    return structlog.get_logger("kmp_core.asgi")
