"""The service `departures` of project `skyline`: tells of every flight that was to leave New York in 2013."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice

import httpx

import kmp_core
from kmp_core import Service, deadline
from kmp_core.errors import BackendError
from kmp_core.http import ClientCredentials, client
from kmp_core.logs import get_logger
from kmp_messaging import Event, EventBus
from skyline import data
from skyline.figures import Progress, Written
from skyline.models import Departed
from skyline.settings import SkylineSettings

log = get_logger(__name__)


class Garbled(Event, topic="flights.departed", key="origin", type="Departed"):
    """A departure as a broken sender would write it: the delay is a word, and half of the fields are missing."""

    origin: str
    minutes: str


class Diverted(Event, topic="flights.departed", key="origin"):
    """A kind of event that `delays` has never heard of."""

    origin: str
    dest: str


async def publish(bus: EventBus, flights: Iterator[Departed], *, rows: int, malformed: Iterator[Event]) -> None:
    """Publish every flight in batches of `rows`, and after each of the first batches one malformed event."""
    published = spoiled = 0
    while batch := list(islice(flights, rows)):
        spoilt = list(islice(malformed, 1))
        await bus.publish(*batch, *spoilt)
        published, spoiled = published + len(batch), spoiled + len(spoilt)
        log.info("published", flights=published, malformed=spoiled)
    rest = list(malformed)
    if rest:
        await bus.publish(*rest)
        log.info("published", flights=published, malformed=spoiled + len(rest))


def departed(flight: data.Flight) -> Departed:
    """The event that tells of a flight."""
    return Departed(
        time=flight.time,
        carrier=flight.carrier,
        flight=flight.number,
        origin=flight.origin,
        dest=flight.dest,
        miles=flight.miles,
        minutes=flight.delay,
    )


def broken() -> Iterator[Event]:
    """Events that `delays` can only give up, each for another reason."""
    good = next(map(departed, data.flights(1)))
    yield Garbled(origin="EWR", minutes="an hour or so")
    yield Diverted(origin="JFK", dest="PHL")
    yield good.model_copy(update={"origin": "XXX"})
    yield good.model_copy(update={"minutes": float("nan")})


async def ask(delays: httpx.AsyncClient, method: str, path: str) -> bytes:
    """Call `delays`, which may be away for a while and come back: our calls may all be repeated."""
    while True:
        try:
            return (await delays.request(method, path)).raise_for_status().content
        except BackendError as error:
            if not error.retryable:
                raise
            log.warning("delays does not answer", error=type(error).__name__)
            await asyncio.sleep(0.2)


async def caught_up(delays: httpx.AsyncClient) -> None:
    """Return when `delays` has handled everything."""
    while True:
        progress = Progress.model_validate_json(await ask(delays, "GET", "/progress"))
        if progress.behind == 0:
            return
        await asyncio.sleep(0.1)


async def main() -> None:
    """Publish everything, see that it is handled, and ask for the report; told to stop, ask for it at once."""
    settings = SkylineSettings.load()
    async with (
        Service("departures") as service,
        ClientCredentials(
            f"{settings.authority}/token", client_id=settings.client_id, secret=settings.client_secret
        ) as tokens,
        client(settings.delays, tokens=tokens, audience="delays", timeout="30s") as delays,
    ):
        bus = await service.get(EventBus)

        async def work() -> None:
            await ask(delays, "GET", "/progress")
            flights = map(departed, data.flights(settings.limit))
            await publish(bus, flights, rows=settings.batch_rows, malformed=broken())
            await caught_up(delays)
            service.stop()

        service.start_task(work(), name="work")
        await service.run()
        async with deadline("20s", what="asking for the report"):
            report = Written.model_validate_json(await ask(delays, "PUT", "/report"))
        log.info("reported", key=report.key, flights=report.flights)


if __name__ == "__main__":
    kmp_core.run(main)
