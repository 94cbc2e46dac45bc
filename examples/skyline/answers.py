"""The questions that `delays` answers, each put to the store that can answer it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kmp_messaging import EventBus
from kmp_storage import Cache, GraphStore, Row, TimeSeriesStore
from skyline.figures import (
    ORIGINS,
    CacheUse,
    DelayByHour,
    DelayByMonth,
    Figures,
    GivenUp,
    Place,
    RouteDelay,
    Way,
)
from skyline.models import Airport, Delay, Route

__all__ = ["answer"]

_CLOCK = "America/New_York"
_WORST = 10
_FAR_APART = ("ANC", "MVY")


async def answer(
    store: TimeSeriesStore, graph: GraphStore, cache: Cache, bus: EventBus, *, dead_letters_of: str
) -> Figures:
    """Everything that the report tells of the flights."""
    flights, departed, mean = await _totals(store)
    flown = await graph.edges(Route)
    places = await _places(graph, flown)
    delays, never_flown = await _route_delays(store, places)
    at_least = max(3, min(100, flights // 2000))
    worst = [route for route in delays if route.departed >= at_least]
    statistics = await cache.statistics()
    return Figures(
        flights=flights,
        missing=flights - departed,
        mean=mean,
        airports=len(places),
        without_details=tuple(sorted(place.code for place in places.values() if place.name is None)),
        months=await _months(store),
        hours=await _hours(store),
        routes=tuple(delays),
        never_flown=tuple(never_flown),
        worst=tuple(sorted(worst, key=lambda route: -(route.mean or 0))[:_WORST]),
        worst_at_least=at_least,
        shared=tuple(sorted(await _shared(graph), key=lambda place: place.code)),
        way=await _way(graph, flown),
        cache=CacheUse(hits=statistics.hits, misses=statistics.misses, ratio=statistics.hit_ratio),
        dead_letters=tuple(
            [
                GivenUp(
                    key=letter.key,
                    type=letter.type,
                    cause=letter.cause,
                    detail=letter.detail,
                    attempts=letter.attempts,
                )
                async for letter in bus.dead_letters(group=dead_letters_of)
            ]
        ),
    )


async def _totals(store: TimeSeriesStore) -> tuple[int, int, float | None]:
    rows = await store.aggregate(Delay, values={"flight": "count", "minutes": ("count", "mean")})
    if not rows:
        return 0, 0, None
    return int(rows[0].values["flight_count"] or 0), _departed(rows[0]), rows[0].values["minutes_mean"]


async def _months(store: TimeSeriesStore) -> tuple[DelayByMonth, ...]:
    rows = await store.aggregate(Delay, every="1month", zone=_CLOCK, values={"minutes": ("count", "mean")})
    return tuple(
        DelayByMonth(month=row.time.month, departed=_departed(row), mean=row.values["minutes_mean"])
        for row in rows
        if row.time is not None
    )


async def _hours(store: TimeSeriesStore) -> tuple[DelayByHour, ...]:
    rows = await store.aggregate(Delay, every="1h", zone=_CLOCK, values={"minutes": ("count", "sum")})
    counts, sums = dict[int, int](), dict[int, float]()
    for row in rows:
        if row.time is not None:
            hour = row.time.hour
            counts[hour] = counts.get(hour, 0) + _departed(row)
            sums[hour] = sums.get(hour, 0.0) + (row.values["minutes_sum"] or 0.0)
    return tuple(
        DelayByHour(hour=hour, departed=count, mean=sums[hour] / count if count else None)
        for hour, count in sorted(counts.items())
    )


async def _route_delays(store: TimeSeriesStore, places: dict[str, Place]) -> tuple[list[RouteDelay], list[str]]:
    """The delays of every route that was flown, and the routes that were scheduled and never flown."""
    rows = await store.aggregate(Delay, by=("origin", "dest"), values={"minutes": ("count", "mean")})
    flown, never = list[RouteDelay](), list[str]()
    for row in rows:
        origin, dest = str(row.tags["origin"]), str(row.tags["dest"])
        departed = _departed(row)
        if departed:
            place = places.get(dest, Place(code=dest))
            flown.append(RouteDelay(origin=origin, dest=place, departed=departed, mean=row.values["minutes_mean"]))
        else:
            never.append(f"{origin} → {dest}")
    return sorted(flown, key=lambda route: (route.origin, route.dest.code)), sorted(never)


async def _places(graph: GraphStore, routes: Iterable[Route]) -> dict[str, Place]:
    codes = sorted({code for route in routes for code in (route.source, route.target)})
    return {code: _place(await graph.get(Airport, code) or Airport(code=code)) for code in codes}


async def _shared(graph: GraphStore) -> list[Place]:
    """Where one can fly to from each of New York's airports."""
    reached = list[dict[str, Place]]()
    for origin in ORIGINS:
        nodes = await graph.neighbours(Airport(code=origin), via=Route, only=Airport)
        reached.append({node.code: _place(node) for node in nodes})
    first, *others = reached
    return [place for code, place in first.items() if all(code in other for other in others)]


async def _way(graph: GraphStore, routes: Sequence[Route]) -> Way | None:
    pair = _far_apart(routes)
    if pair is None:
        return None
    start, end = (Airport(code=code) for code in pair)
    paths = await graph.paths(start, end, via=Route, direction="both")
    if not paths:
        return None
    miles = sum(edge.miles or 0 for edge in paths[0].edges if isinstance(edge, Route))
    return Way(stops=tuple(_place(node) for node in paths[0].nodes if isinstance(node, Airport)), miles=miles)


def _far_apart(routes: Iterable[Route]) -> tuple[str, str] | None:
    """Two cities that no airport of New York serves both, so that the way between them is a long one."""
    served = dict[str, set[str]]()
    for route in routes:
        if route.target not in ORIGINS:
            served.setdefault(route.target, set()).add(route.source)
    if all(code in served for code in _FAR_APART):
        return _FAR_APART
    codes = sorted(served)
    return next(((a, b) for a in codes for b in codes if a < b and not served[a] & served[b]), None)


def _departed(row: Row) -> int:
    return int(row.values["minutes_count"] or 0)


def _place(airport: Airport) -> Place:
    return Place(code=airport.code, name=airport.name, latitude=airport.latitude, longitude=airport.longitude)
