"""The stretches of one offset: the same however far apart the looks at a zone are."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from kmp_storage.columns import from_microseconds, microseconds
from kmp_storage.embedded.timeseries import SqliteTimeSeriesStore
from kmp_storage.series.time_buckets import segments
from kmp_storage.testing.timeseries import Reading

DAY = timedelta(days=1) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    "name",
    ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Gaza", "Asia/Kolkata"],
)
@pytest.mark.parametrize(("first", "last"), [(1780, 1805), (1995, 2005), (2085, 2115)])
def test_every_change_of_the_clocks_is_found(name: str, first: int, last: int) -> None:
    zone = ZoneInfo(name)
    begin, end = (microseconds(datetime(year, 1, 1, tzinfo=UTC)) for year in (first, last))
    found = segments(zone, begin, end)
    assert (found[0].begin, found[-1].end) == (begin, end + 1)
    assert all(before.end == after.begin for before, after in itertools.pairwise(found))
    assert all(before.offset != after.offset for before, after in itertools.pairwise(found))
    stretch = iter(found)
    current = next(stretch)
    for at in range(begin, end, DAY):
        while at >= current.end:
            current = next(stretch)
        offset = from_microseconds(at).astimezone(zone).utcoffset()
        assert offset == timedelta(microseconds=current.offset)


async def test_a_line_between_the_ends_of_the_numbers_is_one() -> None:
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    async with SqliteTimeSeriesStore("memory:") as store:
        for hour, value in ((0, 1e308), (2, -1e308), (4, 0.1), (7, 0.1)):
            await store.append(Reading(time=begin + timedelta(hours=hour), site="a", value=value))
        rows = await store.aggregate(Reading, values={"value": "mean"}, every="1h", fill="linear")
        assert [row["value_mean"] for row in rows] == [1e308, 0.0, -1e308, -5e307, 0.1, 0.1, 0.1, 0.1]
