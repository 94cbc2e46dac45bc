"""What is special about the embedded time-series store: its file, its evolution, its clock, its memory."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kmp_core import Service
from kmp_core.errors import (
    ConfigurationError,
    Conflict,
    Corrupt,
    DeadlineExceeded,
    PermissionDenied,
    Unavailable,
)
from kmp_core.testing import IsolatedEnvironment, ManualClock
from kmp_storage import Edge, GraphStore, Measurement, Node, TimeSeriesStore
from kmp_storage.embedded.cache import SqliteCache
from kmp_storage.embedded.graph import SqliteGraphStore
from kmp_storage.embedded.timeseries import SqliteTimeSeriesStore, TimeSeriesSettings

START = datetime(2024, 1, 1, tzinfo=UTC)


class Sample(Measurement, series="samples", tags=("site",)):
    site: str
    value: float


def sample(number: int) -> Sample:
    return Sample(time=START + timedelta(seconds=number), site=f"s{number % 7}", value=float(number))


def version(fields: dict[str, Any], defaults: dict[str, Any] | None = None, **options: Any) -> type[Measurement]:
    """A version of one series' class, as a later release of the service would have it."""
    namespace = {"__module__": __name__, "__annotations__": fields, **(defaults or {})}
    return type(Measurement)("Version", (Measurement,), namespace, series="versions", **options)


async def read(store: SqliteTimeSeriesStore, series: type[Measurement]) -> list[dict[str, Any]]:
    return [row.model_dump(exclude={"time"}) async for row in store.read(series)]


def many(count: int) -> Iterator[Sample]:
    return map(sample, range(count))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Evolution


async def test_a_new_field_that_may_be_missing_is_added(tmp_path: Path):
    old = version({"site": str}, tags=("site",))
    new = version({"site": str, "note": str | None, "level": int}, {"note": None, "level": 7}, tags=("site", "note"))
    async with SqliteTimeSeriesStore(directory=tmp_path) as before, SqliteTimeSeriesStore(directory=tmp_path) as after:
        await before.append(old(time=START, site="a"))
        # Reading does not need the column to be there.
        assert await read(after, new) == [{"site": "a", "note": None, "level": 7}]
        (row,) = await after.aggregate(new, values={"level": ["sum", "count"], "note": "count"}, by=("note",))
        assert (row["level_sum"], row["level_count"], row["note"]) == (None, 0, None)
        await after.append(new(time=START, site="b", note="n", level=1))
        # The replica that is older goes on reading and writing.
        await before.append(old(time=START, site="c"))
        assert [row["site"] for row in await read(before, old)] == ["a", "b", "c"]
        assert await read(after, new) == [
            {"site": "a", "note": None, "level": 7},
            {"site": "b", "note": "n", "level": 1},
            {"site": "c", "note": None, "level": 7},
        ]
        assert [row["site"] for row in [r.model_dump() for r in await after.latest(new, where={"note": "n"})]] == ["b"]


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"site": str, "value": float, "must": int}, {"unique": ("site",)}, "give it a default"),
        ({"site": str, "value": int}, {"unique": ("site",)}, "keeps 'value' as float, and the class declares int"),
        ({"site": str}, {"unique": ("site",)}, "needs the field 'value'.*first release a version"),
        ({"site": str, "value": float}, {}, "unique"),
        ({"site": str, "value": float, "maybe": int}, {"unique": ("site",)}, "may have rows without 'maybe'"),
    ],
)
async def test_a_change_that_loses_something_is_refused_with_advice(
    fields: dict[str, Any], options: dict[str, Any], message: str
):
    first = version({"site": str, "value": float, "maybe": int | None}, {"maybe": None}, unique=("site",))
    row = first(time=START, site="a", value=1.0)
    if "maybe" not in fields:
        fields = {**fields, "maybe": int | None}
    other = version(fields, **options)
    values = {"site": "a", "value": 1.0, "must": 1, "maybe": 1}
    async with SqliteTimeSeriesStore("memory:") as store:
        await store.append(row)
        with pytest.raises(Conflict, match=message):
            await store.append(other(time=START, **{name: values[name] for name in fields}))
        with pytest.raises(Conflict, match=message):
            await read(store, other)
        assert await read(store, first) == [{"site": "a", "value": 1.0, "maybe": None}]


async def test_a_row_that_a_stricter_class_refuses_is_told_and_kept():
    from pydantic import Field

    first = version({"value": int})
    stricter = version({"value": int}, {"value": Field(gt=10)})
    async with SqliteTimeSeriesStore("memory:") as store:
        await store.append(first(time=START, value=1))
        with pytest.raises(Corrupt, match=r"does not fit Version.*value.*greater than 10"):
            await read(store, stricter)
        assert await read(store, first) == [{"value": 1}]


