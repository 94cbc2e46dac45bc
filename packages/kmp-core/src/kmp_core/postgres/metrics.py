"""What a pool tells about itself, by OpenTelemetry's semantic conventions for database client connections."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Observation

from kmp_core.errors import PoolExhausted
from kmp_core.telemetry import meter_of

if TYPE_CHECKING:
    from kmp_core.postgres.pool import PostgresPool

__all__ = ["PoolMetrics"]


class PoolMetrics:
    """Connections used and idle, callers that wait, and how often waiting was in vain."""

    def __init__(self, pool: PostgresPool, *, project: str, name: str) -> None:
        self._pool = weakref.ref(pool)
        self._attributes = {"kmp.project": project, "db.client.connection.pool.name": name}
        self._running = False

    def start(self) -> None:
        """Have the SDK ask, where there is one."""
        meter = meter_of("kmp_core.postgres")
        self._running = True
        meter.create_observable_up_down_counter(
            "db.client.connection.count", [self._count], unit="{connection}", description="Connections by state."
        )
        meter.create_observable_up_down_counter(
            "db.client.connection.pending_requests",
            [self._pending],
            unit="{request}",
            description="Callers that wait for a connection.",
        )
        self._timeouts = meter.create_counter(
            "db.client.connection.timeouts", unit="{timeout}", description="How often no connection became free."
        )
        self._wait = meter.create_up_down_counter(
            "kmp.pool.wait_time", unit="s", description="What all callers waited for connections, summed up."
        )

    def stop(self) -> None:
        """Report nothing any more: instruments cannot be taken back."""
        self._running = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the wait for a connection."""
        began = time.perf_counter()
        try:
            yield
        except PoolExhausted:
            self._timeouts.add(1, self._attributes)
            raise
        finally:
            self._wait.add(time.perf_counter() - began, self._attributes)

    def _count(self, _: CallbackOptions) -> Iterable[Observation]:
        pool = self._pool()
        if pool is not None and self._running:
            for state, number in (("used", pool.in_use), ("idle", pool.idle)):
                yield Observation(number, {**self._attributes, "db.client.connection.state": state})

    def _pending(self, _: CallbackOptions) -> Iterable[Observation]:
        pool = self._pool()
        if pool is not None and self._running:
            yield Observation(pool.waiting, self._attributes)
