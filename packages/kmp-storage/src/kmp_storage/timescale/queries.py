"""The SQL of reading: filters, aggregates per bucket, and the newest of each.

Names in statements were checked against an allow-list when their class was defined; values are parameters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from kmp_core.errors import InvalidInput
from kmp_core.postgres import Connection
from kmp_storage.columns import from_microseconds, microseconds
from kmp_storage.series.calls import Filter, Summary
from kmp_storage.series.shape import Series, quoted
from kmp_storage.series.time_buckets import LONGEST_SPLIT, Every, Segment, begin_of, segments
from kmp_storage.timescale.codec import TimescaleCodec, parameter
from kmp_storage.timescale.schema import Place
from kmp_storage.values import Row

__all__ = ["filter_of", "latest", "ordered", "summarise"]

_WALL_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - what a clock on the wall shows has no zone
_SOON_FOUND = timedelta(days=366) // timedelta(microseconds=1)
"""In a longer time, finding when clocks changed would keep everybody else waiting."""
_MICROSECOND = timedelta(microseconds=1)
_MONDAY = "timestamp '2000-01-03'"


class _Parameters(list[Any]):
    """Values, each with the mark that stands for it in the statement."""

    def mark(self, value: Any, kind: str) -> str:
        self.append(value)
        return f"${len(self)}::{kind}"


def filter_of(
    codec: TimescaleCodec[Any], start: datetime | None, end: datetime | None, where: Mapping[str, Any] | None
) -> Filter:
    """`start <= time < end` and equality of tags. Raises `InvalidInput` for a naive time or what is no tag."""
    conditions, parameters = ["TRUE"], _Parameters()
    for name, value, operator in (("start", start, ">="), ("end", end, "<")):
        if value is not None:
            conditions.append(f't."time" {operator} {parameters.mark(_moment(name, value), "timestamptz")}')
    for name, value in (where or {}).items():
        kept = parameter(codec.field(name, "where"), value, f"where, {name}")
        if kept is None:
            conditions.append(f"t.{quoted(name)} IS NULL")
        else:
            parameters.append(kept)
            conditions.append(f"t.{quoted(name)} = ${len(parameters)}")
    return Filter(" AND ".join(conditions), tuple(parameters))


def ordered(place: Place, codec: TimescaleCodec[Any], stored: Series, where: Filter, limit: int | None) -> str:
    """SQL for rows in the order of time."""
    source = f"{place.table(codec.series)} t WHERE {where.sql}"
    bound = "" if limit is None else f" LIMIT {limit}"
    return f'SELECT {_columns(codec, stored)} FROM {source} ORDER BY t."time"{bound}'  # noqa: S608 - allow-listed


def latest(place: Place, codec: TimescaleCodec[Any], stored: Series, by: Sequence[str], where: Filter) -> str:
    """SQL for the newest row of each combination of `by`."""
    selected, source = _columns(codec, stored), f"{place.table(codec.series)} t WHERE {where.sql}"
    if not by:
        return f'SELECT {selected} FROM {source} ORDER BY t."time" DESC LIMIT 1'  # noqa: S608 - allow-listed
    tags = [f"t.{quoted(name)}" for name in by]
    order = ", ".join(f"{tag} NULLS FIRST" for tag in tags)
    return f'SELECT DISTINCT ON ({", ".join(tags)}) {selected} FROM {source} ORDER BY {order}, t."time" DESC'  # noqa: S608


async def summarise(
    connection: Connection, place: Place, codec: TimescaleCodec[Any], stored: Series | None, summary: Summary
) -> list[Row]:
    """Run an aggregate."""
    nothing = {f"{name}_{aggregation}": 0 if aggregation == "count" else None for name, aggregation in summary.pairs}
    if stored is None:
        return [] if summary.every or summary.by else [Row(None, {}, nothing)]
    parameters = _Parameters(summary.where.parameters)
    key = "NULL"
    if summary.every is not None:
        stretches = await _stretches(connection, place, codec, summary)
        if not stretches:
            return []
        key = _key(place, summary.every, stretches, parameters)
    selected = [key, *(_column(name, stored) for name in summary.by)]
    groups = [str(number) for number in range(1 if summary.every else 2, len(selected) + 1)]
    selected += [_aggregate(place, codec, stored, name, aggregation) for name, aggregation in summary.pairs]
    sql = f"SELECT {', '.join(selected)} FROM {place.table(codec.series)} t WHERE {summary.where.sql}"  # noqa: S608
    if groups:
        sql += f" GROUP BY {', '.join(groups)} ORDER BY {', '.join(f'{group} NULLS FIRST' for group in groups)}"
    rows = await connection.fetch(sql, *parameters)
    return [_row(codec, summary, tuple(row)) for row in rows]


async def _stretches(
    connection: Connection, place: Place, codec: TimescaleCodec[Any], summary: Summary
) -> list[Segment]:
    """The stretches of one offset that the rows lie in; our own, so that they agree with the caller's time zones."""
    if summary.zone.key == "UTC":
        return segments(summary.zone, 0, 0)
    source = f"{place.table(codec.series)} t WHERE {summary.where.sql}"
    row = await connection.fetch_row(
        f'SELECT min(t."time"), max(t."time") FROM {source}',  # noqa: S608 - allow-listed
        *summary.where.parameters,
    )
    if row is None or row[0] is None:
        return []
    begin, end = microseconds(row[0]) - LONGEST_SPLIT, microseconds(row[1])
    if end - begin < _SOON_FOUND:
        return segments(summary.zone, begin, end)
    return await asyncio.to_thread(segments, summary.zone, begin, end)


