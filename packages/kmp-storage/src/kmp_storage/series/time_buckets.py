"""Buckets of time in a zone's local time, right on the days when clocks change.

A bucket begins at a whole unit of the local clock. Days, weeks, months and years are as long as the calendar makes
them (a day has 23 or 25 hours twice a year). Units of at most an hour keep the two passes of a repeated hour apart;
longer ones, such as `6h`, take both into the one bucket that the clock shows.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import count
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from kmp_core.errors import InvalidInput
from kmp_storage.columns import from_microseconds, microseconds

__all__ = [
    "LONGEST_SPLIT",
    "Every",
    "Segment",
    "begin_of",
    "begins",
    "every_of",
    "expected",
    "key_expression",
    "segments",
    "zone_of",
]

_TEXT = re.compile(r"(\d{1,6})(s|m|h|d|w|month|y)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MICRO = 1_000_000
_DAY = 86400 * _MICRO
LONGEST_SPLIT = 3600 * _MICRO
"""Buckets of at most this length keep the two passes of a repeated hour apart."""
_WALL_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - what a clock on the wall shows has no zone
_DECREED = (date(1800, 1, 1) - date(1970, 1, 1)).days * _DAY
_REGULAR = (date(2100, 1, 1) - date(1970, 1, 1)).days * _DAY
_MONDAY = (date(2000, 1, 3) - date(1970, 1, 1)).days * _DAY
_EXAMPLE = '"15m", "1h", "1d", "1w", "1month" or "1y"'


@dataclass(frozen=True, slots=True)
class Every:
    """The length of a bucket: microseconds of the local clock, or calendar months."""

    unit: Literal["clock", "months"]
    size: int

    @property
    def splits(self) -> bool:
        """Whether the two passes of a repeated hour are kept apart."""
        return self.unit == "clock" and self.size <= LONGEST_SPLIT


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time, in microseconds UTC, in which the zone's offset stays the same."""

    begin: int
    end: int
    offset: int


def every_of(value: object) -> Every:
    """Read `every`. Raises `InvalidInput` for a length at which local clocks have no whole unit."""
    if isinstance(value, timedelta):
        size = value // timedelta(microseconds=1)
        return _clock(size)
    match = _TEXT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidInput("every", "is no length of a bucket", example=_EXAMPLE)
    count, unit = int(match[1]), match[2]
    if unit in _SECONDS:
        return _clock(count * _SECONDS[unit] * _MICRO)
    if not 1 <= count <= 1200:
        raise InvalidInput("every", "must be between one month and a century", example=_EXAMPLE)
    months = count * (12 if unit == "y" else 1)
    if months < 12 and 12 % months:
        raise InvalidInput("every", "must divide the year, so that each year begins a bucket", example='"3month"')
    return Every("months", months)


