"""The SQL of reading: filters, aggregates per bucket, and the newest of each.

Names in statements were checked against an allow-list when their class was defined; values are parameters.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from kmp_core.errors import InvalidInput
from kmp_storage.columns import decoder, encode_value, microseconds
from kmp_storage.embedded.timeseries.schema import table
from kmp_storage.series.calls import Filter, Summary
from kmp_storage.series.codec import Codec
from kmp_storage.series.shape import Series, quoted
from kmp_storage.series.time_buckets import LONGEST_SPLIT, begin_of, key_expression, segments
from kmp_storage.values import Row

__all__ = ["columns", "filter_of", "latest", "ordered", "summarise"]


def filter_of(
    codec: Codec[Any], start: datetime | None, end: datetime | None, where: Mapping[str, Any] | None
) -> Filter:
    """`start <= time < end` and equality of tags. Raises `InvalidInput` for a naive time or what is no tag."""
    conditions, parameters = ["TRUE"], []
    for name, value, operator in (("start", start, ">="), ("end", end, "<")):
        if value is not None:
            conditions.append(f't."time" {operator} ?')
            parameters.append(_moment(name, value))
    for name, value in (where or {}).items():
        field = codec.field(name, "where")
        conditions.append(f"t.{quoted(name)} IS ?")
        parameters.append(encode_value(field, value, where=f"where, {name}"))
    return Filter(" AND ".join(conditions), tuple(parameters))


def columns(codec: Codec[Any], stored: Series) -> str:
    """What to select for a class; a column that its table does not have yet reads as missing."""
    return ", ".join(f"t.{quoted(name)}" if name in stored.fields else "NULL" for name in codec.columns)


def ordered(codec: Codec[Any], stored: Series, where: Filter, limit: int) -> str:
    """SQL for rows in the order of time, and of their storing among equals; a negative limit is none."""
    source = f"{table(codec.series)} t WHERE {where.sql}"
    return f'SELECT {columns(codec, stored)} FROM {source} ORDER BY t."time", t._rowid_ LIMIT {limit}'  # noqa: S608


def latest(codec: Codec[Any], stored: Series, by: Sequence[str], where: Filter) -> str:
    """SQL for the newest row of each combination of `by`."""
    selected, source = columns(codec, stored), f"{table(codec.series)} t WHERE {where.sql}"
    if not by:
        return f'SELECT {selected} FROM {source} ORDER BY t."time" DESC, t._rowid_ DESC LIMIT 1'  # noqa: S608
    # With a single max(), SQLite takes the other columns from the row that has it ("Bare columns in an aggregate").
    tags = ", ".join(f"t.{quoted(name)}" for name in by)
    return f'SELECT {selected}, max(t."time") FROM {source} GROUP BY {tags} ORDER BY {tags}'  # noqa: S608


def summarise(connection: sqlite3.Connection, codec: Codec[Any], stored: Series | None, summary: Summary) -> list[Row]:
    """Run an aggregate."""
    nothing = {f"{name}_{aggregation}": 0 if aggregation == "count" else None for name, aggregation in summary.pairs}
    span = None if stored is None else _span(connection, codec, summary.where)
    if stored is None or span is None:
        return [] if summary.every or summary.by else [Row(None, {}, nothing)]
    _register(connection)
    sql, parameters = _sql(codec, stored, summary, span)
    decoders = [decoder(codec.fields[name]) for name in summary.by]
    return [_row(summary, values, decoders) for values in connection.execute(sql, parameters)]


def _row(summary: Summary, values: tuple[Any, ...], decoders: list[Any]) -> Row:
    key, rest = values[0], iter(values[1:])
    tags = {}
    for name, decode in zip(summary.by, decoders, strict=True):
        value = next(rest)
        tags[name] = value if decode is None or value is None else decode(value)
    found: dict[str, float | int | None] = {}
    for name, aggregation in summary.pairs:
        value = next(rest)
        if aggregation == "sum":
            low = next(rest)
            value = value if low is None else (value << 32) + low
        found[f"{name}_{aggregation}"] = value
    return Row(None if summary.every is None else begin_of(key, summary.every, summary.zone), tags, found)


def _sql(codec: Codec[Any], stored: Series, summary: Summary, span: tuple[int, int]) -> tuple[str, tuple[Any, ...]]:
    selected, grouped = ["NULL"], []
    joined, common = f"{table(codec.series)} t", ""
    if summary.every is not None:
        # From a little before the first row, or its bucket would seem to begin with it.
        stretches = segments(summary.zone, span[0] - LONGEST_SPLIT, span[1])
        values = ", ".join(f"({s.begin}, {s.end}, {s.offset})" for s in stretches)
        common = f"WITH segment(begin_us, end_us, offset_us) AS (VALUES {values}) "
        # CROSS JOIN fixes the order of the loops: few segments outside, an index on time inside.
        joined = f'segment CROSS JOIN {joined} ON t."time" >= segment.begin_us AND t."time" < segment.end_us'
        selected = [key_expression(summary.every)]
        grouped = ["1"]
    for index, name in enumerate(summary.by, start=2):
        selected.append(_column(name, stored))
        grouped.append(str(index))
    for name, aggregation in summary.pairs:
        selected += _aggregate(codec, stored, name, aggregation)
    sql = f"{common}SELECT {', '.join(selected)} FROM {joined} WHERE {summary.where.sql}"  # noqa: S608
    if grouped:
        sql += f" GROUP BY {', '.join(grouped)} ORDER BY {', '.join(grouped)}"
    return sql, summary.where.parameters


def _aggregate(codec: Codec[Any], stored: Series, name: str, aggregation: str) -> list[str]:
    column = _column(name, stored)
    if aggregation == "sum":
        if codec.fields[name].kind == "float":
            return [f"sum({column})", "NULL"]
        # In two halves, because SQLite refuses a sum of integers beyond 64 bits, and Python does not.
        return [f"sum({column} >> 32)", f"sum({column} & 4294967295)"]
    if aggregation in ("first", "last"):
        return [f'kmp_{aggregation}({column}, t."time", t._rowid_)']
    return [f"{_FUNCTIONS.get(aggregation, aggregation)}({column})"]


_FUNCTIONS = {"mean": "avg", "stddev": "kmp_stddev"}


def _column(name: str, stored: Series) -> str:
    return f"t.{quoted(name)}" if name in stored.fields else "NULL"


def _span(connection: sqlite3.Connection, codec: Codec[Any], where: Filter) -> tuple[int, int] | None:
    sql = f'SELECT min(t."time"), max(t."time") FROM {table(codec.series)} t WHERE {where.sql}'  # noqa: S608
    low, high = connection.execute(sql, where.parameters).fetchone()
    return None if low is None else (low, high)


def _moment(name: str, value: datetime) -> int:
    if not isinstance(value, datetime):
        raise InvalidInput(
            name, f"must be a datetime, not {type(value).__name__}", example="datetime(2013, 1, 1, tzinfo=UTC)"
        )
    if value.utcoffset() is None:
        raise InvalidInput(name, "is a naive time; say which zone it is in", example="datetime(2013, 1, 1, tzinfo=UTC)")
    return microseconds(value)


def _register(connection: sqlite3.Connection) -> None:
    # Typeshed knows aggregates of one integer only.
    functions: list[tuple[str, int, Any]] = [("stddev", 1, _Deviation), ("first", 3, _First), ("last", 3, _Last)]
    for name, arguments, function in functions:
        connection.create_aggregate(f"kmp_{name}", arguments, function)


class _Deviation:
    """The standard deviation of a sample by Welford's method, which stays exact where sums of squares do not."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def step(self, value: float | None) -> None:
        if value is not None:
            self._count += 1
            delta = value - self._mean
            self._mean += delta / self._count
            self._squares += delta * (value - self._mean)

    def finalize(self) -> float | None:
        return math.sqrt(self._squares / (self._count - 1)) if self._count > 1 else None


class _First:
    """The value that came first in time (and was stored first, among equals)."""

    def __init__(self) -> None:
        self._at: tuple[int, int] | None = None
        self._value: float | None = None

    def step(self, value: float | None, time: int, row: int) -> None:
        if value is not None and (self._at is None or self.before((time, row), self._at)):
            self._at, self._value = (time, row), value

    def finalize(self) -> float | None:
        return self._value

    def before(self, ours: tuple[int, int], theirs: tuple[int, int]) -> bool:
        return ours < theirs


class _Last(_First):
    """The value that came last in time."""

    def before(self, ours: tuple[int, int], theirs: tuple[int, int]) -> bool:
        return ours > theirs
