"""What a pool tells about itself, by OpenTelemetry's semantic conventions for database client connections.

A pool keeps one, from its opening to its close:

    self._metrics = PoolMetrics(project=project, name="db.internal/flights", scope="kmp_core.postgres")
    self._metrics.start(self)          # has `in_use`, `idle` and `waiting`
    with self._metrics.waiting():
        await ...                      # until a connection is free, or `PoolExhausted`
    self._metrics.stop()
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Observation

from kmp_core.errors import PoolExhausted
from kmp_core.telemetry import meter_of

__all__ = ["Pool", "PoolMetrics"]


class Pool(Protocol):
    """What is asked of a pool each time that the SDK collects."""

    @property
    def in_use(self) -> int:
        """How many connections are handed out now."""
        ...

    @property
    def idle(self) -> int:
        """How many connections lie ready."""
        ...

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection now."""
        ...


class PoolMetrics:
    """Connections used and idle, callers that wait, and how often waiting was in vain."""

    def __init__(self, *, project: str, name: str, scope: str) -> None:
        self._attributes = {"kmp.project": project, "db.client.connection.pool.name": name}
        self._scope = scope
        self._pool: weakref.ref[Pool] | None = None

    def start(self, pool: Pool) -> None:
        """Have the SDK ask the pool, where there is one."""
        meter = meter_of(self._scope)
        self._pool = weakref.ref(pool)
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
        self._pool = None

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
        pool = None if self._pool is None else self._pool()
        if pool is not None:
            for state, number in (("used", pool.in_use), ("idle", pool.idle)):
                yield Observation(number, {**self._attributes, "db.client.connection.state": state})

    def _pending(self, _: CallbackOptions) -> Iterable[Observation]:
        pool = None if self._pool is None else self._pool()
        if pool is not None:
            yield Observation(pool.waiting, self._attributes)
