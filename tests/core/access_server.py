"""A service of its own process for the access tests: prints one line of JSON, then serves until SIGTERM.

access_server.py starlette|fastapi JWKS-FILE [OVERLOAD-JSON [ISSUER]]     SIGHUP reads the keys again
access_server.py authority
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import structlog
import uvicorn
from fastapi import Depends, FastAPI
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from kmp_core.asgi import Inbound, Require, require
from kmp_core.asgi.overload import OverloadSettings
from kmp_core.deadlines import remaining
from kmp_core.tokens import StaticKeysVerifier
from kmp_core.tokens.authority import DevelopmentAuthority
from kmp_core.tokens.principal import Principal, caller

COUNTS: dict[str, int] = {}


def describe() -> dict[str, Any]:
    span = trace.get_current_span().get_span_context()
    left = remaining()
    return {
        "project": caller().project,
        "service": caller().service,
        "log": structlog.contextvars.get_contextvars(),
        "trace_id": f"{span.trace_id:032x}",
        "remaining": left,
    }


async def whoami(request: Request) -> Response:
    assert request.state.principal == caller()
    return JSONResponse({**describe(), "authorization": request.headers.get("authorization")})


async def secret(request: Request) -> Response:
    await require(project="harbour")()
    return PlainTextResponse("for harbour")


async def count(request: Request) -> Response:
    """Counts the call under `key`, and answers with the next of the statuses that are asked for."""
    key = request.query_params["key"]
    COUNTS[key] = number = COUNTS.get(key, 0) + 1
    statuses = request.query_params.get("statuses", "200").split(",")
    status = int(statuses[min(number, len(statuses)) - 1])
    body = await request.body()
    await asyncio.sleep(float(request.query_params.get("seconds", "0")))
    headers = {"retry-after": "0"} if status == 503 else {}
    return JSONResponse({"count": number, "size": len(body)}, status_code=status, headers=headers)


async def counted(request: Request) -> Response:
    return JSONResponse(COUNTS.get(request.query_params["key"], 0))


async def slow(request: Request) -> Response:
    try:
        await asyncio.sleep(float(request.query_params["seconds"]))
    except asyncio.CancelledError:
        COUNTS["cancelled"] = COUNTS.get("cancelled", 0) + 1
        raise
    return PlainTextResponse("at last")


async def stream(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield b"more"
            await asyncio.sleep(0.05)

    return StreamingResponse(chunks())


async def elsewhere(request: Request) -> Response:
    return RedirectResponse(request.query_params["to"], status_code=307)


async def socket_endpoint(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json(describe())
    await websocket.close()


async def livez(request: Request) -> Response:
    return PlainTextResponse("alive")


def starlette_app(lifespan: Any) -> Any:
    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/whoami", whoami),
            Route("/secret", secret),
            Mount("/internal", Require(Starlette(routes=[Route("/page", livez)]), project="harbour")),
            Route("/count", count, methods=["GET", "POST", "PUT", "DELETE"]),
            Route("/counted", counted),
            Route("/slow", slow),
            Route("/stream", stream),
            Route("/elsewhere", elsewhere, methods=["GET", "POST"]),
            Route("/livez", livez, methods=["GET", "POST"]),
            WebSocketRoute("/socket", socket_endpoint),
        ],
    )


def fastapi_app(lifespan: Any) -> Any:
    app = FastAPI(lifespan=lifespan)

    @app.get("/whoami")
    async def whoami_endpoint(principal: Annotated[Principal, Depends(require(project="skyline"))]) -> dict[str, Any]:
        return {**describe(), "guarded": principal.service}

    @app.get("/secret")
    def secret_endpoint(principal: Annotated[Principal, Depends(require(project="harbour"))]) -> str:
        return f"for {principal.project}"

    app.router.routes.extend(starlette_app(None).routes[2:])
    return app


def listen(announcement: dict[str, Any], listener: socket.socket, app: Any) -> None:
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    print(json.dumps(announcement), flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def serve_service(listener: socket.socket, url: str, kind: str, keys: Path, overload: str, issuer: str) -> None:
    verifier = StaticKeysVerifier(
        json.loads(keys.read_text()), issuer=issuer, audience="delays", trust_domain="kmp.local"
    )

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        reload = lambda: verifier.replace_keys(json.loads(keys.read_text()))  # noqa: E731
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        yield

    app = {"starlette": starlette_app, "fastapi": fastapi_app}[kind](lifespan)
    app.add_middleware(Inbound, verifier=verifier, max_timeout="5s", overload=OverloadSettings(**json.loads(overload)))
    listen({"url": url}, listener, app)


def serve_authority(listener: socket.socket, url: str) -> None:
    authority = DevelopmentAuthority(issuer=url, ttl="60s")
    credential = authority.register("skyline", "departures", audiences=["delays", "archive"])
    announcement = {
        "url": url,
        "client_id": credential.client_id,
        "secret": credential.secret.get_secret_value(),
        "jwks": authority.jwks(),
    }
    listen(announcement, listener, authority.app())


def main() -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # before it is announced: a connection that comes early waits
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    if sys.argv[1] == "authority":
        serve_authority(listener, url)
    else:
        defaults = ["", "", "{}", "http://localhost:8400"]
        kind, keys, overload, issuer = sys.argv[1:] + defaults[len(sys.argv) - 1 :]
        serve_service(listener, url, kind, Path(keys), overload, issuer)


if __name__ == "__main__":
    main()
