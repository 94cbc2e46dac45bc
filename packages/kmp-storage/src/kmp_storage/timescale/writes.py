"""The SQL of writing: COPY, rows that count once, and rows whose time is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from itertools import chain, islice
from typing import Any

from kmp_core.deadlines import Timeout
from kmp_core.errors import Conflict
from kmp_core.postgres import Connection, Progress
from kmp_storage.columns import kept_kind
from kmp_storage.series.shape import quoted
from kmp_storage.timescale.codec import SQL_TYPES, TimescaleCodec
from kmp_storage.timescale.schema import Place

__all__ = ["FEW", "delete_older", "staged", "write", "write_few"]

Rows = Iterator[Sequence[Any]] | AsyncIterator[Sequence[Any]]

FEW = 500
"""Up to so many rows that count once go as arrays."""

_DELETED_AT_ONCE = 20_000
_MOVED_AT_ONCE = 20_000
"""Rows that count once and go together: enough that the round's own cost is none, few enough to wait for."""


def staged(codec: TimescaleCodec[Any], rows: object) -> bool:
    """Whether rows may go through a staging table: those that count once, and those that come as somebody finds time.

    An insert that made a new chunk keeps all others from that chunk until its transaction ends, so it must be short.
    """
    return bool(codec.unique) or isinstance(rows, AsyncIterator)


async def write(
    connection: Connection,
    place: Place,
    codec: TimescaleCodec[Any],
    rows: Rows,
    *,
    first_row: int = 0,
    progress: Progress | None = None,
    timeout: Timeout = None,
) -> int:
    """Store rows and return how many were new, inside a transaction. Raises `Conflict` naming the row."""
    if not staged(codec, rows):
        return await connection.copy(
            codec.series, rows, columns=codec.columns, schema=place.schema, progress=progress, timeout=timeout
        )
    progress = progress or Progress()
    new = 0
    if not isinstance(rows, AsyncIterator):
        # Most often nothing of it is there yet, and COPY with nothing between is faster than any staging.
        while batch := list(islice(rows, _MOVED_AT_ONCE)):
            if not await _copied(connection, place, codec, batch, progress=progress, timeout=timeout):
                rows = chain(batch, rows)
                break
            new += len(batch)
            first_row += len(batch)
        else:
            return new
    return new + await _write_staged(
        connection, place, codec, rows, first_row=first_row, progress=progress, timeout=timeout
    )


async def _copied(
    connection: Connection,
    place: Place,
    codec: TimescaleCodec[Any],
    batch: list[Sequence[Any]],
    *,
    progress: Progress,
    timeout: Timeout,
) -> bool:
    """Copy rows that count once straight in; False, and nothing is stored, where one of them is there already."""
    await connection.execute("SAVEPOINT _kmp_new", timeout=timeout)
    try:
        await connection.copy(
            codec.series, iter(batch), columns=codec.columns, schema=place.schema, progress=progress, timeout=timeout
        )
    except Conflict:
        await connection.execute("ROLLBACK TO SAVEPOINT _kmp_new; RELEASE SAVEPOINT _kmp_new", timeout=timeout)
        return False
    await connection.execute("RELEASE SAVEPOINT _kmp_new", timeout=timeout)
    return True


async def _write_staged(
    connection: Connection,
    place: Place,
    codec: TimescaleCodec[Any],
    rows: Rows,
    *,
    first_row: int,
    progress: Progress,
    timeout: Timeout,
) -> int:
    """Copy rows into a table of their own, and move from there what is new."""
    stage = f"pg_temp.{quoted(f'_kmp_stage_{codec.series}')}"
    like = f"CREATE TEMP TABLE {quoted(f'_kmp_stage_{codec.series}')} (LIKE {place.table(codec.series)}) ON COMMIT DROP"
    await connection.execute(like, timeout=timeout)
    new = 0
    # Rows that come as somebody else finds time are moved when all are there.
    batch = rows if isinstance(rows, AsyncIterator) else list(islice(rows, _MOVED_AT_ONCE))
    while batch:
        count = await connection.copy(
            f"_kmp_stage_{codec.series}",
            iter(batch) if isinstance(batch, list) else batch,
            columns=codec.columns,
            schema="pg_temp",
            progress=progress,
            timeout=timeout,
        )
        move = _move(connection, place, codec, stage, count, first_row=first_row, progress=progress, timeout=timeout)
        moving = asyncio.ensure_future(move)
        try:
            await asyncio.sleep(0)
            # The next are made ready while the server works; the source's time is not the server's, as it tells.
            batch = [] if isinstance(rows, AsyncIterator) else list(islice(rows, _MOVED_AT_ONCE))
            new += await moving
        except BaseException:
            # A row that cannot be kept, or the caller left: what is under way is for nobody any more.
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
            raise
        first_row += count
        await connection.execute(f"{'TRUNCATE' if batch else 'DROP TABLE'} {stage}", timeout=timeout)
    return new


