"""How fast measurements go into a hypertable, against asyncpg's COPY of ready tuples, in one process and one run.

    python benchmarks/timescale.py --url 'timescale://bench:…@127.0.0.1:5432/bench?sslmode=disable' [--rows 1000000]

Both sides write the same rows into tables of the same shape with the same indexes. KMP gets models from a generator
that cycles 10,000 of them, and checks every value; the bare driver gets tuples that are ready. `unique` is compared
with a staging table and ON CONFLICT DO NOTHING by hand. Also: what a reset costs, and memory over a long append and its
aggregate, which end with `--minutes` (`--rounds 0`: nothing but that).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from kmp_core.deadlines import deadline
from kmp_core.errors import KmpError
from kmp_core.project import Project, backend_name
from kmp_storage.models import Measurement
from kmp_storage.timescale import TimescaleSettings, TimescaleStore

PREBUILT = 10_000
BUDGET = 0.93
START = datetime(2024, 1, 1, tzinfo=UTC)
COLUMNS = ("time", "site", "flight", "minutes")


class Sample(Measurement, series="bench_samples", tags=("site",)):
    site: str
    flight: int
    minutes: float | None


class Unique(Measurement, series="bench_unique", tags=("site",), unique=("flight",)):
    site: str
    flight: int
    minutes: float | None


def values(number: int) -> dict[str, Any]:
    time_ = START + timedelta(seconds=number)
    return {"time": time_, "site": f"s{number % 50}", "flight": number, "minutes": number % 90 / 2}


def tuples(models: list[Any]) -> list[tuple[Any, ...]]:
    return [(m.time, m.site, m.flight, m.minutes) for m in models]


async def kmp_append(store: TimescaleStore, models: list[Any], count: int) -> None:
    assert await store.append_all(islice(cycle(models), count)) == count


async def raw_append(store: TimescaleStore, rows: list[tuple[Any, ...]], count: int) -> None:
    async with store.pool.acquire(reset=False) as connection:
        driver = connection._driver
        await driver.copy_records_to_table("raw_samples", records=islice(cycle(rows), count), columns=COLUMNS)


async def kmp_unique(store: TimescaleStore, models: list[Any], count: int) -> None:
    assert await store.append_all(iter(models)) == count


async def raw_unique(store: TimescaleStore, rows: list[tuple[Any, ...]], count: int) -> None:
    async with store.pool.acquire(reset=False) as connection:
        driver = connection._driver
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        async with driver.transaction():
            await driver.execute("CREATE TEMP TABLE stage (LIKE raw_unique) ON COMMIT DROP")
            await driver.copy_records_to_table("stage", records=rows, columns=COLUMNS)
            tag = await driver.execute(
                f'INSERT INTO raw_unique ({names}) SELECT {names} FROM stage ON CONFLICT ("time", flight) DO NOTHING'
            )
            assert tag == f"INSERT 0 {count}"


Contender = Callable[[TimescaleStore, list[Any], int], Awaitable[None]]


async def measure(
    store: TimescaleStore, work: Contender, rows: list[Any], count: int, table: str
) -> tuple[float, float]:
    """Rows per second, and seconds of this process's processor per row."""
    async with store.connection() as connection:
        await connection.execute(f"TRUNCATE {table}")
    await asyncio.sleep(0.2)
    began, processor = time.perf_counter(), time.process_time()
    await work(store, rows, count)
    return count / (time.perf_counter() - began), (time.process_time() - processor) / count


async def prepare(store: TimescaleStore) -> None:
    """Tables of the bare side with what the store gave its own: same columns, indexes and chunks."""
    await store.append(Sample(**values(0)), Unique(**values(0)))
    async with store.connection() as connection:
        for ours, raw in (("bench_samples", "raw_samples"), ("bench_unique", "raw_unique")):
            await connection.execute(f"DROP TABLE IF EXISTS {raw}; CREATE TABLE {raw} (LIKE {ours} INCLUDING ALL)")
            if store.tier != "plain":
                await connection.execute(
                    f"SELECT create_hypertable('{raw}', 'time', chunk_time_interval => interval '7 days', "
                    "create_default_indexes => false)"
                )


