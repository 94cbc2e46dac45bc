"""What the embedded time-series store adds to bare SQLite: the same rows, tables, indexes and transactions.

Bare is `executemany` of ready tuples in the calling thread; ours takes models, checks every value, goes through the
store's thread, ignores rows that are there already and refuses conflicts. Both sync each transaction to the disk.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kmp_storage import Measurement
from kmp_storage.embedded.timeseries import SqliteTimeSeriesStore

ROUNDS = 5
ROWS = 100_000
BATCH = 500
START = datetime(2013, 1, 1, tzinfo=UTC)


class Delay(Measurement, series="delays", tags=("origin",), unique=("flight",)):
    flight: str
    origin: str
    minutes: float | None


MODELS = [
    Delay(
        time=START + timedelta(seconds=number),
        flight=f"UA{number % 3000}",
        origin=("JFK", "LGA", "EWR")[number % 3],
        minutes=None if number % 40 == 0 else number * 0.25,
    )
    for number in range(ROWS)
]
TUPLES = [(int(row.time.timestamp()) * 1_000_000, row.flight, row.origin, row.minutes) for row in MODELS]


def bare(directory: Path, batch: int) -> float:
    """Seconds for ready tuples into the table that the store would make."""
    connection = sqlite3.connect(directory / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE s (time INTEGER NOT NULL, flight TEXT, origin TEXT, minutes REAL) STRICT")
    connection.execute("CREATE UNIQUE INDEX k ON s (time, flight)")
    connection.execute("CREATE INDEX t ON s (origin, time)")
    began = time.perf_counter()
    for begin in range(0, ROWS, batch):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO s VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", TUPLES[begin : begin + batch]
        )
        connection.execute("COMMIT")
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


async def batches(store: SqliteTimeSeriesStore) -> None:
    for begin in range(0, ROWS, BATCH):
        await store.append(*MODELS[begin : begin + BATCH])


async def stream(store: SqliteTimeSeriesStore) -> None:
    await store.append_all(iter(MODELS))


async def read(store: SqliteTimeSeriesStore) -> None:
    async for _ in store.read(Delay):
        pass


async def monthly(store: SqliteTimeSeriesStore) -> None:
    await store.aggregate(Delay, every="1d", values={"minutes": "mean"}, by=("origin",), zone="America/New_York")


async def ours(directory: Path, work: Callable[[SqliteTimeSeriesStore], Coroutine[Any, Any, None]]) -> list[float]:
    """Seconds for the work, for reading all rows back, and for an aggregate over them."""
    async with SqliteTimeSeriesStore(directory=directory) as store:
        taken = []
        for step in (work, read, monthly):
            began = time.perf_counter()
            await step(store)
            taken.append(time.perf_counter() - began)
        return taken


def main() -> None:
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, batch, work in ((f"batches of {BATCH}", BATCH, batches), ("one stream", ROWS, stream)):
            with tempfile.TemporaryDirectory() as directory:
                found.setdefault(f"bare, {name}", []).append(bare(Path(directory), batch))
                appended, reading, asking = asyncio.run(ours(Path(directory), work))
            found.setdefault(f"ours, {name}", []).append(appended)
            found.setdefault("read back as models", []).append(reading)
            found.setdefault("mean per day, origin and zone", []).append(asking)
    for name, seconds in found.items():
        print(f"{name:<32} {ROWS / statistics.median(seconds):>10,.0f} rows/s   median of {len(seconds)}")
    for name in (f"batches of {BATCH}", "one stream"):
        pairs = zip(found[f"bare, {name}"], found[f"ours, {name}"], strict=True)
        print(f"ratio, {name:<25} {statistics.median(bare_s / ours_s for bare_s, ours_s in pairs):>10.2f}")


if __name__ == "__main__":
    main()
