"""The service `delays` of project `skyline`: hears of every departure, remembers it, and answers for it.

It serves HTTP, so the web framework runs it: `service.lifespan` opens what it needs and closes it in order.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import APIRouter, Depends, FastAPI

import kmp_core
from kmp_core import Service
from kmp_core.asgi import Inbound, require
from kmp_core.logs import get_logger
from kmp_core.tokens import StaticKeysVerifier
from kmp_core.tokens.principal import Principal
from kmp_messaging import EventBus
from kmp_storage import Bucket, Cache, Edge, GraphStore, Node, TimeSeriesStore
from kmp_storage.cache import TypedCache
from skyline import data
from skyline.answers import answer
from skyline.figures import Progress, Written
from skyline.models import Airport, Delay, Departed, Route
from skyline.settings import SkylineSettings

GROUP = "delays"
REPORT = "reports/figures.json"

log = get_logger(__name__)
service = Service("delays")
routes = APIRouter()
Caller = Annotated[Principal, Depends(require(project="skyline"))]


class Recorder:
    """Handles departures: into the time series, into the graph, with what is known of the airports."""

    def __init__(self, store: TimeSeriesStore, graph: GraphStore, airports: TypedCache[Airport]) -> None:
        self._store = store
        self._graph = graph
        self._airports = airports
        self._merged = set[Node | Edge]()

    async def record(self, events: Sequence[Departed]) -> None:
        """Store a batch. Everything here may happen again with the same events, and then changes nothing."""
        delays = [_delay(event) for event in events]
        new = await self._store.append(*delays)
        routes = {(event.origin, event.dest): event.miles for event in events if event.minutes is not None}
        codes = sorted({code for event in events for code in (event.origin, event.dest)})
        airports = await asyncio.gather(*(self._airport(code) for code in codes))
        edges = [Route(source=origin, target=dest, miles=miles) for (origin, dest), miles in routes.items()]
        # The same few hundred come in every batch; after a restart all are merged again, which changes nothing.
        found: list[Node | Edge] = [*airports, *edges]
        unseen = set(found) - self._merged
        if unseen:
            await self._graph.merge(*unseen)
            self._merged |= unseen
        log.info("handled", events=len(events), new=new)

    async def _airport(self, code: str) -> Airport:
        async def look_up() -> Airport | None:
            row = await asyncio.to_thread(data.airport, code)
            if row is None:
                return None
            return Airport(code=code, name=row.name, latitude=row.latitude, longitude=row.longitude)

        # Four destinations are in no file; that is worth remembering too.
        return await self._airports.get_or_load(code, look_up, negative_ttl="1h") or Airport(code=code)


def _delay(event: Departed) -> Delay:
    return Delay(
        time=event.time,
        carrier=event.carrier,
        flight=event.flight,
        origin=event.origin,
        dest=event.dest,
        minutes=event.minutes,
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Open what the service needs, and handle departures while it runs."""
    async with service.lifespan(app):
        store, graph = await service.get(TimeSeriesStore), await service.get(GraphStore)
        cache, bus = await service.get(Cache), await service.get(EventBus)
        await service.get(Bucket)
        recorder = Recorder(store, graph, cache.of(Airport, ttl="1h"))
        rows = SkylineSettings.load().batch_rows
        bus.subscribe_batch(Departed, recorder.record, group=GROUP, retries=3, size=rows)
        log.info("ready")
        yield


@routes.get("/progress")
async def progress(caller: Caller) -> Progress:
    """How many departures wait to be handled."""
    bus = await service.get(EventBus)
    lag = await bus.lag(Departed, group=GROUP)
    return Progress(behind=lag.events)


@routes.put("/report")
async def report(caller: Caller) -> Written:
    """Answer all questions, and keep the answers in the bucket."""
    figures = await answer(
        await service.get(TimeSeriesStore),
        await service.get(GraphStore),
        await service.get(Cache),
        await service.get(EventBus),
        dead_letters_of=GROUP,
    )
    bucket = await service.get(Bucket)
    content = figures.model_dump_json(indent=2).encode()
    await bucket.put(REPORT, content, content_type="application/json")
    return Written(key=REPORT, flights=figures.flights)


def application(settings: SkylineSettings) -> FastAPI:
    """The service as an ASGI application: nobody gets in without a token of ours, but for the health endpoints."""
    app = FastAPI(title="delays", lifespan=lifespan)
    app.include_router(routes)
    app.mount("/health", service.health.app)
    verifier = StaticKeysVerifier(
        settings.public_keys(), issuer=settings.authority, audience="delays", trust_domain=settings.trust_domain
    )
    app.add_middleware(Inbound, verifier=verifier)
    return app


async def main() -> None:
    """Serve until told to stop."""
    settings = SkylineSettings.load()
    with socket.create_server(("127.0.0.1", settings.port)) as listener:
        server = uvicorn.Server(uvicorn.Config(application(settings), log_config=None, access_log=False))
        await server.serve(sockets=[listener])


if __name__ == "__main__":
    kmp_core.run(main)
