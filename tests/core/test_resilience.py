"""Retries with a budget, and a breaker per backend."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from kmp_core.breaker import Breaker
from kmp_core.deadlines import deadline
from kmp_core.errors import (
    BreakerOpen,
    DeadlineExceeded,
    InvalidInput,
    LifecycleError,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    PoolExhausted,
    Unavailable,
)
from kmp_core.retries import Budget, Policy, Retries

AT_ONCE = Policy(attempts=4, base=timedelta(0))


class Work:
    """Raises what it is given, one error a call, then returns."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def retries(**options) -> Retries:
    return Retries("redis", **{"policy": AT_ONCE, **options})


async def test_idempotent_work_is_tried_again_until_it_succeeds():
    work = Work(Unavailable("a"), Unavailable("b"))
    assert await retries().call(work, idempotent=True) == "done"
    assert work.calls == 3


async def test_work_that_is_not_declared_idempotent_is_done_once():
    work = Work(Unavailable("a"))
    with pytest.raises(Unavailable):
        await retries().call(work, idempotent=False)
    assert work.calls == 1


@pytest.mark.parametrize("error", [NotFound("x"), ValueError("x"), OutcomeUnknown("x")])
async def test_what_another_try_cannot_help_is_raised_at_once(error):
    work = Work(error)
    with pytest.raises(type(error)):
        await retries().call(work, idempotent=True)
    assert work.calls == 1


async def test_attempts_are_bounded_and_the_last_error_comes_out():
    work = Work(*(Unavailable(str(i)) for i in range(10)))
    with pytest.raises(Unavailable, match="3"):
        await retries().call(work, idempotent=True)
    assert work.calls == 4


async def test_a_try_that_may_have_taken_effect_is_not_forgotten():
    work = Work(Unavailable("sent", outcome_unknown=True), *(Unavailable("refused") for _ in range(3)))
    with pytest.raises(Unavailable, match="refused") as raised:
        await retries().call(work, idempotent=True)
    assert raised.value.outcome_unknown


async def test_an_outage_is_not_answered_by_a_storm():
    budget = Budget(ratio=0.1, most=10)
    calls = 0

    async def down():
        nonlocal calls
        calls += 1
        raise Unavailable("down")

    shared = retries(budget=budget)
    for _ in range(1000):
        with pytest.raises(Unavailable):
            await shared.call(down, idempotent=True)
    assert 1000 < calls <= 1000 + 10 + 100


async def test_a_wait_that_would_outlast_the_deadline_raises_the_error_itself(kmp_clock):
    work = Work(Overloaded("later", retry_after=60))
    with pytest.raises(Overloaded):
        async with deadline("1s"):
            await retries(clock=kmp_clock).call(work, idempotent=True)
    assert work.calls == 1


async def test_who_asks_to_come_back_later_is_heard(kmp_clock):
    work = Work(Overloaded("later", retry_after=60))
    call = asyncio.create_task(retries(clock=kmp_clock).call(work, idempotent=True))
    while not kmp_clock.sleeping:  # noqa: ASYNC110 - the clock has no event
        await asyncio.sleep(0)
    kmp_clock.advance("59s")
    await asyncio.sleep(0)
    assert work.calls == 1
    kmp_clock.advance("2s")
    assert await call == "done"


async def test_who_asks_to_come_back_in_an_hour_is_not_waited_for():
    work = Work(Overloaded("later", retry_after=3600))
    with pytest.raises(Overloaded) as raised:
        await retries().call(work, idempotent=True)
    assert (work.calls, raised.value.retry_after) == (1, 3600)


def test_waits_are_spread_from_zero_to_a_bound_that_doubles():
    policy = Policy(base=timedelta(seconds=1), cap=timedelta(seconds=4))
    for failures, bound in ((1, 1), (2, 2), (3, 4), (9, 4), (5000, 4)):
        waits = [policy.wait(failures) for _ in range(300)]
        assert max(waits) <= bound
        assert min(waits) < bound * 0.1
        assert max(waits) > bound * 0.9


async def test_cancellation_ends_retries():
    work = Work(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await retries().call(work, idempotent=True)
    assert work.calls == 1


@pytest.fixture
def breaker(kmp_clock) -> Breaker:
    return Breaker("redis", failures=3, pause="10s", longest_pause="30s", clock=kmp_clock)


def fail(breaker: Breaker, error: Exception | None = None) -> None:
    with pytest.raises((type(error or Unavailable("x")), BreakerOpen)), breaker.guard():
        raise error or Unavailable("down")


def test_a_breaker_opens_after_failures_in_a_row_and_refuses_without_asking(breaker):
    for _ in range(3):
        assert breaker.state == "closed"
        fail(breaker)
    assert breaker.state == "open"
    with pytest.raises(BreakerOpen, match="redis failed 3 times") as raised, breaker.guard():
        pytest.fail("the backend was asked")
    assert 0 < raised.value.retry_after <= 12
    assert raised.value.backend == "redis"
    assert raised.value.retryable


def test_a_success_between_failures_keeps_it_closed(breaker):
    for _ in range(5):
        fail(breaker)
        fail(breaker)
        with breaker.guard():
            pass
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    "error",
    [
        NotFound("x"),
        ValueError("x"),
        PoolExhausted("x"),
        DeadlineExceeded("in a hurry"),
        Overloaded("later", retry_after=1),
    ],
)
def test_errors_that_do_not_speak_of_the_backend_do_not_open_it(breaker, error):
    for _ in range(10):
        fail(breaker, error)
    assert breaker.state == "closed"


