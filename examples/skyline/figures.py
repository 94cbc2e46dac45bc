"""What the job finds out, as values: `delays` writes them into its bucket, the launcher adds what it saw of the run."""

from __future__ import annotations

import signal
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "Attempt",
    "CacheUse",
    "DelayByHour",
    "DelayByMonth",
    "Figures",
    "GivenUp",
    "Place",
    "ProcessUse",
    "Progress",
    "Result",
    "RouteDelay",
    "Run",
    "Way",
    "Written",
]

ORIGINS = ("EWR", "JFK", "LGA")
"""New York's airports: Newark, John F. Kennedy and LaGuardia."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Place(_Value):
    """An airport; one that is not in the airports file has only its code."""

    code: str
    name: str | None = None
    latitude: float | None = None
    longitude: float | None = None


class DelayByMonth(_Value):
    """`mean` is in minutes, over the flights that departed; None where none did."""

    month: int
    departed: int
    mean: float | None


class DelayByHour(_Value):
    """`hour` is the scheduled hour on the clock of New York."""

    hour: int
    departed: int
    mean: float | None


class RouteDelay(_Value):
    """One route, with its mean delay in minutes over the flights that departed."""

    origin: str
    dest: Place
    departed: int
    mean: float | None


class Way(_Value):
    """The shortest way between two cities that no flight connects, every route walked in both directions."""

    stops: tuple[Place, ...]
    miles: int

    @property
    def legs(self) -> int:
        return len(self.stops) - 1


class GivenUp(_Value):
    """A dead letter: what was given up, and why."""

    key: str | None
    type: str
    cause: str
    detail: str
    attempts: int


class CacheUse(_Value):
    """How the cache of airports served since `delays` was last started."""

    hits: int
    misses: int
    ratio: float


class Figures(_Value):
    """What `delays` answers after it has handled the flights."""

    flights: int
    missing: int
    mean: float | None
    airports: int
    without_details: tuple[str, ...]
    months: tuple[DelayByMonth, ...]
    hours: tuple[DelayByHour, ...]
    routes: tuple[RouteDelay, ...]
    never_flown: tuple[str, ...]
    worst: tuple[RouteDelay, ...]
    worst_at_least: int
    shared: tuple[Place, ...]
    way: Way | None
    cache: CacheUse
    dead_letters: tuple[GivenUp, ...]


class Progress(_Value):
    """What `delays` says of its work: how many events wait for it."""

    behind: int


class Written(_Value):
    """What `delays` says of a report: where in its bucket it is, and of how many flights it tells."""

    key: str
    flights: int


class Attempt(_Value):
    """One thing that the neighbour tried. `refused_by` is None where nobody refused."""

    what: str
    refused_by: Literal["token", "service", "server", "guard"] | None
    answer: str


class ProcessUse(_Value):
    """One operating-system process of the run. Killed and started again, it has one entry per start.

    `busy_seconds` is processor time, over all cores.
    """

    service: str
    project: str
    pid: int
    seconds: float
    busy_seconds: float
    peak_bytes: int
    exit_code: int | None

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        match self.exit_code:
            case None:
                return "still running"
            case -15:  # uvicorn closes everything in order, and then ends by the signal that told it to
                return "told to leave"
            case code if code < 0:
                return f"killed by {signal.Signals(-code).name}"
            case code:
                return f"exit code {code}"


class Run(_Value):
    """How the run went. `peak_bytes` is the highest sum over all processes at one moment, shared pages included."""

    started: datetime
    seconds: float
    published: int
    malformed: int
    events_per_second: float
    peak_bytes: int
    kills: int
    interrupted: bool
    processes: tuple[ProcessUse, ...]


class Result(_Value):
    """All that the launcher knows at the end. `figures` is None where the run was ended before there were any."""

    run: Run
    figures: Figures | None
    attempts: tuple[Attempt, ...]
