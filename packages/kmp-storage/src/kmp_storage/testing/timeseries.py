"""What every time-series store promises; derive `TestMyStore(TimeSeriesContract)` and define the fixture `make`."""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from enum import Enum
from typing import Any, ClassVar, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from kmp_core.errors import Conflict, DeadlineExceeded, InvalidInput, Unsupported
from kmp_core.testing import Make, ProviderContract, Recorder
from kmp_storage.models import Measurement
from kmp_storage.protocols import TimeSeriesStore

__all__ = ["Flight", "Reading", "TimeSeriesContract"]

START = datetime(2024, 1, 1, tzinfo=UTC)
ODD_TEXT = "a'b\"c;--\\ \u00e9 \U0001f6eb \u202e%_ "


class Reading(Measurement, series="contract_readings", tags=("site", "probe")):
    """Any number of them at one time."""

    site: str
    probe: str | None = None
    value: float | None = None
    count: int = 0


class Flight(Measurement, series="contract_flights", tags=("origin",), unique=("flight",)):
    """One of a kind."""

    flight: str
    origin: str
    minutes: float | None


class Note(Measurement, series="contract_notes"):
    """Of another series."""

    text: str


class _Colour(Enum):
    RED = "red"
    BLUE = "blue"


class _Everything(Measurement, series="contract_everything", tags=("colour",)):
    """A field of each type."""

    flag: bool
    whole: int
    real: float
    text: str
    raw: bytes
    moment: datetime
    day: date
    number: UUID
    colour: _Colour
    grade: Literal[1, 2]
    nothing: str | None


class _Short(Measurement, series="contract_short", retention="1h"):
    value: int