async def test_names_that_sql_uses_are_fields_like_others():
    names = ["select", "rowid", "oid", "order", "group", "key", "index", "begin_us", "offset_us", "segment"]
    odd = version(dict.fromkeys(names, int), tags=("select", "group"), unique=("rowid", "order"))
    row = odd(time=START, **{name: number for number, name in enumerate(names)})
    async with SqliteTimeSeriesStore("memory:") as store:
        assert await store.append(row, row) == 1
        assert [found async for found in store.read(odd, where={"select": 0})] == [row]
        (summary,) = await store.aggregate(odd, values={"rowid": "last"}, by=("group",), every="1d")
        assert (summary["rowid_last"], summary.tags) == (1, {"group": 4})
        assert await store.latest(odd, by=("rowid",)) == [row]


# Retention and erasing


class Brief(Measurement, series="brief", tags=("site",), retention="1h"):
    site: str


async def test_rows_go_when_their_time_is_over(tmp_path: Path, kmp_clock: ManualClock):
    settings = TimeSeriesSettings.load(sweep_every="1m")

    def store() -> SqliteTimeSeriesStore:
        return SqliteTimeSeriesStore(directory=tmp_path, settings=settings, clock=kmp_clock)

    async def sites(opened: SqliteTimeSeriesStore) -> list[str]:
        return [row["site"] for row in await read(opened, Brief)]

    async with store() as opened:
        await opened.append(Brief(time=kmp_clock.now(), site="a"), sample(0))
        kmp_clock.advance("30m")
        await opened.append(Brief(time=kmp_clock.now(), site="b"))
        kmp_clock.advance("31m")
        assert await sites(opened) == ["a", "b"]
        await opened.append(Brief(time=kmp_clock.now(), site="c"))
        assert await sites(opened) == ["b", "c"]
        kmp_clock.advance("30m")
        await opened.append_all([Brief(time=kmp_clock.now(), site="d")])
        assert await sites(opened) == ["c", "d"]
        kmp_clock.advance("31m")
    async with store() as opened:
        # On opening, without anything appended; a series without retention keeps what it has.
        assert await sites(opened) == ["d"]
        assert len(await read(opened, Sample)) == 1


async def test_what_was_erased_is_not_left_in_the_file(tmp_path: Path):
    secret = "anna.karenina@example.org"
    async with SqliteTimeSeriesStore(directory=tmp_path) as store:
        await store.append(*(Sample(time=START, site=secret, value=float(n)) for n in range(500)), sample(0))
        # Some builds of SQLite overwrite what is deleted by themselves; most do not.
        await store._database.write(lambda connection: connection.execute("PRAGMA secure_delete = OFF").fetchall())
        assert await store.erase(Sample, where={"site": secret}) == 500
    assert names(tmp_path) == ["timeseries.db"]
    assert secret.encode() not in (tmp_path / "timeseries.db").read_bytes()


# Memory and time


class Wide(Measurement, series="wide"):
    text: str


async def test_streams_take_the_same_memory_whatever_their_length(tmp_path: Path):
    settings = TimeSeriesSettings.load(chunk_rows=500)

    async def peak(count: int) -> int:
        async with SqliteTimeSeriesStore(directory=tmp_path / str(count), settings=settings) as store:
            await store.append(Wide(time=START, text=""))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            assert await store.append_all(Wide(time=START, text=f"{number:02000}") for number in range(count)) == count
            read = 0
            async for _ in store.read(Wide):
                read += 1
            assert read == count + 1
            return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        short = await peak(4_000)  # 8 MB, which is more than a stage keeps in memory
        assert await peak(20_000) < short + (4 << 20)
    finally:
        tracemalloc.stop()


async def test_a_stage_leaves_no_file_behind(tmp_path: Path):
    def broken() -> Iterator[Sample]:
        yield from many(200_000)
        assert names(tmp_path) == expected
        raise RuntimeError("broken")

    async with SqliteTimeSeriesStore(directory=tmp_path) as store:
        await store.append(sample(0))
        expected = names(tmp_path)
        with pytest.raises(RuntimeError, match="broken"):
            await store.append_all(broken())
        assert names(tmp_path) == expected


async def test_a_stream_that_finds_no_room_is_told_and_leaves_nothing(tmp_path: Path):
    import shutil

    async with SqliteTimeSeriesStore(directory=tmp_path / "store") as store:
        await store.append(sample(0))
        # The stage's file cannot be made; the store's own is open and goes on working.
        await asyncio.to_thread(shutil.move, tmp_path / "store", tmp_path / "moved")
        with pytest.raises(Unavailable, match="nothing was stored"):
            await store.append_all(many(300_000))
        await asyncio.to_thread(shutil.move, tmp_path / "moved", tmp_path / "store")
        assert len(await read(store, Sample)) == 1
        assert await store.append(sample(1)) == 1


