"""What a hit of the embedded cache costs beside a bare read of the same row in a thread.

Bare is one `SELECT` of a ready connection through `run_in_executor`, which is what any SQLite cache pays that keeps the
event loop free; in memory it is the `SELECT` alone. Ours checks the key, honours the deadline, reads a snapshot, sees
what other processes wrote, and notes what was used.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kmp_storage.embedded.cache import SqliteCache

ROUNDS = 5
READS = 5_000
AT_ONCE = 50
KEYS = [f"airport:{number}" for number in range(AT_ONCE)]
VALUE = b'{"code":"JFK","name":"John F Kennedy Intl","latitude":40.639751,"longitude":-73.778925}'
SQL = "SELECT value, expires FROM entry WHERE key = ?"

Read = Callable[[str], Awaitable[bytes | None]]


async def one_at_a_time(read: Read) -> float:
    """Microseconds for a read."""
    began = time.perf_counter()
    for number in range(READS):
        assert await read(KEYS[number % AT_ONCE]) == VALUE
    return (time.perf_counter() - began) / READS * 1e6


async def at_once(read: Read) -> float:
    """Microseconds for a read, fifty of them under way."""
    began = time.perf_counter()
    for _ in range(READS // AT_ONCE):
        assert await asyncio.gather(*map(read, KEYS)) == [VALUE] * AT_ONCE
    return (time.perf_counter() - began) / READS * 1e6


async def bare(directory: Path | None) -> tuple[float, float]:
    """The same row, read by hand."""
    path = ":memory:" if directory is None else directory / "bare.db"
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE entry (key TEXT PRIMARY KEY, value BLOB, expires REAL) STRICT")
    connection.executemany("INSERT INTO entry VALUES (?, ?, NULL)", [(key, VALUE) for key in KEYS])
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)

    def select(key: str) -> bytes:
        value: bytes = connection.execute(SQL, (key,)).fetchone()[0]
        return value

    async def read(key: str) -> bytes:
        return select(key) if directory is None else await loop.run_in_executor(thread, select, key)

    try:
        return await one_at_a_time(read), await at_once(read)
    finally:
        thread.shutdown()
        connection.close()


async def ours(directory: Path | None) -> tuple[float, ...]:
    """Reads with `get`, and hits of `get_or_load`."""

    async def load() -> bytes:
        raise AssertionError("everything is there")

    url = "memory:" if directory is None else f"sqlite:{directory}/cache.db"
    async with SqliteCache(url) as cache:
        for key in KEYS:
            await cache.set(key, VALUE)

        async def found(key: str) -> bytes | None:
            return await cache.get_or_load(key, load, ttl="1h")

        return (
            await one_at_a_time(cache.get),
            await at_once(cache.get),
            await one_at_a_time(found),
            await at_once(found),
        )


def main() -> None:
    rows = [f"{call}, {how}" for call in ("get", "get_or_load") for how in ("one at a time", f"{AT_ONCE} at once")]
    for place in ("file", "memory"):
        plain: list[tuple[float, ...]] = []
        found: list[tuple[float, ...]] = []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as name:
                directory = Path(name) if place == "file" else None
                plain.append(asyncio.run(bare(directory)) * 2)
                found.append(asyncio.run(ours(directory)))
        for number, row in enumerate(rows):
            bare_us = statistics.median(each[number] for each in plain)
            ours_us = statistics.median(each[number] for each in found)
            ratio = statistics.median(b[number] / o[number] for b, o in zip(plain, found, strict=True))
            print(
                f"{place:<7} {row:<28} {ours_us:>7.1f} µs   bare {bare_us:>6.1f} µs   ratio {ratio:>5.2f}"
                f"   {1e6 / ours_us:>9,.0f} reads/s"
            )


if __name__ == "__main__":
    main()