def test_deadlines_that_left_the_backend_time_enough_open_it(breaker, kmp_clock):
    for _ in range(3):
        with pytest.raises(DeadlineExceeded), breaker.guard():
            kmp_clock.advance("2s")
            raise DeadlineExceeded("slow")
    assert breaker.state == "open"


@pytest.mark.parametrize("seconds", [0.5, 2])
async def test_a_black_hole_opens_it_when_the_deadline_around_the_call_left_it_time_enough(breaker, kmp_clock, seconds):
    async def hang():
        kmp_clock.advance(seconds)
        await asyncio.sleep(60)

    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            async with deadline(0.02):
                await retries(breaker=breaker, clock=kmp_clock).call(hang, idempotent=True)
    assert breaker.state == ("open" if seconds > 1 else "closed")


async def test_a_call_that_was_given_up_says_nothing_of_the_backend(breaker, kmp_clock):
    async def hang():
        kmp_clock.advance("5s")
        await asyncio.sleep(60)

    for _ in range(3):
        async with deadline("1m"):
            call = asyncio.create_task(retries(breaker=breaker).call(hang, idempotent=True))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert breaker.state == "closed"


def test_one_probe_at_a_time_and_its_success_closes(breaker, kmp_clock):
    for _ in range(3):
        fail(breaker)
    kmp_clock.advance("13s")
    assert breaker.state == "half-open"
    with breaker.guard():
        with pytest.raises(BreakerOpen), breaker.guard():
            pytest.fail("a second probe")
    assert breaker.state == "closed"


def test_a_probe_that_fails_doubles_the_pause_up_to_its_bound(breaker, kmp_clock):
    for _ in range(3):
        fail(breaker)
    for at_least, at_most in ((8, 12), (16, 24), (24, 36), (24, 36)):
        with pytest.raises(BreakerOpen) as raised, breaker.guard():
            pass
        assert at_least <= raised.value.retry_after <= at_most
        kmp_clock.advance("37s")
        fail(breaker)


def test_a_probe_that_is_asked_to_come_back_later_leaves_it_open_for_that_long(breaker, kmp_clock):
    for _ in range(3):
        fail(breaker)
    kmp_clock.advance("13s")
    fail(breaker, Overloaded("later", retry_after=20))
    with pytest.raises(BreakerOpen) as raised, breaker.guard():
        pytest.fail("the backend was asked")
    assert 16 <= raised.value.retry_after <= 24
    kmp_clock.advance("25s")
    with breaker.guard():
        pass
    assert breaker.state == "closed"


def test_refused_surplus_between_failures_hides_none_of_them(breaker):
    for _ in range(3):
        fail(breaker)
        if breaker.state == "closed":
            fail(breaker, Overloaded("later", retry_after=1))
    assert breaker.state == "open"


@pytest.mark.parametrize("error", [ValueError("a bug"), InvalidInput("x", "is wrong"), LifecycleError("closed")])
def test_an_error_of_our_own_neither_closes_a_breaker_nor_hides_failures(breaker, kmp_clock, error):
    fail(breaker)
    fail(breaker)
    fail(breaker, error)
    fail(breaker)
    assert breaker.state == "open"
    kmp_clock.advance("13s")
    fail(breaker, error)
    assert breaker.state == "half-open"


def test_an_answer_that_was_not_hoped_for_closes_it(breaker, kmp_clock):
    for _ in range(3):
        fail(breaker)
    kmp_clock.advance("13s")
    fail(breaker, NotFound("x"))
    assert breaker.state == "closed"


def test_a_probe_that_is_cancelled_lets_the_next_one_probe(breaker, kmp_clock):
    for _ in range(3):
        fail(breaker)
    kmp_clock.advance("13s")
    with pytest.raises(asyncio.CancelledError), breaker.guard():
        raise asyncio.CancelledError
    assert breaker.state == "half-open"
    with breaker.guard():
        pass
    assert breaker.state == "closed"


async def test_retries_stop_asking_a_backend_whose_breaker_is_open(kmp_clock):
    breaker = Breaker("redis", failures=2, pause="10s", clock=kmp_clock)
    work = Work(*(Unavailable("down") for _ in range(10)))
    with pytest.raises(BreakerOpen):
        async with deadline("1s"):
            await retries(breaker=breaker, clock=kmp_clock).call(work, idempotent=True)
    assert work.calls == 2