async def compare(
    store: TimescaleStore, title: str, sides: dict[str, tuple[Contender, list[Any], str]], count: int, rounds: int
) -> float:
    rates: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, (work, rows, table) in list(sides.items())[:: 1 if number % 2 else -1]:
            rate, seconds = await measure(store, work, rows, count, table)
            rates[name].append(rate)
            cpu[name].append(seconds)
    bare, ours = (statistics.median(rates[name]) for name in ("bare", "kmp"))
    paired = statistics.median(o / b for o, b in zip(rates["kmp"], rates["bare"], strict=True))
    print(f"{title}: bare {bare:,.0f} rows/s, kmp {ours:,.0f} rows/s, ratio {ours / bare:.3f} (of pairs {paired:.3f})")
    spent = {name: statistics.median(found) * 1e9 for name, found in cpu.items()}
    print(f"    processor time of this process: bare {spent['bare']:,.0f} ns a row, kmp {spent['kmp']:,.0f} ns a row")
    return ours / bare


async def reset_cost(store: TimescaleStore, count: int = 1000) -> None:
    taken = {}
    for reset in (False, True):
        began = time.perf_counter()
        for _ in range(count):
            async with store.pool.acquire(reset=reset) as connection:
                await connection.fetch_value("SELECT 1")
        taken[reset] = (time.perf_counter() - began) / count
    print(
        f"a query on a pooled connection: {taken[False] * 1e6:,.0f} us, with the reset {taken[True] * 1e6:,.0f} us "
        f"(the reset costs {(taken[True] - taken[False]) * 1e6:,.0f} us)"
    )


async def flat(store: TimescaleStore, models: list[Any], count: int) -> None:
    readings: list[int] = []

    def source() -> Iterator[Any]:
        for number, model in enumerate(islice(cycle(models), count)):
            if number % (count // 10) == 0:
                readings.append(resident())
            yield model

    async with store.connection() as connection:
        await connection.execute("TRUNCATE bench_samples")
    began = time.perf_counter()
    await store.append_all(source())
    appended = time.perf_counter() - began
    began = time.perf_counter()
    rows = await store.aggregate(Sample, values={"minutes": ["mean", "count"]}, every="1h", by=("site",))
    print(
        f"{count:,} rows appended in {appended:.0f} s, "
        f"aggregated into {len(rows)} in {time.perf_counter() - began:.1f} s"
    )
    print(f"resident MiB at each tenth: {' '.join(map(str, readings))}, after the aggregate {resident()}")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20


async def run(options: argparse.Namespace) -> None:
    models = [Sample(**values(number)) for number in range(PREBUILT)]
    settings = TimescaleSettings(timeout="10m")
    async with TimescaleStore(options.url, project=options.project, settings=settings) as store:
        print(f"tier {store.tier}, {options.rounds} rounds of {options.rows:,} rows, medians")
        await prepare(store)
        ratio = unique = None
        if options.rounds:
            ratio, unique = await against_the_driver(store, models, options)
        if options.flat_rows:
            async with deadline(options.minutes * 60, what="the long append and its aggregate"):
                await flat(store, models, options.flat_rows)
        async with store.connection() as connection:
            schema = backend_name(Project(options.project), "postgres")
            for table in ("bench_samples", "bench_unique", "raw_samples", "raw_unique"):
                await connection.execute(f'DROP TABLE "{schema}"."{table}"')
            await connection.execute("DELETE FROM _kmp_series WHERE name LIKE 'bench_%'")
    for title, found in (("append", ratio), ("append unique", unique)):
        if found is not None:
            print(f"{title}: {'within' if found >= BUDGET else 'BEYOND'} the budget of {BUDGET}")


async def against_the_driver(
    store: TimescaleStore, models: list[Sample], options: argparse.Namespace
) -> tuple[float, float]:
    ratio = await compare(
        store,
        "append",
        {
            "bare": (raw_append, tuples(models), "raw_samples"),
            "kmp": (kmp_append, models, "bench_samples"),
        },
        options.rows,
        options.rounds,
    )
    count = min(options.rows, 200_000)
    distinct = [Unique(**values(number)) for number in range(count)]
    unique = await compare(
        store,
        f"append unique ({count:,} rows)",
        {
            "bare": (raw_unique, tuples(distinct), "raw_unique"),
            "kmp": (kmp_unique, distinct, "bench_unique"),
        },
        count,
        options.rounds,
    )
    await reset_cost(store)
    return ratio, unique


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default=os.environ.get("KMP_STORAGE_TIMESERIES_URL", ""))
    parser.add_argument("--project", default=os.environ.get("KMP_PROJECT", "bench"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--flat-rows", type=int, default=10_000_000)
    parser.add_argument("--minutes", type=float, default=15)
    options = parser.parse_args()
    if not options.url.startswith("timescale:"):
        print("no server: give --url, or set KMP_STORAGE_TIMESERIES_URL, to a timescale:// URL")
        return
    try:
        asyncio.run(run(options))
    except KmpError as error:
        print(f"no server to measure: give --url and --project ({error})", file=sys.stderr)
        return


if __name__ == "__main__":
    main()
