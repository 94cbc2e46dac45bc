"""Try again where that helps and harms nobody: only idempotent work, with full jitter, within a budget per backend.

    retries = Retries("redis", breaker=Breaker("redis"))              # once, in `_open`
    async with deadline(timeout, what="get", outcome_unknown=False):   # of the whole, all tries and waits included
        value = await retries.call(lambda: client.get(key), idempotent=True)

An error of ours says itself whether another try may help (`retryable`). The wait before it is drawn evenly between
zero and a bound that doubles ("full jitter", AWS Architecture Blog, "Exponential Backoff And Jitter", 2015). The budget
keeps the retries of all calls to a backend at a fraction of the calls, so that an outage is not answered by a storm.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from kmp_core.breaker import Breaker
from kmp_core.clock import SYSTEM_CLOCK, Clock
from kmp_core.deadlines import remaining
from kmp_core.errors import BackendError, BreakerOpen, KmpError, Overloaded

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["Budget", "Policy", "Retries"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how patiently: at most `attempts` tries, the bound of the wait doubling from `base` up to `cap`.

    A backend that asks to come back later than in `patience` is not waited for: the error comes out at once.
    """

    attempts: int = 4
    base: timedelta = timedelta(milliseconds=50)
    cap: timedelta = timedelta(seconds=2)
    patience: timedelta = timedelta(minutes=2)

    def wait(self, failures: int) -> float:
        """Seconds before the next try after so many failures."""
        bound = min(self.cap.total_seconds(), self.base.total_seconds() * 2 ** min(failures - 1, 32))
        return random.uniform(0, bound)  # noqa: S311 - spreads load, no secret


class Budget:
    """What all calls to one backend may spend on retries: each call earns `ratio` of one, up to `most`."""

    def __init__(self, *, ratio: float = 0.1, most: float = 10.0) -> None:
        self._ratio = ratio
        self._most = most
        self.left = most

    def earn(self) -> None:
        """A call was made."""
        self.left = min(self._most, self.left + self._ratio)

    def spend(self) -> bool:
        """Take one retry out; False where there is none."""
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Retries:
    """The retries of one backend, shared by all calls of a process to it."""

    def __init__(
        self,
        backend: str,
        *,
        policy: Policy | None = None,
        budget: Budget | None = None,
        breaker: Breaker | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.backend = backend
        self.policy = policy or Policy()
        self.budget = budget or Budget()
        self.breaker = breaker
        self._clock = clock

    async def call(self, work: Callable[[], Awaitable[T]], *, idempotent: bool) -> T:
        """Do the work, again where it failed in a way that passes. Work that is not idempotent is done once.

        Ends within the task's deadline: a wait that would go beyond it raises the last error instead. Where any try
        may have taken effect, the error that comes out has `outcome_unknown` set.
        """
        self.budget.earn()
        if not idempotent:
            return await self._once(work)
        from tenacity import AsyncRetrying, retry_if_exception

        doubts: list[bool] = []

        def again(error: BaseException) -> bool:
            doubts.append(isinstance(error, KmpError) and error.outcome_unknown)
            return isinstance(error, KmpError) and error.retryable

        retrying = AsyncRetrying(
            retry=retry_if_exception(again),
            stop=self._gives_up,
            wait=self._wait,
            sleep=self._clock.sleep,
            reraise=True,
        )
        try:
            return await retrying(self._once, work)
        except BackendError as error:
            error.outcome_unknown = error.outcome_unknown or any(doubts)
            raise

    async def _once(self, work: Callable[[], Awaitable[T]]) -> T:
        if self.breaker is None:
            return await work()
        with self.breaker.guard():
            return await work()

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after if isinstance(error, BreakerOpen | Overloaded) else 0.0
        return asked + self.policy.wait(state.attempt_number)

    def _gives_up(self, state: RetryCallState) -> bool:
        left = remaining()
        if state.attempt_number >= self.policy.attempts or state.upcoming_sleep > self.policy.patience.total_seconds():
            return True
        if left is not None and state.upcoming_sleep >= left:
            return True
        return not self.budget.spend()
