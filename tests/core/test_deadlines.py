"""Deadlines travel with the task, and durations are read in one way."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from pydantic import BaseModel, ValidationError

from kmp_core.deadlines import (
    Duration,
    bounded,
    deadline,
    detached,
    duration,
    format_timeout,
    parse_timeout,
    remaining,
    within,
)
from kmp_core.errors import DeadlineExceeded, InvalidInput


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("1.5m", 90), ("1h", 3600), ("90d", 7776000), (" 2 w ", 1209600), (3, 3), (0, 0)],
)
def test_durations_have_units(value, seconds):
    assert duration(value).total_seconds() == seconds


@pytest.mark.parametrize(
    "value",
    ["", "5", "5 parsecs", "-1s", "1e3s", "٣s", -1, float("nan"), float("inf"), 1e400, True, None, [], "1000000w"],
)
def test_what_is_no_duration_is_refused_by_its_name(value):
    with pytest.raises(InvalidInput, match="ttl"):
        duration(value, field="ttl")


def test_a_model_field_takes_durations_and_writes_them_with_a_unit():
    class Model(BaseModel):
        ttl: Duration

    assert Model(ttl="90d").ttl == timedelta(days=90)
    assert Model(ttl="15").ttl == timedelta(seconds=15)
    assert Model(ttl="90m").model_dump_json() == '{"ttl":"90m"}'
    with pytest.raises(ValidationError, match="for example"):
        Model(ttl="soon")


async def test_a_call_gets_what_is_left_of_the_tasks_time():
    async with deadline("10s"):
        left = remaining()
        assert left is not None
        assert left <= 10
        assert within("1h") <= left
        assert within("1s") == 1
        assert within(None, "1h") <= left
    assert remaining() is None
    assert within(None) is None


async def test_an_inner_deadline_can_only_shorten():
    async with deadline("1s"):
        async with deadline("1h"):
            assert remaining() <= 1
        async with deadline("10ms"):
            assert remaining() <= 0.01
        assert remaining() > 0.1


async def test_a_deadline_ends_what_is_inside_and_says_that_nobody_knows_how_far_it_came():
    with pytest.raises(DeadlineExceeded, match="reading took longer") as raised:
        async with deadline("10ms", what="reading", backend="sqlite"):
            await asyncio.sleep(3600)
    assert raised.value.outcome_unknown
    assert raised.value.backend == "sqlite"
    assert isinstance(raised.value, TimeoutError)


async def test_a_deadline_around_what_only_reads_leaves_no_doubt():
    with pytest.raises(DeadlineExceeded) as raised:
        async with deadline(0.01, outcome_unknown=False):
            await asyncio.sleep(60)
    assert not raised.value.outcome_unknown
    with pytest.raises(DeadlineExceeded) as raised:
        await bounded(asyncio.sleep(60), 0.01, what="reading", outcome_unknown=False)
    assert not raised.value.outcome_unknown


async def test_an_outer_deadline_is_reported_as_the_outer_one():
    with pytest.raises(DeadlineExceeded, match="outer"):
        async with deadline("10ms", what="outer"):
            async with deadline("1h", what="inner"):
                await asyncio.sleep(3600)


async def test_a_stranger_s_timeout_error_passes_through():
    with pytest.raises(TimeoutError, match="theirs") as raised:
        async with deadline("1h"):
            raise TimeoutError("theirs")
    assert not isinstance(raised.value, DeadlineExceeded)


async def test_a_cancellation_from_outside_passes_through():
    async def work():
        async with deadline("1h"):
            await asyncio.sleep(3600)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_is_started_inside_inherits_the_deadline_unless_it_is_detached():
    async def look():
        return remaining()

    async with deadline("10s"):
        assert await asyncio.create_task(look()) is not None
        assert await asyncio.create_task(look(), context=detached()) is None


async def test_letting_go_has_its_own_time_when_the_tasks_time_is_over():
    closed = False
    with pytest.raises(DeadlineExceeded):
        async with deadline("5ms"):
            try:
                await asyncio.sleep(3600)
            finally:
                async with deadline("10s", fresh=True):
                    await asyncio.sleep(0.01)
                    closed = True
    assert closed


async def test_one_awaitable_is_bounded_shortly():
    assert await bounded(asyncio.sleep(0, "x"), "1s", what="it") == "x"
    with pytest.raises(DeadlineExceeded):
        await bounded(asyncio.sleep(3600), "5ms", what="it")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0u"), (0.25, "250000u"), (1.5, "1500000u"), (99.9999999, "99999999u"), (3600, "3600000m")],
)
def test_the_remaining_time_is_written_as_grpc_does(seconds, text):
    assert format_timeout(seconds) == text


def test_nobody_gains_time_by_passing_it_on():
    for seconds in (0.0000019, 1.23456789, 12345.678901, 1e9, 1e15):
        parsed = parse_timeout(format_timeout(seconds))
        assert parsed is not None
        assert parsed <= seconds


@pytest.mark.parametrize("text", ["", "5", "s", "123456789S", "-1S", "1.5S", "5x", "5 S", "٣S", "5S\n"])
def test_a_header_that_is_none_counts_as_not_sent(text):
    assert parse_timeout(text) is None
