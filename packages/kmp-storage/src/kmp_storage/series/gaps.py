"""For providers: the buckets of an aggregate in which nothing was measured, and what stands there.

Done here and not by the server: the buckets follow the time zone data of the service, and not every edition of every
server can fill gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import Enum
from math import isfinite
from typing import Any, Protocol, get_args
from zoneinfo import ZoneInfo

from kmp_core.errors import InvalidInput
from kmp_storage.columns import microseconds
from kmp_storage.fields import did_you_mean
from kmp_storage.protocols import Fill
from kmp_storage.series.time_buckets import Every, begins, expected
from kmp_storage.values import Row

__all__ = ["MOST_ROWS", "Asked", "check_fill", "filled"]

MOST_ROWS = 100_000
"""A result is one list: what would be longer is refused."""

Values = dict[str, float | int | None]
_KNOWN: tuple[str, ...] = get_args(Fill)


def check_fill(fill: object, every: object) -> None:
    """Raise `InvalidInput` for what is no way to fill gaps, or where there are no buckets to be empty."""
    if fill is None:
        return
    if fill not in _KNOWN:
        raise InvalidInput("fill", f"{fill!r} is unknown{did_you_mean(str(fill), _KNOWN)}", example='"previous"')
    if every is None:
        raise InvalidInput("fill", "needs buckets of time; pass 'every' too", example='every="1h", fill="null"')


class Asked(Protocol):
    """What an aggregate asks for: pairs of field and aggregation, tags to group by, and the buckets."""

    @property
    def pairs(self) -> Sequence[tuple[str, str]]: ...
    @property
    def by(self) -> Sequence[str]: ...
    @property
    def every(self) -> Every | None: ...
    @property
    def zone(self) -> ZoneInfo: ...


def filled(
    rows: list[Row], fill: Fill | None, asked: Asked, *, start: datetime | None, end: datetime | None
) -> list[Row]:
    """The rows, and one for every bucket between them (between `start` and `end` where given) for the same tags.

    Raises `InvalidInput` where they would be more than `MOST_ROWS`.
    """
    if fill is None or asked.every is None:
        return rows
    groups = {_key(row): row.tags for row in rows} or ({} if asked.by else {(): {}})
    first = rows[0].time if start is None and rows else start
    if not groups or first is None or (end is not None and end <= first):
        return rows
    last = end - timedelta(microseconds=1) if end is not None else rows[-1].time if rows else None
    if last is None or last < first:
        return rows
    if (count := expected(asked.every, first, last) * len(groups)) > MOST_ROWS:
        raise InvalidInput(
            "every",
            f"would make some {count:,} rows with 'fill', more than {MOST_ROWS:,}; take longer buckets, or less time",
            example='"1d"',
        )
    found = {(_at(row.time), _key(row)): row for row in rows}
    # Each once; and what was found stays, whatever the calendar says.
    times = {_at(time): time for time in (*begins(asked.every, asked.zone, first, last), *(row.time for row in rows))}
    moments = sorted(times)
    empty: Values = {
        f"{name}_{aggregation}": 0 if aggregation == "count" else None for name, aggregation in asked.pairs
    }
    table: dict[tuple[Any, ...], list[Values]] = {}
    for key in sorted(groups, key=_order):
        values = [dict(found[at, key].values) if (at, key) in found else dict(empty) for at in moments]
        for name in () if fill == "null" else (name for name, nothing in empty.items() if nothing is None):
            _FILLERS[fill](moments, values, name)
        table[key] = values
    return [Row(times[at], groups[key], table[key][index]) for index, at in enumerate(moments) for key in table]


def _previous(moments: Sequence[int], values: Sequence[Values], name: str) -> None:
    known = None
    for row in values:
        if row[name] is None:
            row[name] = known
        known = row[name]


def _linear(moments: Sequence[int], values: Sequence[Values], name: str) -> None:
    before: tuple[int, int, float] | None = None
    for index, (at, row) in enumerate(zip(moments, values, strict=True)):
        value = row[name]
        if value is None:
            continue
        if before is not None:
            position, since, known = before
            rise = value - known
            for between in range(position + 1, index):
                part = (moments[between] - since) / (at - since)
                # A rise between the ends of the numbers is none of them.
                values[between][name] = known + rise * part if isfinite(rise) else known * (1 - part) + value * part
        before = (index, at, value)


_FILLERS = {"previous": _previous, "linear": _linear}


def _at(time: datetime | None) -> int:
    # As a number: of two times in one zone, those of a repeated hour would seem the same.
    assert time is not None
    return microseconds(time)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.tags.values())


def _order(key: tuple[Any, ...]) -> list[tuple[bool, Any]]:
    """As the stores order tags: None first."""
    return [(value is not None, value.value if isinstance(value, Enum) else value) for value in key]
