"""What the services of project `skyline` say to each other, and what they store."""

from __future__ import annotations

from pydantic import Field

from kmp_messaging import Event
from kmp_storage import Edge, Measurement, Node

__all__ = ["Airport", "Delay", "Departed", "Route"]


class Departed(Event, topic="flights.departed", key="origin"):
    """A scheduled departure; `time` is the schedule's, and `minutes` is None where the plane never left."""

    carrier: str
    flight: int
    origin: str = Field(pattern="^(EWR|JFK|LGA)$")
    dest: str
    miles: int
    minutes: float | None


class Delay(Measurement, series="delays", tags=("origin", "dest"), unique=("carrier", "flight", "origin")):
    """One departure and its delay.

    Carriers reuse each other's flight numbers, and one flight may leave two of the airports on one day: only time,
    carrier, number and origin together tell a departure from another, so that a redelivered event is not counted.
    """

    carrier: str
    flight: int
    origin: str
    dest: str
    minutes: float | None


class Airport(Node, label="Airport", key="code"):
    """A place to fly to. One that is not in the airports file is known by its code alone."""

    code: str
    name: str | None = None
    latitude: float | None = None
    longitude: float | None = None


class Route(Edge, type="ROUTE", source=Airport, target=Airport):
    """Somebody flew there at least once."""

    miles: int | None = None