async def test_a_service_gets_the_store_and_keeps_its_rows(kmp_environment: IsolatedEnvironment):
    for number in range(2):
        async with Service("sampler", project="acme") as service:
            store = await service.get(TimeSeriesStore)
            assert await store.append(sample(number)) == 1
            assert [row.value async for row in store.read(Sample)] == [float(n) for n in range(number + 1)]
            assert await (await service.get(GraphStore)).neighbours(City(code="A"), via=Way) == []
    assert names(kmp_environment.directory / "data" / "acme") == ["graph.db", "timeseries.db"]


class City(Node, label="City", key="code"):
    code: str


class Way(Edge, type="WAY", source=City, target=City):
    pass


async def test_every_call_ends_when_its_time_is_over(tmp_path: Path):
    async with SqliteTimeSeriesStore(directory=tmp_path) as store:
        await store.append_all(many(300_000))
        questions: Any = {"values": {"value": ["stddev", "first", "last"]}, "every": "15m", "by": ("site",)}
        with pytest.raises(DeadlineExceeded):
            await store.aggregate(Sample, timeout="5ms", zone="Europe/Berlin", **questions)
        with pytest.raises(DeadlineExceeded):
            await store.latest(Sample, by=("site",), timeout="1ms")
        with pytest.raises(DeadlineExceeded):
            await store.erase(Sample, where={"site": "s1"}, timeout="1ms")
        assert len(await store.latest(Sample, by=("site",))) == 7


async def test_waiting_for_another_process_ends_in_time_and_wrote_nothing(tmp_path: Path):
    async with SqliteTimeSeriesStore(directory=tmp_path) as store:
        await store.append(sample(0))
        other = sqlite3.connect(tmp_path / "timeseries.db", isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DeadlineExceeded):
                await store.append(sample(1), timeout="200ms")
            assert len(await read(store, Sample)) == 1
            other.execute("ROLLBACK")
        finally:
            other.close()
        assert await store.append(sample(1)) == 1


# The file


async def test_another_projects_file_is_refused(tmp_path: Path):
    async with SqliteTimeSeriesStore(project="acme", directory=tmp_path) as store:
        await store.append(sample(0))
    with pytest.raises(PermissionDenied):
        await SqliteTimeSeriesStore(project="acme2", directory=tmp_path).open()


async def test_another_capabilitys_file_is_refused_with_its_name(tmp_path: Path):
    async with SqliteGraphStore(f"sqlite:{tmp_path}/one.db"):
        pass
    with pytest.raises(ConfigurationError, match=r"one\.db: is a file of storage\.graph, not of storage\.timeseries"):
        await SqliteTimeSeriesStore(f"sqlite:{tmp_path}/one.db").open()
    with pytest.raises(ConfigurationError, match=r"one\.db: is a file of storage\.graph, not of storage\.cache"):
        await SqliteCache(f"sqlite:{tmp_path}/one.db").open()
    async with SqliteTimeSeriesStore(f"sqlite:{tmp_path}/two.db"):
        pass
    with pytest.raises(ConfigurationError, match=r"two\.db: is a file of storage\.timeseries, not of storage\.graph"):
        await SqliteGraphStore(f"sqlite:{tmp_path}/two.db").open()


async def test_a_damaged_file_is_told_and_left(tmp_path: Path):
    path = tmp_path / "timeseries.db"
    path.write_bytes(b"this is no database, " * 400)
    with pytest.raises((Corrupt, ConfigurationError)):
        await SqliteTimeSeriesStore(directory=tmp_path).open()
    assert path.read_bytes() == b"this is no database, " * 400


@pytest.mark.parametrize("url", ["postgres:", "", "sqlite", "memory"])
async def test_a_wrong_url_is_refused(url: str):
    with pytest.raises(ConfigurationError, match="sqlite:"):
        SqliteTimeSeriesStore(url)


async def test_settings_come_from_the_environment(kmp_environment: IsolatedEnvironment):
    kmp_environment.set("KMP_STORAGE_TIMESERIES_CHUNK_ROWS", "3")
    async with SqliteTimeSeriesStore("memory:") as store:
        assert store.settings.chunk_rows == 3
        assert await store.append_all(itertools.islice(many(100), 10)) == 10
        assert len(await read(store, Sample)) == 10
    kmp_environment.set("KMP_STORAGE_TIMESERIES_CHUNK_ROWS", "none")
    with pytest.raises(ConfigurationError, match="KMP_STORAGE_TIMESERIES_CHUNK_ROWS"):
        SqliteTimeSeriesStore("memory:")