def _key(place: Place, every: Every, stretches: list[Segment], parameters: _Parameters) -> str:
    """SQL for a bucket's key: its beginning for buckets that split, else what the local clock shows, or months."""
    stretch = _stretch(stretches, parameters)
    offset = _by_stretch(stretch, [timedelta(microseconds=s.offset) for s in stretches], "interval", parameters)
    local = f"""((t."time" AT TIME ZONE 'UTC') + {offset})"""
    if every.unit == "months":
        index = f"(extract(year FROM {local})::int * 12 + extract(month FROM {local})::int - 1)"
        return f"({index} - {index} % {every.size})"
    size = parameters.mark(timedelta(microseconds=every.size), "interval")
    bucket = "date_bin" if place.tier == "plain" else place.function("time_bucket")
    floor = f"{bucket}({size}, {local}, {_MONDAY})"
    if not every.splits:
        return floor
    begin = f"""(({floor} - {offset}) AT TIME ZONE 'UTC')"""
    if len(stretches) == 1:
        return begin
    begins = [from_microseconds(stretch.begin) for stretch in stretches]
    return f"greatest({begin}, {_by_stretch(stretch, begins, 'timestamptz', parameters)})"


def _stretch(stretches: list[Segment], parameters: _Parameters) -> str | None:
    """SQL for the number of the stretch in which a row lies, found by halving; None where there is one alone.

    As arrays, since a statement takes no more than 32,767 parameters, and thousands of years have more stretches.
    """
    if len(stretches) == 1:
        return None
    ends = [from_microseconds(stretch.end) for stretch in stretches[:-1]]
    return f'width_bucket(t."time", {parameters.mark(ends, "timestamptz[]")}) + 1'


def _by_stretch(stretch: str | None, values: list[Any], kind: str, parameters: _Parameters) -> str:
    """SQL for the value of the stretch in which a row lies."""
    if stretch is None:
        return parameters.mark(values[0], kind)
    return f"({parameters.mark(values, f'{kind}[]')})[{stretch}]"


def _row(codec: TimescaleCodec[Any], summary: Summary, values: tuple[Any, ...]) -> Row:
    key, rest = values[0], iter(values[1:])
    tags: dict[str, Any] = {}
    for name in summary.by:
        value, field = next(rest), codec.fields[name]
        tags[name] = field.python(value) if field.kind == "enum" and value is not None else value
    found: dict[str, float | int | None] = {}
    for name, aggregation in summary.pairs:
        value = next(rest)
        whole = aggregation == "sum" and codec.fields[name].kind != "float"
        found[f"{name}_{aggregation}"] = int(value) if whole and value is not None else value
    return Row(None if summary.every is None else _begin(key, summary.every, summary.zone), tags, found)


def _begin(key: Any, every: Every, zone: ZoneInfo) -> datetime:
    if every.unit == "months":
        return begin_of(key, every, zone)
    return begin_of(microseconds(key) if every.splits else (key - _WALL_EPOCH) // _MICROSECOND, every, zone)


def _aggregate(place: Place, codec: TimescaleCodec[Any], stored: Series, name: str, aggregation: str) -> str:
    kind = codec.fields[name].kind
    column = _column(name, stored)
    if aggregation == "count":
        return f"count({column})"
    if name not in stored.fields:
        return "NULL::double precision"
    if kind == "bool":
        column = f"{column}::int"
    if aggregation in ("first", "last"):
        present = f"FILTER (WHERE {column} IS NOT NULL)"
        if place.tier != "plain":
            return f'{place.function(aggregation)}({column}, t."time") {present}'
        direction = "DESC" if aggregation == "last" else "ASC"
        return f'(array_agg({column} ORDER BY t."time" {direction}) {present})[1]'
    if aggregation in _REAL:
        return f"{_REAL[aggregation]}({column})::double precision"
    return f"{aggregation}({column})"


_REAL = {"mean": "avg", "stddev": "stddev_samp"}


def _columns(codec: TimescaleCodec[Any], stored: Series) -> str:
    """What to select for a class; a column that its table does not have yet reads as missing."""
    return ", ".join(_column(name, stored) for name in codec.columns)


def _column(name: str, stored: Series) -> str:
    return f"t.{quoted(name)}" if name in stored.fields else "NULL"


def _moment(name: str, value: datetime) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidInput(
            name, f"must be a datetime, not {type(value).__name__}", example="datetime(2013, 1, 1, tzinfo=UTC)"
        )
    if value.utcoffset() is None:
        raise InvalidInput(name, "is a naive time; say which zone it is in", example="datetime(2013, 1, 1, tzinfo=UTC)")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidInput(name, "lies outside the years 1 to 9999 of UTC") from None