async def _move(
    connection: Connection,
    place: Place,
    codec: TimescaleCodec[Any],
    stage: str,
    count: int,
    *,
    first_row: int,
    progress: Progress,
    timeout: Timeout,
) -> int:
    """Move what is staged, in parts: no statement takes the longer the more there is. Returns how many were new."""
    columns = ", ".join(map(quoted, codec.columns))
    parts: list[tuple[Any, ...]] = [()]
    if count > _MOVED_AT_ONCE:
        size = "pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint"
        pages = await connection.fetch_value(f"SELECT {size}", stage, timeout=timeout)
        step = max(1, pages * _MOVED_AT_ONCE // count)
        parts = [((page, 0), (page + step, 0)) for page in range(0, pages, step)]
    # A table that only one COPY filled has its rows where it put them: one after the other.
    part_of = f"{stage} WHERE ctid >= $1::tid AND ctid < $2::tid" if parts[0] else stage
    new = 0
    for part in parts:
        tag = await connection.execute(
            f"INSERT INTO {place.table(codec.series)} ({columns}) "  # noqa: S608 - names are allow-listed
            f"SELECT {columns} FROM {part_of} {_ignoring(codec)}",
            *part,
            progress=progress,
            timeout=timeout,
        )
        moved = int(tag.rpartition(" ")[2])
        new += moved
        if not codec.unique:
            continue
        counting = f"SELECT count(*) FROM {part_of}"  # noqa: S608
        there = await connection.fetch_value(counting, *part, timeout=timeout) if part else count
        if moved != there:
            source = f"(SELECT row_number() OVER (ORDER BY ctid) - 1 AS _kmp_row, * FROM {part_of})"  # noqa: S608
            await _refuse_other_values(connection, place, codec, source, *part, first_row=first_row, timeout=timeout)
        first_row += there
    return new


async def write_few(
    connection: Connection, place: Place, codec: TimescaleCodec[Any], rows: Sequence[Sequence[Any]], *, first_row: int
) -> int:
    """The same for a few rows that count once: as arrays, since a temporary table costs more than they do."""
    kinds = [SQL_TYPES[kept_kind(field)].partition(" COLLATE")[0] for field in codec.fields.values()]
    arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(kinds, start=1))
    columns = ", ".join(map(quoted, codec.columns))
    given = f"unnest({arrays}) WITH ORDINALITY AS given({columns}, _kmp_number)"
    source = f"(SELECT _kmp_number - 1 AS _kmp_row, * FROM {given})"  # noqa: S608 - names are allow-listed
    arguments = [list(column) for column in zip(*rows, strict=True)]
    tag = await connection.execute(
        f"INSERT INTO {place.table(codec.series)} ({columns}) "  # noqa: S608 - names are allow-listed
        f"SELECT {columns} FROM {source} AS s {_ignoring(codec)}",
        *arguments,
    )
    new = int(tag.rpartition(" ")[2])
    if new != len(rows):
        await _refuse_other_values(connection, place, codec, source, *arguments, first_row=first_row)
    return new


async def delete_older(connection: Connection, place: Place, series: str, before: datetime, *, chunks: bool) -> bool:
    """Drop whole chunks, then delete a bounded number of rows older than `before`; True where more may be left."""
    table = place.table(series)
    if chunks:
        await connection.execute(
            f"SELECT {place.function('drop_chunks')}($1::regclass, older_than => $2::timestamptz)",
            table,
            before,
        )
    tag = await connection.execute(
        f"DELETE FROM {table} AS t USING (SELECT tableoid AS part, ctid AS place FROM {table} "  # noqa: S608
        f'WHERE "time" < $1 LIMIT {_DELETED_AT_ONCE}) AS old '
        'WHERE t.tableoid = old.part AND t.ctid = old.place AND t."time" < $1',
        before,
    )
    return int(tag.rpartition(" ")[2]) == _DELETED_AT_ONCE


def _ignoring(codec: TimescaleCodec[Any]) -> str:
    key = ", ".join(map(quoted, ("time", *codec.unique)))
    return f"ON CONFLICT ({key}) DO NOTHING" if codec.unique else ""


async def _refuse_other_values(
    connection: Connection,
    place: Place,
    codec: TimescaleCodec[Any],
    source: str,
    *arguments: Any,
    first_row: int,
    timeout: Timeout = None,
) -> None:
    """Some rows were there already: fine where they are the same."""
    others = [name for name in codec.columns if name != "time" and name not in codec.unique]
    if not others:
        return
    same = " AND ".join(f"t.{quoted(name)} = s.{quoted(name)}" for name in ("time", *codec.unique))
    differs = " OR ".join(f"t.{quoted(name)} IS DISTINCT FROM s.{quoted(name)}" for name in others)
    keys = ", ".join(f"s.{quoted(name)}" for name in ("time", *codec.unique))
    row = await connection.fetch_row(
        f"SELECT s._kmp_row, {keys} FROM {source} s "  # noqa: S608 - names are allow-listed
        f"JOIN {place.table(codec.series)} t ON {same} WHERE {differs} ORDER BY s._kmp_row LIMIT 1",
        *arguments,
        timeout=timeout,
    )
    if row is None:
        return
    number, time, *values = tuple(row)
    key = ", ".join(f"{name}={value!r}" for name, value in zip(codec.unique, values, strict=True))
    raise Conflict(
        f"row {first_row + number}: series {codec.series!r} has a row for {time.isoformat()}, {key} already, "
        "with other values; nothing was written",
        key=f"{time.isoformat()}, {key}",
    )