class TimeSeriesContract(ProviderContract):
    """The promises of `TimeSeriesStore` within one process; `SharedTimeSeriesContract` adds those over several."""

    abilities: ClassVar[frozenset[str]] = frozenset({"durable", "retention", "shared", "unique", "zones"})
    """What a store may declare beyond the calls of its protocol: a declared ability is tested, for another
    `Unsupported` is demanded."""

    async def write(self, provider: Any) -> None:
        await provider.append(reading(0))

    async def wrote(self, provider: Any) -> bool:
        return bool(await provider.latest(Reading))

    async def test_declares_known_abilities(self, make: Make) -> None:
        assert make().abilities <= self.abilities

    # Appending

    async def test_returns_what_was_appended(self, make: Make) -> None:
        row = _Everything(
            time=START,
            flag=True,
            whole=-(2**63),
            real=0.1 + 0.2,
            text=ODD_TEXT,
            raw=bytes(range(256)),
            moment=datetime(1901, 2, 3, 4, 5, 6, 789, tzinfo=UTC),
            day=date(1, 1, 1),
            number=UUID(int=2**128 - 1),
            colour=_Colour.BLUE,
            grade=2,
            nothing=None,
        )
        async with make() as store:
            assert await store.append(row) == 1
            (found,) = [found async for found in store.read(_Everything, where={"colour": _Colour.BLUE})]
            assert found == row
            assert not [found async for found in store.read(_Everything, where={"colour": _Colour.RED})]

    async def test_times_are_kept_to_the_microsecond_whatever_their_zone(self, make: Make) -> None:
        local = datetime(2024, 7, 1, 12, 0, 0, 1, tzinfo=ZoneInfo("Asia/Kathmandu"))
        async with make() as store:
            await store.append(Reading(time=local, site="a"))
            (found,) = [found async for found in store.read(Reading)]
            assert found.time == local
            assert found.time.utcoffset() == timedelta(0)

    async def test_a_call_may_bring_several_series_and_none(self, make: Make) -> None:
        async with make() as store:
            assert await store.append() == 0
            assert await store.append(reading(0), note(0), reading(1)) == 3
            assert [row async for row in store.read(Reading)] == [reading(0), reading(1)]
            assert [row async for row in store.read(Note)] == [note(0)]

    @pytest.mark.parametrize(
        ("field", "value", "problem"),
        [
            ("time", datetime(2024, 1, 1), "naive"),  # noqa: DTZ001 - the point
            ("time", datetime.min.replace(tzinfo=timezone(timedelta(hours=14))), "years 1 to 9999"),
            ("time", datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))), "years 1 to 9999"),
            ("value", math.nan, "finite"),
            ("value", math.inf, "finite"),
            ("value", "1", "float"),
            ("count", 2**63, "64 bits"),
            ("count", -(2**63) - 1, "64 bits"),
            ("count", True, "int"),
            ("count", None, "None"),
            ("site", "a\0b", "NUL"),
            ("site", "\ud800", "surrogate"),
            ("probe", b"x", "str"),
        ],
    )
    async def test_a_wrong_value_is_refused_by_row_and_field_and_nothing_is_written(
        self, make: Make, field: str, value: Any, problem: str
    ) -> None:
        # A model's own validation is passed by, as `model_copy` does it.
        wrong = reading(3).model_copy(update={field: value})
        async with make() as store:
            with pytest.raises(InvalidInput, match=problem) as refused:
                await store.append(reading(0), note(1), reading(2), wrong)
            assert (refused.value.field, refused.value.row) == (field, 3)
            with pytest.raises(InvalidInput, match=problem) as refused:
                await store.append_all([*map(reading, range(5000)), wrong])
            assert (refused.value.field, refused.value.row) == (field, 5000)
            assert not await store.latest(Reading)
            assert not await store.latest(Note)

    async def test_what_is_no_measurement_is_refused(self, make: Make) -> None:
        async with make() as store:
            for wrong in ([reading(0)], {"time": START}, None):
                with pytest.raises(InvalidInput):
                    await store.append(reading(0), wrong)
            with pytest.raises(InvalidInput, match=r"row 1, .*one class, Reading"):
                await store.append_all([reading(0), note(0)])
            with pytest.raises(InvalidInput):
                await store.append_all(3)
            with pytest.raises(InvalidInput):
                [row async for row in store.read(dict)]
            assert not await store.latest(Reading)

    async def test_a_stream_is_stored_whole_in_its_order(self, make: Make) -> None:
        async def source() -> AsyncIterator[Reading]:
            for number in range(5003):
                yield reading(number)

        async with make() as store:
            assert await store.append_all(iter([])) == 0
            assert await store.append_all(source()) == 5003
            assert await store.append_all(map(reading, range(5003, 5010))) == 7
            assert [row.count async for row in store.read(Reading)] == list(range(5010))

    async def test_a_stream_that_fails_leaves_nothing(self, make: Make) -> None:
        def broken() -> Iterator[Reading]:
            yield from map(reading, range(5003))
            raise RuntimeError("the source is broken")

        async with make() as store:
            with pytest.raises(RuntimeError, match="the source is broken"):
                await store.append_all(broken())
            assert not await store.latest(Reading)

    async def test_a_slow_stream_holds_nobody_up(self, make: Make) -> None:
        resume = asyncio.Event()

        async def slow() -> AsyncIterator[Reading]:
            for number in range(5000):
                yield reading(number)
            await resume.wait()
            yield reading(5000)

        async with make() as store:
            streaming = asyncio.ensure_future(store.append_all(slow()))
            await asyncio.sleep(0.1)
            assert await store.append(reading(9999), timeout="20s") == 1
            assert [row.count async for row in store.read(Reading)] == [9999]
            resume.set()
            assert await streaming == 5001

    async def test_a_cancelled_append_leaves_all_or_nothing(self, make: Make) -> None:
        rows = [reading(number) for number in range(3000)]
        async with make() as store:
            for pause in (0, 0, 0.001, 0.003, 0.01):
                for call in (store.append(*rows), store.append_all(rows)):
                    before = await count(store)
                    task = asyncio.ensure_future(call)
                    await asyncio.sleep(pause)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    assert await count(store) - before in (0, len(rows))
            assert await store.append(reading(0)) == 1

    async def test_an_append_whose_time_is_over_wrote_nothing(self, make: Make) -> None:
        rows = [reading(number) for number in range(20_000)]
        async with make() as store:
            with pytest.raises(DeadlineExceeded):
                await store.append(*rows, timeout="1ms")
            with pytest.raises(DeadlineExceeded):
                await store.append_all(rows, timeout=0)
            assert await count(store) == 0
            assert await store.append(*rows) == len(rows)

    # Rows of which there is one

    async def test_the_same_row_again_is_ignored_and_not_counted(self, make: Make) -> None:
        async with make() as store:
            if "unique" not in store.abilities:
                with pytest.raises(Unsupported):
                    await store.append(flight(0))
                return
            assert await store.append(flight(0), flight(1), flight(0)) == 2
            assert await store.append(flight(1), flight(2)) == 1
            assert await store.append_all(map(flight, range(5))) == 2
            assert [row.flight async for row in store.read(Flight)] == [f"KM{number}" for number in range(5)]

    async def test_the_same_key_with_other_values_is_a_conflict(self, make: Make) -> None:
        async with make() as store:
            if "unique" not in store.abilities:
                return
            await store.append(flight(0), flight(1))
            for change in ({"minutes": 99.0}, {"minutes": None}, {"origin": "XXX"}):
                other = flight(1).model_copy(update=change)
                with pytest.raises(Conflict, match="row 1"):
                    await store.append(flight(7), other)
                with pytest.raises(Conflict, match="row 2500"):
                    await store.append_all([*map(flight, range(10, 2510)), other])
            assert [row async for row in store.read(Flight)] == [flight(0), flight(1)]

    async def test_a_series_whose_first_call_was_refused_can_be_used(self, make: Make) -> None:
        async with make() as store:
            if "unique" not in store.abilities:
                return
            with pytest.raises(Conflict):
                await store.append(flight(0), flight(0).model_copy(update={"minutes": 99.0}))
            assert await store.append(flight(0)) == 1

    async def test_another_time_is_another_key(self, make: Make) -> None:
        async with make() as store:
            if "unique" not in store.abilities:
                return
            later = flight(0).model_copy(update={"time": START + timedelta(days=1), "minutes": 3.0})
            assert await store.append(flight(0), later) == 2

    # Reading

    async def test_reads_in_the_order_of_time_between_bounds(self, make: Make) -> None:
        numbers = [5, 3, 9, 0, 7, 1]
        async with make() as store:
            await store.append(*map(reading, numbers))

            async def read(**options: Any) -> list[int]:
                return [row.count async for row in store.read(Reading, **options)]

            assert await read() == sorted(numbers)
            assert await read(start=at(1), end=at(7)) == [1, 3, 5]
            assert await read(limit=2) == [0, 1]
            assert await read(limit=0) == []
            assert await read(where={"site": "s1"}) == [1, 3, 5, 7, 9]
            assert await read(where={"site": "s1", "probe": None}) == [1, 3, 5, 7, 9]
            assert await read(where={"site": "' OR 1=1 --"}) == []
            with pytest.raises(InvalidInput, match="naive"):
                await read(start=datetime(2024, 1, 1))  # noqa: DTZ001 - the point
            with pytest.raises(InvalidInput, match="did you mean 'site'"):
                await read(where={"sitee": "s1"})
            with pytest.raises(InvalidInput, match="tags"):
                await read(where={"value": 1.0})
            with pytest.raises(InvalidInput, match="limit"):
                await read(limit=-1)

    async def test_a_series_that_nobody_wrote_is_empty(self, make: Make) -> None:
        async with make() as store:
            assert [row async for row in store.read(Reading)] == []
            assert await store.latest(Reading, by=("site",)) == []
            assert await store.aggregate(Reading, values={"value": "mean"}, every="1d") == []
            (row,) = await store.aggregate(Reading, values={"value": ["count", "mean"]})
            assert (row["value_count"], row["value_mean"]) == (0, None)
            assert await store.erase(Reading, where={"site": "a"}) == 0

    async def test_a_read_that_is_left_early_holds_nothing(self, make: Make) -> None:
        async with make() as store:
            await store.append_all(map(reading, range(10_000)))
            for _ in range(20):
                async for row in store.read(Reading):
                    assert row.count == 0
                    break
            assert await store.append(reading(1)) == 1

    async def test_a_read_sees_one_state_while_others_write(self, make: Make) -> None:
        async with make() as store:
            await store.append_all(map(reading, range(6000)))
            seen = 0
            async for row in store.read(Reading):
                if row.count == 0:
                    await store.append_all(map(reading, range(6000, 7000)))
                seen += 1
            assert seen == 6000

    async def test_the_latest_of_each(self, make: Make) -> None:
        async with make() as store:
            await store.append(*(reading(number) for number in (4, 2, 3, 0, 1)))
            assert await store.latest(Reading) == [reading(4)]
            assert await store.latest(Reading, by=("site",)) == [reading(4), reading(3)]
            assert await store.latest(Reading, by=("site",), where={"site": "s1"}) == [reading(3)]
            with pytest.raises(InvalidInput, match="sequence"):
                await store.latest(Reading, by="site")

    async def test_erases_by_tag_and_never_everything(self, make: Make) -> None:
        async with make() as store:
            await store.append(*map(reading, range(10)))
            with pytest.raises(InvalidInput):
                await store.erase(Reading, where={})
            assert await store.erase(Reading, where={"site": "s1"}) == 5
            assert [row.count async for row in store.read(Reading)] == [0, 2, 4, 6, 8]

    # Aggregates

    async def test_summarises_each_value(self, make: Make) -> None:
        values = [3.5, None, -1.0, 1e6, 1e6 + 1, 0.25]
        async with make() as store:
            rows = [Reading(time=at(i), site="a", value=v, count=2**62) for i, v in enumerate(values)]
            await store.append(*reversed(rows))
            (row,) = await store.aggregate(
                Reading,
                values={"value": ["count", "sum", "mean", "min", "max", "first", "last", "stddev"], "count": "sum"},
            )
        present = [value for value in values if value is not None]
        assert row.time is None
        assert row["value_count"] == 5
        assert row["value_sum"] == pytest.approx(math.fsum(present))
        assert row["value_mean"] == pytest.approx(statistics.fmean(present))
        assert (row["value_min"], row["value_max"]) == (-1.0, 1e6 + 1)
        assert (row["value_first"], row["value_last"]) == (3.5, 0.25)
        assert row["value_stddev"] == pytest.approx(statistics.stdev(present))
        assert row["count_sum"] == 6 * 2**62

    async def test_the_deviation_of_nearly_equal_values_is_exact(self, make: Make) -> None:
        values = [1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16]
        async with make() as store:
            await store.append(*(Reading(time=at(i), site="a", value=v) for i, v in enumerate(values)))
            (row,) = await store.aggregate(Reading, values={"value": "stddev"})
            assert row["value_stddev"] == pytest.approx(math.sqrt(30), rel=1e-9)
            (row,) = await store.aggregate(Reading, values={"value": "stddev"}, end=at(1))
            assert row["value_stddev"] is None

    async def test_groups_by_time_and_tags_in_order(self, make: Make) -> None:
        async with make() as store:
            await store.append(*map(reading, range(180)))
            rows = await store.aggregate(
                Reading, values={"count": "sum"}, every="1h", by=("site",), where={"probe": None}, start=at(60)
            )
        expected = [
            (
                START + timedelta(hours=hour),
                f"s{site}",
                sum(n for n in range(hour * 60, hour * 60 + 60) if n % 2 == site),
            )
            for hour, site in itertools.product((1, 2), (0, 1))
        ]
        assert [(row.time, row.tags["site"], row["count_sum"]) for row in rows] == expected

    @pytest.mark.parametrize(("every", "minutes"), [("15m", 15), ("1h", 60), ("6h", 360), ("1d", 1440)])
    async def test_a_bucket_begins_with_its_unit_and_not_with_its_first_row(
        self, make: Make, every: str, minutes: int
    ) -> None:
        async with make() as store:
            await store.append(reading(minutes + 7), reading(minutes + 8))
            (row,) = await store.aggregate(Reading, values={"value": "count"}, every=every)
            assert (row.time, row["value_count"]) == (at(minutes), 2)

    async def test_a_wrong_question_is_refused(self, make: Make) -> None:
        wrong: list[dict[str, Any]] = [
            {"values": {}},
            {"values": {"valeu": "mean"}},
            {"values": {"value": "meen"}},
            {"values": {"site": "mean"}},
            {"values": {"value": "mean"}, "every": "7h"},
            {"values": {"value": "mean"}, "every": "0m"},
            {"values": {"value": "mean"}, "every": "5month"},
            {"values": {"value": "mean"}, "every": "soon"},
            {"values": {"value": "mean"}, "every": timedelta(0)},
            {"values": {"value": "mean"}, "by": ("value",)},
            {"values": {"value": "mean"}, "by": ("site; DROP TABLE x",)},
            {"values": {"value": "mean"}, "zone": "Europe/Berlim"},
            {"values": {"value": "mean"}, "zone": "../../etc/passwd"},
        ]
        async with make() as store:
            for question in wrong:
                with pytest.raises(InvalidInput):
                    await store.aggregate(Reading, **question)

    @pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana"])
    @pytest.mark.parametrize("every", ["15m", "1h", "6h", "1d", "1w", "1month", "1y"])
    async def test_buckets_follow_the_local_clock_when_it_changes(self, make: Make, zone: str, every: str) -> None:
        async with make() as store:
            if "zones" not in store.abilities:
                with pytest.raises(Unsupported):
                    await store.aggregate(Reading, values={"value": "count"}, every=every, zone=zone)
                return
            moments = list(around_changes(ZoneInfo(zone)))
            await store.append_all(Reading(time=moment, site="a", value=1.0) for moment in moments)
            rows = await store.aggregate(Reading, values={"value": "count"}, every=every, zone=zone)
        assert [(row.time.astimezone(UTC), row["value_count"]) for row in rows if row.time] == buckets(
            moments, every, ZoneInfo(zone)
        )
        assert all(row.time is not None and row.time.tzinfo == ZoneInfo(zone) for row in rows)

    async def test_a_day_that_begins_with_a_jump_of_the_clock_begins_with_it(self, make: Make) -> None:
        # In Toronto, half past eleven in the evening of 30 March 1919 was followed by half past midnight.
        jump = datetime(1919, 3, 31, 4, 30, tzinfo=UTC)
        async with make() as store:
            if "zones" not in store.abilities:
                return
            await store.append(*(Reading(time=jump + timedelta(minutes=m), site="a") for m in (-1, 0, 1, 600)))
            rows = await store.aggregate(Reading, values={"count": "count"}, every="1d", zone="America/Toronto")
            assert [(row.time, row["count_count"]) for row in rows][1:] == [(jump, 3)]

    # Gaps

    async def test_gaps_are_filled_as_asked(self, make: Make) -> None:
        known = {0: 2.0, 3: 5.0, 4: None, 5: 1.0}

        async def ask(store: TimeSeriesStore, **options: Any) -> list[tuple[int, float | None, int]]:
            rows = await store.aggregate(Reading, values={"value": ["mean", "count"]}, every="1h", **options)
            times = [(row.time - START) // timedelta(hours=1) for row in rows if row.time]
            return [(hour, row["value_mean"], row["value_count"]) for hour, row in zip(times, rows, strict=True)]

        async with make() as store:
            await store.append(*(Reading(time=at(60 * hour + 7), site="a", value=v) for hour, v in known.items()))
            assert await ask(store) == [(0, 2.0, 1), (3, 5.0, 1), (4, None, 0), (5, 1.0, 1)]
            assert [value for _, value, _ in await ask(store, fill="null")] == [2.0, None, None, 5.0, None, 1.0]
            assert [value for _, value, _ in await ask(store, fill="previous")] == [2.0, 2.0, 2.0, 5.0, 5.0, 1.0]
            lined = await ask(store, fill="linear")
            assert [value for _, value, _ in lined] == pytest.approx([2.0, 3.0, 4.0, 5.0, 3.0, 1.0])
            assert lined[1][2] == 0, "nothing was counted there"
            bounds = {"start": START - timedelta(minutes=61), "end": at(7 * 60)}
            padded = await ask(store, fill="previous", **bounds)
            assert padded == [
                (-2, None, 0), (-1, None, 0), (0, 2.0, 1), (1, 2.0, 0), (2, 2.0, 0),
                (3, 5.0, 1), (4, 5.0, 0), (5, 1.0, 1), (6, 1.0, 0),
            ]  # fmt: skip
            padded = await ask(store, fill="linear", **bounds)
            assert [value for _, value, _ in padded][:2] == [None, None]
            assert padded[-1] == (6, None, 0)

    async def test_gaps_are_filled_for_each_combination_of_tags_that_was_found(self, make: Make) -> None:
        async with make() as store:
            question: dict[str, Any] = {"values": {"value": "sum", "count": "count"}, "every": "1h", "fill": "null"}
            bounds = {"start": at(0), "end": at(120)}
            assert await store.aggregate(Reading, by=("site",), **question, **bounds) == []
            nothing = await store.aggregate(Reading, **question, **bounds)
            assert [(row.time, row["value_sum"], row["count_count"]) for row in nothing] == [
                (at(0), None, 0),
                (at(60), None, 0),
            ]
            assert await store.aggregate(Reading, **question) == []
            await store.append(
                Reading(time=at(0), site="b", probe="x", value=1.0),
                Reading(time=at(121), site="a", value=2.0),
            )
            rows = await store.aggregate(Reading, by=("probe", "site"), **question)
            assert [(row.time, row["probe"], row["site"], row["value_sum"]) for row in rows] == [
                (at(hour * 60), probe, site, value)
                for hour, values in enumerate([(None, 1.0), (None, None), (2.0, None)])
                for (probe, site), value in zip([(None, "a"), ("x", "b")], values, strict=True)
            ]

    @pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "America/Havana"])
    @pytest.mark.parametrize("every", ["15m", "1h", "6h", "1d", "1w", "1month"])
    async def test_filled_buckets_follow_the_local_clock_when_it_changes(
        self, make: Make, zone: str, every: str
    ) -> None:
        async with make() as store:
            if "zones" not in store.abilities:
                return
            moments = list(around_changes(ZoneInfo(zone)))
            whole = [moments[n : n + 4 * 144] for n in range(0, len(moments), 4 * 144)]
            for stretch in whole:
                await store.append(Reading(time=stretch[200], site="a", value=1.0))
            for stretch in whole:
                rows = await store.aggregate(
                    Reading,
                    values={"value": "count"},
                    every=every,
                    zone=zone,
                    fill="null",
                    start=stretch[0],
                    end=stretch[-1] + timedelta(microseconds=1),
                )
                expected = [begin for begin, _ in buckets(stretch, every, ZoneInfo(zone))]
                assert [row.time.astimezone(UTC) for row in rows if row.time] == expected
                assert sum(row["value_count"] for row in rows) == 1
                assert all(row.time is not None and row.time.tzinfo == ZoneInfo(zone) for row in rows)

    async def test_a_day_that_a_zone_left_out_is_no_gap(self, make: Make) -> None:
        # Samoa went from 29 to 31 December 2011, to the other side of the date line.
        zone = ZoneInfo("Pacific/Apia")
        async with make() as store:
            if "zones" not in store.abilities:
                return
            days = [datetime(2011, 12, day, 12, tzinfo=zone) for day in (28, 31)]
            await store.append(*(Reading(time=day, site="a", value=float(day.day)) for day in days))
            rows = await store.aggregate(
                Reading, values={"value": "sum"}, every="1d", zone="Pacific/Apia", fill="previous"
            )
            assert [(row.time.day, row["value_sum"]) for row in rows if row.time] == [
                (28, 28.0),
                (29, 28.0),
                (31, 31.0),
            ]

    async def test_a_wrong_wish_for_gaps_is_refused(self, make: Make) -> None:
        async with make() as store:
            await store.append(reading(0))
            wrong: list[tuple[dict[str, Any], str]] = [
                ({"fill": "previus", "every": "1h"}, "did you mean 'previous'"),
                ({"fill": 0, "every": "1h"}, "fill"),
                ({"fill": "null"}, "every"),
                ({"fill": "null", "every": "1s", "end": START + timedelta(days=9)}, "777,600 rows"),
                ({"fill": "null", "every": "1s", "start": datetime.min.replace(tzinfo=UTC)}, "rows"),
            ]
            for options, problem in wrong:
                with pytest.raises(InvalidInput, match=problem):
                    await store.aggregate(Reading, values={"value": "mean"}, **options)
            backwards = {"start": at(5), "end": datetime.min.replace(tzinfo=UTC)}
            assert await store.aggregate(Reading, values={"value": "sum"}, every="1h", fill="null", **backwards) == []
            edges = {"start": datetime.min.replace(tzinfo=UTC), "end": datetime.max.replace(tzinfo=UTC)}
            for zone in ("UTC", "America/New_York", "Asia/Tokyo") if "zones" in store.abilities else ("UTC",):
                rows = await store.aggregate(
                    Reading, values={"value": "sum"}, every="1y", zone=zone, fill="previous", **edges
                )
                assert len(rows) == pytest.approx(9999, abs=1)
                assert rows[-1]["value_sum"] == 0.0

    # Retention and telemetry

    async def test_rows_beyond_their_retention_go(self, make: Make) -> None:
        now = datetime.now(UTC)
        old, fresh = (_Short(time=now - age, value=1) for age in (timedelta(hours=2), timedelta(minutes=1)))
        provider = make()
        async with provider as store:
            if "retention" not in store.abilities:
                with pytest.raises(Unsupported):
                    await store.append(old)
                return
            await store.append(old, fresh)
            if "durable" not in store.abilities:
                return
        async with make() as store:
            assert [row.time async for row in store.read(_Short)] in ([fresh.time], [])

    async def test_each_call_is_one_span_and_one_point(self, make: Make) -> None:
        async def read(store: TimeSeriesStore) -> None:
            async for _ in store.read(Reading):
                pass

        with Recorder() as recorder:
            async with make() as store:
                for call in (
                    lambda: store.append(reading(0), reading(1)),
                    lambda: store.append_all(map(reading, range(5000))),
                    lambda: read(store),
                    lambda: store.aggregate(Reading, values={"value": "mean"}),
                    lambda: store.latest(Reading),
                    lambda: store.erase(Reading, where={"site": "s0"}),
                ):
                    recorder.clear()
                    await call()
                    assert len(recorder.spans) == len(recorder.points) == 1
                    assert recorder.spans[0].ended


