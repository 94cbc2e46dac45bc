"""Leave a backend alone that fails, so that callers learn it at once and it gets room to recover.

    breaker = Breaker("timescale")
    with breaker.guard():              # raises BreakerOpen instead of asking a backend that is down
        await connection.execute(...)

After `failures` failures in a row the breaker opens. When the pause is over, one caller probes; the others are still
refused. A probe that succeeds closes the breaker, one that fails doubles the pause up to `longest_pause`.

`Overloaded` is the answer of a backend that lives and sheds load: it refuses the surplus, cheaply, and often one
caller's alone. Five such answers in a row are ordinary in a storm, and to open on them would take away from the backend
the load that it can carry, then give back all of it at once. So they neither open a breaker nor count as a success;
`Retries` waits for as long as the backend asked. A probe that gets one leaves the breaker open for that long.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from kmp_core.clock import SYSTEM_CLOCK, Clock
from kmp_core.deadlines import Timeout, duration, remaining
from kmp_core.errors import (
    AccessDenied,
    BackendError,
    BreakerOpen,
    Conflict,
    Corrupt,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PoolExhausted,
)

__all__ = ["Breaker", "BreakerState"]

_TICK = 0.01  # what the event loop's clock may be ahead of the deadline

BreakerState = Literal["closed", "open", "half-open"]


class Breaker:
    """One per backend and process.

    Only what speaks of the backend counts: `Unavailable`, `OutcomeUnknown`, and a deadline that left the backend at
    least `patience`. `NotFound`, `Conflict`, `AccessDenied` and `Corrupt` are answers, as good as a success. All else
    says nothing: an error of the program or of its input, a pool of our own that is empty, a caller in a hurry, and a
    backend that asks to come back later.
    """

    def __init__(
        self,
        backend: str,
        *,
        failures: int = 5,
        pause: Timeout = "1s",
        longest_pause: Timeout = "30s",
        patience: Timeout = "1s",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.backend = backend
        self._limit = failures
        self._first_pause = _seconds(pause)
        self._longest_pause = _seconds(longest_pause)
        self._patience = _seconds(patience)
        self._clock = clock
        self._failures = 0
        self._pause = self._first_pause
        self._until: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        """`closed`: calls pass; `open`: they are refused; `half-open`: the next one is a probe, or one is under way."""
        if self._until is None:
            return "closed"
        return "open" if self._clock.monotonic() < self._until else "half-open"

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run a block that asks the backend, or raise `BreakerOpen`."""
        probe = self._enter()
        began = self._clock.monotonic()
        try:
            yield
        except asyncio.CancelledError:
            # The deadline around the call arrives like this, and is how a backend that is a black hole shows.
            left = remaining()
            if left is not None and left < _TICK and self._had_time(began):
                self._failed(probe)
            raise
        except Overloaded as error:
            if probe:
                self._wait(min(error.retry_after, self._longest_pause))
            raise
        except BackendError as error:
            if self._blames_backend(error, began):
                self._failed(probe)
            raise
        except (NotFound, Conflict, AccessDenied, Corrupt):
            self._succeeded()  # the backend answered, if not as hoped
            raise
        else:
            self._succeeded()
        finally:
            if probe:  # also where it was cancelled: the next caller probes
                self._probing = False

    def _enter(self) -> bool:
        state = self.state
        if state == "closed":
            return False
        if state == "open" or self._probing:
            left = max(0.0, (self._until or 0.0) - self._clock.monotonic())
            raise BreakerOpen(
                f"{self.backend} failed {self._failures} times in a row and is left alone for {left:.3g} s",
                retry_after=left or self._first_pause,
                backend=self.backend,
            )
        self._probing = True
        return True

    def _blames_backend(self, error: BackendError, began: float) -> bool:
        if isinstance(error, PoolExhausted | BreakerOpen):
            return False
        return not isinstance(error, DeadlineExceeded) or self._had_time(began)

    def _had_time(self, began: float) -> bool:
        return self._clock.monotonic() - began >= self._patience

    def _failed(self, probe: bool) -> None:
        self._failures += 1
        if probe:
            self._pause = min(self._pause * 2, self._longest_pause)
        elif self._failures < self._limit or self._until is not None:
            return
        self._wait(self._pause)

    def _wait(self, seconds: float) -> None:
        # A little jitter, or all processes probe in the same moment.
        self._until = self._clock.monotonic() + seconds * random.uniform(0.8, 1.2)  # noqa: S311

    def _succeeded(self) -> None:
        self._failures = 0
        self._pause = self._first_pause
        self._until = None


def _seconds(value: Timeout) -> float:
    return 0.0 if value is None else duration(value).total_seconds()
