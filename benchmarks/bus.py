"""How fast the embedded bus is: typed events per second of processor time, against the promises and bare SQLite.

    python benchmarks/bus.py [--events 20000] [--rounds 3] [--memory-events 300000]

Every event is encoded to bytes, stored, read, decoded and validated again; the handler does nothing; batches of 500 are
published while they are consumed. A file is opened as by default: what is published survives a power cut. The bare
prototype does the same without keys, groups, retries, fencing or telemetry, and does not wait for the disk.

Promised are rates "per core", by processor time: 80,000 in memory and 50,000 through the file. The rate by the clock
depends on what else the machine does, and through the file on its disk.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from kmp_messaging import BusSettings, Event
from kmp_messaging.embedded import SqliteBus

BATCH = 500


class Departed(Event, topic="flights.departed", key="origin"):
    flight: str
    origin: str
    dest: str
    delay_minutes: float | None


def make(count: int, start: int = 0) -> list[Departed]:
    return [
        Departed(flight=f"UA{n}", origin=f"K{n % 300}", dest="LAX", delay_minutes=n % 60)
        for n in range(start, start + count)
    ]


def bus_in(directory: Path | None) -> SqliteBus:
    url = "memory:" if directory is None else "sqlite:"
    return SqliteBus(url, project="bench", directory=directory, settings=BusSettings())


async def bus_single(directory: Path | None, events: Sequence[Departed]) -> None:
    seen, done = 0, asyncio.Event()

    async def handle(event: Departed) -> None:
        nonlocal seen
        seen += 1
        if seen == len(events):
            done.set()

    async with bus_in(directory) as bus:
        bus.subscribe(Departed, handle, group="bench")
        await bus.start()
        for start in range(0, len(events), BATCH):
            await bus.publish(*events[start : start + BATCH])
        await done.wait()
        await bus.drain()


async def bus_batch(directory: Path | None, events: Sequence[Departed]) -> None:
    seen, done = 0, asyncio.Event()

    async def handle(batch: Sequence[Departed]) -> None:
        nonlocal seen
        seen += len(batch)
        if seen == len(events):
            done.set()

    async with bus_in(directory) as bus:
        bus.subscribe_batch(Departed, handle, group="bench", size=BATCH)
        await bus.start()
        for start in range(0, len(events), BATCH):
            await bus.publish(*events[start : start + BATCH])
        await done.wait()
        await bus.drain()


async def bus_suspending(directory: Path | None, events: Sequence[Departed]) -> None:
    seen, done = 0, asyncio.Event()

    async def handle(event: Departed) -> None:
        nonlocal seen
        await asyncio.sleep(0)
        seen += 1
        if seen == len(events):
            done.set()

    async with bus_in(directory) as bus:
        bus.subscribe(Departed, handle, group="bench")
        await bus.start()
        for start in range(0, len(events), BATCH):
            await bus.publish(*events[start : start + BATCH])
        await done.wait()
        await bus.drain()


async def bare(directory: Path | None, events: Sequence[Departed]) -> None:
    connection = sqlite3.connect(":memory:" if directory is None else directory / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE log (id INTEGER PRIMARY KEY, content BLOB)")
    connection.execute("CREATE TABLE position (id INTEGER)")
    to_json, validate = Departed.__pydantic_serializer__.to_json, Departed.__pydantic_validator__.validate_json
    position = 0
    for start in range(0, len(events), BATCH):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO log (content) VALUES (?)", [(to_json(event),) for event in events[start : start + BATCH]]
        )
        connection.execute("COMMIT")
        rows = connection.execute("SELECT id, content FROM log WHERE id > ? LIMIT ?", (position, BATCH)).fetchall()
        for _, content in rows:
            validate(content)
        position = rows[-1][0]
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE position SET id = ?", (position,))
        connection.execute("COMMIT")
    connection.close()


Contender = Callable[[Path | None, Sequence[Departed]], Coroutine[Any, Any, None]]
CONTENDERS: dict[str, Contender] = {
    "bare SQLite": bare,
    "bus, handler of events": bus_single,
    "bus, handler of batches": bus_batch,
    "bus, suspending handler": bus_suspending,
}
PROMISED = {
    (False, "bus, handler of events"): 80_000,
    (False, "bus, handler of batches"): 80_000,
    (True, "bus, handler of events"): 50_000,
    (True, "bus, handler of batches"): 50_000,
}


def measure(contender: Contender, on_file: bool, count: int) -> tuple[float, float]:
    events = make(count)
    gc.collect()
    gc.freeze()  # what was made before the clock starts is no work of whoever is measured
    with tempfile.TemporaryDirectory() as directory:
        wall, processor = time.perf_counter(), time.process_time()
        asyncio.run(contender(Path(directory) if on_file else None, events))
        return count / (time.perf_counter() - wall), count / (time.process_time() - processor)


async def latency(rounds: int) -> list[float]:
    """Milliseconds from the publication on one bus object to the handler on another, through the file."""
    taken: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        async with bus_in(Path(directory)) as ours, bus_in(Path(directory)) as theirs:
            arrived = asyncio.Event()

            async def handle(event: Departed) -> None:
                arrived.set()

            theirs.subscribe(Departed, handle, group="bench")
            await theirs.start()
            for number in range(rounds):
                await asyncio.sleep(0.1)
                arrived.clear()
                began = time.perf_counter()
                await ours.publish(*make(1, number))
                await arrived.wait()
                taken.append(1000 * (time.perf_counter() - began))
            await theirs.drain()
    return taken


async def flat(count: int, on_file: bool) -> list[int]:
    """Mebibytes of resident memory at each tenth of a long run."""
    readings: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        seen, done = 0, asyncio.Event()

        async def handle(event: Departed) -> None:
            nonlocal seen
            seen += 1
            if seen == count:
                done.set()

        async with bus_in(Path(directory) if on_file else None) as bus:
            bus.subscribe(Departed, handle, group="bench")
            await bus.start()
            for start in range(0, count, BATCH):
                await bus.publish(*make(BATCH, start))
                if start % (count // 10) == 0:
                    readings.append(resident())
            await done.wait()
            await bus.drain()
    return readings


def resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def compare(on_file: bool, rounds: int, count: int) -> None:
    """Run all in turn, so that all meet the same weather, and print medians."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, contender in CONTENDERS.items():
            rates[name].append(measure(contender, on_file, count))
    base = statistics.median(per_core for _, per_core in rates["bare SQLite"])
    place = "through the file" if on_file else "in memory"
    print(f"\n{place}: medians of {rounds} rounds of {count:,} events")
    print(f"  {'':26}{'by the clock':>14}{'per core':>14}{'to bare':>9}{'promised':>12}{'reached':>9}")
    for name, found in rates.items():
        wall, per_core = (statistics.median(column) for column in zip(*found, strict=True))
        line = f"  {name:26}{wall:>12,.0f}/s{per_core:>12,.0f}/s{per_core / base:>9.2f}"
        promise = PROMISED.get((on_file, name))
        print(line if promise is None else f"{line}{promise:>10,}/s{per_core / promise:>8.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-events", type=int, default=300_000)
    options = parser.parse_args()
    for on_file in (False, True):
        compare(on_file, options.rounds, options.events)
    taken = asyncio.run(latency(40))
    print("\nfrom one bus to another through the file:", end=" ")
    print(f"median {statistics.median(taken):.1f} ms, worst {max(taken):.1f} ms")
    print(f"\nresident MiB at each tenth of {options.memory_events:,} events, promised to stay flat:")
    for on_file in (False, True):
        readings = asyncio.run(flat(options.memory_events, on_file))
        print(f"  {'through the file' if on_file else 'in memory':18}{' '.join(map(str, readings))}", flush=True)


if __name__ == "__main__":
    main()