def at(minutes: int) -> datetime:
    """A time of the suite."""
    return START + timedelta(minutes=minutes)


def reading(number: int) -> Reading:
    """One of the suite's rows."""
    return Reading(time=at(number), site=f"s{number % 2}", value=float(number), count=number)


def flight(number: int) -> Flight:
    """One of the suite's unique rows."""
    return Flight(time=at(number), flight=f"KM{number}", origin="JFK", minutes=float(number))


def note(number: int) -> Note:
    """One of the suite's rows of another series."""
    return Note(time=at(number), text=f"note {number}")


async def count(store: TimeSeriesStore) -> int:
    """How many readings there are."""
    (row,) = await store.aggregate(Reading, values={"count": "count"})
    return int(row["count_count"])


def around_changes(zone: ZoneInfo) -> Iterator[datetime]:
    """Times in UTC at every ten minutes of the days around each change of the zone's clocks in two years."""
    offset = datetime(2023, 1, 1, tzinfo=zone).utcoffset()
    for day in (datetime(2023, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(730)):
        later = day.astimezone(zone).utcoffset()
        if later != offset:
            offset = later
            begin = day - timedelta(days=2)
            yield from (begin + timedelta(minutes=10 * n) for n in range(4 * 144))


def buckets(moments: list[datetime], every: str, zone: ZoneInfo) -> list[tuple[datetime, int]]:
    """The expected buckets, found minute by minute from what the clock on the wall shows."""
    found: dict[Any, list[datetime]] = {}
    begins: dict[Any, datetime] = {}
    for moment in moments:
        found.setdefault(_name(moment, every, zone), []).append(moment)
    for name, inside in found.items():
        begin = min(inside)
        step = timedelta(days=1) if every in ("1month", "1y") else timedelta(hours=1)
        for stride in (step, timedelta(minutes=1)):
            while _name(begin - stride, every, zone) == name:
                begin -= stride
        begins[name] = begin.replace(second=0, microsecond=0)
    return sorted((begins[name], len(inside)) for name, inside in found.items())


def _name(moment: datetime, every: str, zone: ZoneInfo) -> Any:
    local = moment.astimezone(zone)
    day = local.date()
    offset = local.utcoffset()
    names: dict[str, Any] = {
        "15m": (day, local.hour, local.minute // 15, offset),
        "1h": (day, local.hour, offset),
        "6h": (day, local.hour // 6),
        "1d": day,
        "1w": day - timedelta(days=day.weekday()),
        "1month": (day.year, day.month),
        "1y": day.year,
    }
    return names[every]
