"""A time-series store that needs no server: one SQLite file that all processes of a project on this machine share."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from kmp_core.clock import SYSTEM_CLOCK, Clock
from kmp_core.context import Context
from kmp_core.deadlines import Timeout, within
from kmp_core.errors import InvalidInput
from kmp_core.project import Project
from kmp_core.resource import Provider
from kmp_core.sqlite import Database
from kmp_core.telemetry import Telemetry
from kmp_storage.arguments import whole_number
from kmp_storage.columns import microseconds
from kmp_storage.embedded.files import embedded_path
from kmp_storage.embedded.timeseries import queries, schema
from kmp_storage.embedded.timeseries.settings import TimeSeriesSettings
from kmp_storage.embedded.timeseries.stage import Stage
from kmp_storage.embedded.timeseries.writes import delete_older, insert, insert_statement
from kmp_storage.models import Measurement
from kmp_storage.protocols import Aggregation, Fill, TimeSeriesStore
from kmp_storage.series.calls import Summary, class_of, pairs_of, runs, tags_of
from kmp_storage.series.codec import Codec, codec_of
from kmp_storage.series.gaps import check_fill, filled
from kmp_storage.series.shape import Series, check
from kmp_storage.series.time_buckets import every_of, zone_of
from kmp_storage.streams import chunked
from kmp_storage.values import Row

__all__ = ["SqliteTimeSeriesStore", "TimeSeriesSettings"]

M = TypeVar("M", bound=Measurement)


class SqliteTimeSeriesStore(Provider, TimeSeriesStore):
    """Keep measurements in a file that several processes share (`sqlite:`), or in memory for a test (`memory:`).

    What `append` acknowledged survives a killed process and a power cut. Rows older than their series' retention go
    when the store opens and, at most every `sweep_every`, while it appends.
    """

    abilities = frozenset({"durable", "retention", "shared", "unique", "zones"})
    embedded = True

    def __init__(
        self,
        url: str = "sqlite:",
        *,
        project: str = "local",
        directory: Path | None = None,
        settings: TimeSeriesSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.project = Project(project)
        self.settings = TimeSeriesSettings.load() if settings is None else settings
        self._path = embedded_path(url, self.project, directory, "timeseries")
        self._database = Database(
            self._path,
            project=self.project,
            capability="storage.timeseries",
            migrations=schema.MIGRATIONS,
            synchronous=self.settings.synchronous,
        )
        self._clock = clock
        self._prepared: set[type[Measurement]] = set()
        self._swept: dict[str, float] = {}
        if self._path is None:
            self.abilities -= {"durable", "shared"}

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the store of a service's project."""
        return cls(url, project=context.project, directory=context.directory)

    async def _open(self) -> None:
        self._telemetry = Telemetry("db", "sqlite", project=self.project, scope="kmp_storage")
        await self._database.open()
        await self._sweep_all()

    async def _close(self) -> None:
        await self._database.close()

    async def _check(self) -> None:
        await self._database.read(lambda connection: schema.find(connection, ""))

    async def append(self, *measurements: Measurement, timeout: Timeout = None) -> int:
        self.ensure_open()
        groups = [
            (codec, first, codec.encode(rows, first_row=first))
            for codec, first, rows in ((codec_of(model), first, rows) for model, first, rows in runs(measurements))
        ]

        def store(connection: sqlite3.Connection) -> int:
            new = 0
            for codec, first, rows in groups:
                self._prepare(connection, codec)
                new += insert(connection, codec, insert_statement(codec), rows, first)
                self._sweep(connection, codec)
            return new

        with self._telemetry.call("append", len(measurements)):
            return await self._write(store, [codec for codec, _, _ in groups], self._seconds(timeout))

    async def append_all(self, measurements: Iterable[M] | AsyncIterable[M], *, timeout: Timeout = None) -> int:
        self.ensure_open()
        with self._telemetry.call("append_all"), Stage(self._path.parent if self._path else None) as stage:
            codec: Codec[Any] | None = None
            async for rows in chunked(measurements, self.settings.chunk_rows):
                codec = codec or codec_of(class_of(rows[0], 0))
                await asyncio.to_thread(self._stage, stage, codec, rows)
            return 0 if codec is None else await self._move(stage, codec, timeout)

    async def read(
        self,
        series: type[M],
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int | None = None,
        timeout: Timeout = None,
    ) -> AsyncIterator[M]:
        self.ensure_open()
        codec = codec_of(series)
        where_ = queries.filter_of(codec, start, end, where)
        bound = -1 if limit is None else whole_number("limit", limit, least=0)
        # The span ends with the first rows: between later ones it is the caller's code that runs.
        with self._telemetry.call("read"):
            stored = await self._find(codec, timeout)
            if stored is None:
                return
            size, seconds = self.settings.chunk_rows, self._seconds(timeout)
            sql = queries.ordered(codec, stored, where_, bound)
            chunks = self._database.stream(sql, where_.parameters, chunk=size, timeout=seconds)
            rows = await anext(chunks, None)
        async with aclosing(chunks):
            while rows is not None:
                for measurement in codec.decode(rows):
                    yield measurement
                rows = await anext(chunks, None)

    async def aggregate(
        self,
        series: type[Measurement],
        *,
        values: Mapping[str, Aggregation | Sequence[Aggregation]],
        every: str | timedelta | None = None,
        by: Sequence[str] = (),
        start: datetime | None = None,
        end: datetime | None = None,
        where: Mapping[str, Any] | None = None,
        zone: str = "UTC",
        fill: Fill | None = None,
        timeout: Timeout = None,
    ) -> list[Row]:
        self.ensure_open()
        codec = codec_of(series)
        check_fill(fill, every)
        summary = Summary(
            pairs=pairs_of(codec, values),
            by=tags_of(codec, by),
            every=None if every is None else every_of(every),
            zone=zone_of(zone),
            where=queries.filter_of(codec, start, end, where),
        )

        def ask(connection: sqlite3.Connection) -> list[Row]:
            rows = queries.summarise(connection, codec, self._stored(connection, codec), summary)
            return filled(rows, fill, summary, start=start, end=end)

        with self._telemetry.call("aggregate"):
            return await self._database.read(ask, timeout=self._seconds(timeout))

    async def latest(
        self,
        series: type[M],
        *,
        by: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
        timeout: Timeout = None,
    ) -> list[M]:
        self.ensure_open()
        codec = codec_of(series)
        tags, where_ = tags_of(codec, by), queries.filter_of(codec, None, None, where)

        def ask(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            stored = self._stored(connection, codec)
            if stored is None:
                return []
            rows = connection.execute(queries.latest(codec, stored, tags, where_), where_.parameters)
            return [row[: len(codec.columns)] for row in rows]

        with self._telemetry.call("latest"):
            return codec.decode(await self._database.read(ask, timeout=self._seconds(timeout)))

    async def erase(self, series: type[Measurement], *, where: Mapping[str, Any], timeout: Timeout = None) -> int:
        self.ensure_open()
        codec = codec_of(series)
        if not where:
            raise InvalidInput(
                "where", "must name at least one tag, so that nobody erases all", example='{"user": "u7"}'
            )
        where_ = queries.filter_of(codec, None, None, where)

        def delete(connection: sqlite3.Connection) -> int:
            if self._stored(connection, codec) is None:
                return 0
            # What is erased is overwritten in the file, not only unlinked.
            connection.execute("PRAGMA secure_delete = ON").fetchall()
            sql = f"DELETE FROM {schema.table(codec.series)} AS t WHERE {where_.sql}"  # noqa: S608
            return connection.execute(sql, where_.parameters).rowcount

        with self._telemetry.call("erase"):
            return await self._database.write(delete, timeout=self._seconds(timeout))

    def _seconds(self, timeout: Timeout, times: int = 1) -> float | None:
        seconds = within(timeout, self.settings.timeout)
        return None if seconds is None else seconds * times

    async def _write(
        self, work: Callable[[sqlite3.Connection], int], codecs: Sequence[Codec[Any]], seconds: float | None
    ) -> int:
        result = await self._database.write(work, timeout=seconds)
        # Only now, because a transaction that is rolled back takes its new tables along.
        self._prepared.update(codec.model for codec in codecs)
        return result

    def _prepare(self, connection: sqlite3.Connection, codec: Codec[Any]) -> None:
        if codec.model not in self._prepared:
            schema.prepare(connection, codec)

    def _stored(self, connection: sqlite3.Connection, codec: Codec[Any]) -> Series | None:
        stored = schema.find(connection, codec.series)
        if stored is not None:
            check(codec, stored)
        return stored

    async def _find(self, codec: Codec[Any], timeout: Timeout) -> Series | None:
        return await self._database.read(lambda c: self._stored(c, codec), timeout=self._seconds(timeout))

    @staticmethod
    def _stage(stage: Stage, codec: Codec[Any], rows: Sequence[Measurement]) -> None:
        for position, measurement in enumerate(rows, start=stage.rows):
            if type(measurement) is not codec.model:
                raise InvalidInput("series", f"a stream holds one class, {codec.model.__name__}", row=position)
        stage.add(codec.encode(rows, first_row=stage.rows))

    async def _move(self, stage: Stage, codec: Codec[Any], timeout: Timeout) -> int:
        statement = insert_statement(codec)

        def store(connection: sqlite3.Connection) -> int:
            self._prepare(connection, codec)
            new = first = 0
            for rows in stage:
                new += insert(connection, codec, statement, rows, first)
                first += len(rows)
            self._sweep(connection, codec)
            return new

        return await self._write(store, [codec], self._seconds(timeout, times=stage.chunks))

    def _sweep(self, connection: sqlite3.Connection, codec: Codec[Any]) -> None:
        now = self._clock.time()
        if codec.retention is None or now < self._swept.get(codec.series, 0.0):
            return
        oldest = microseconds(self._clock.now() - codec.retention)
        if not delete_older(connection, codec.series, oldest):
            self._swept[codec.series] = now + self.settings.sweep_every.total_seconds()

    async def _sweep_all(self) -> None:
        now = microseconds(self._clock.now())

        def expiring(connection: sqlite3.Connection) -> list[tuple[str, int]]:
            return connection.execute("SELECT name, retention FROM series WHERE retention IS NOT NULL").fetchall()

        for series, kept in await self._database.read(expiring):
            before = now - kept
            more = True
            while more:
                more = await self._database.write(partial(delete_older, series=series, before=before))