def zone_of(name: str) -> ZoneInfo:
    """The zone of an IANA name. Raises `InvalidInput` for what is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError, AttributeError):
        raise InvalidInput("zone", "is no name of an IANA time zone", example='"Europe/Berlin"') from None


def segments(zone: ZoneInfo, begin: int, end: int) -> list[Segment]:
    """The stretches of one offset that cover `begin <= time <= end`."""
    if zone.key == "UTC":
        return [Segment(begin, end + 1, 0)]
    found: list[Segment] = []
    at, offset = begin, _offset(zone, begin)
    start = begin
    while at <= end:
        # No zone has changed its clocks twice within a day; where only the rules that last count, nor within weeks.
        later = min(at + (_DAY if _DECREED <= at < _REGULAR else 28 * _DAY), end + 1)
        if _offset(zone, later) != offset:
            change = _change(zone, at, later)
            found.append(Segment(start, change, offset))
            start, offset = change, _offset(zone, change)
        at = later
    if start <= end:
        found.append(Segment(start, end + 1, offset))
    return found


def key_expression(every: Every) -> str:
    """SQL for a bucket's key, where `t.time` is the row's and `segment.offset_us` what to add for the local clock.

    For buckets that split it is the beginning in UTC; otherwise what the local clock shows then, or a count of months.
    """
    local = '(t."time" + segment.offset_us)'
    if every.unit == "months":
        # Of whole seconds, rounded towards the past.
        seconds = f"(({local} - (({local} % {_MICRO}) + {_MICRO}) % {_MICRO}) / {_MICRO})"
        year, month = (f"CAST(strftime('{code}', {seconds}, 'unixepoch') AS INTEGER)" for code in ("%Y", "%m"))
        index = f"({year} * 12 + {month} - 1)"
        return f"({index} - {index} % {every.size})"
    since = f"({local} - {_anchor(every)})"
    floor = f"({local} - (({since} % {every.size}) + {every.size}) % {every.size})"
    if not every.splits:
        return floor
    return f"max(segment.begin_us, {floor} - segment.offset_us)"


def begin_of(key: int, every: Every, zone: ZoneInfo) -> datetime:
    """When the bucket with this key begins, in the zone."""
    if every.splits:
        return from_microseconds(key).astimezone(zone)
    if every.unit == "months":
        return _first_showing(datetime(max(key // 12, 1), key % 12 + 1, 1), zone)  # noqa: DTZ001 - on the wall
    return _first_showing(_WALL_EPOCH + timedelta(microseconds=key), zone)


def expected(every: Every, first: datetime, last: datetime) -> int:
    """About how many buckets `begins` gives."""
    if every.unit == "months":
        return ((last.year - first.year) * 12 + last.month - first.month) // every.size + 1
    return (microseconds(last) - microseconds(first)) // every.size + 1


def begins(every: Every, zone: ZoneInfo, first: datetime, last: datetime) -> Iterator[datetime]:
    """When the buckets begin that reach into `first <= time <= last`, in their order and in the zone.

    A day over which the clock jumped as a whole begins with the next one: the same time comes twice then.
    """
    low, high = microseconds(first), microseconds(last)
    if every.splits:
        found = [at for segment in segments(zone, low - LONGEST_SPLIT, high) for at in _begins_in(segment, every)]
        for at in found[bisect_right(found, low) - 1 :]:
            yield from_microseconds(at).astimezone(zone)
        return
    wall = _WALL_EPOCH + timedelta(microseconds=low + _offset(zone, low))
    if every.unit == "months":
        key, step = wall.year * 12 + wall.month - 1, every.size
        key -= key % step
    else:
        key, step = low + _offset(zone, low), every.size
        key -= (key - _anchor(every)) % step
    for index in count():
        try:
            begin = begin_of(key + index * step, every, zone)
        except (OverflowError, ValueError):  # at the end of the calendar
            return
        if microseconds(begin) > high:
            return
        yield begin


def _begins_in(segment: Segment, every: Every) -> Iterator[int]:
    yield segment.begin
    floor = segment.begin - (segment.begin + segment.offset) % every.size
    yield from range(floor + every.size, segment.end, every.size)


def _anchor(every: Every) -> int:
    """From which moment of the local clock buckets are counted."""
    return _MONDAY if every.size % (7 * _DAY) == 0 or every.size > _DAY else 0


def _clock(size: int) -> Every:
    fits = size > 0 and (_DAY % size == 0 if size < _DAY else size % _DAY == 0)
    if not fits or size > 36_600 * _DAY:
        raise InvalidInput("every", "must divide the day or be whole days", example=_EXAMPLE)
    return Every("clock", size)


def _first_showing(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first moment at which the zone's clock shows `wall`, or has just jumped over it."""
    try:
        moment = wall.replace(tzinfo=zone).astimezone(UTC)
        if moment.astimezone(zone).replace(tzinfo=None) == wall:
            return moment.astimezone(zone)
        # The clock jumped over it: the bucket begins with the jump.
        after = microseconds(moment)
        before = microseconds(wall.replace(tzinfo=zone, fold=1).astimezone(UTC))
    except OverflowError:
        return wall.replace(tzinfo=UTC)  # at either end of the calendar
    low, high = min(before, after), max(before, after)
    return from_microseconds(_change(zone, low, high)).astimezone(zone)


def _change(zone: ZoneInfo, low: int, high: int) -> int:
    """The second in `low < at <= high` at which the zone's offset is no longer that of `low`."""
    offset, base = _offset(zone, low), low - low % _MICRO
    before, after = 0, -(-(high - base) // _MICRO)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(zone, base + middle * _MICRO) == offset:
            before = middle
        else:
            after = middle
    return base + after * _MICRO


@lru_cache(maxsize=65536)
def _offset(zone: ZoneInfo, at: int) -> int:
    try:
        offset = from_microseconds(at).astimezone(zone).utcoffset()
    except OverflowError:
        return 0  # at either end of the calendar
    return (offset or timedelta(0)) // timedelta(microseconds=1)
