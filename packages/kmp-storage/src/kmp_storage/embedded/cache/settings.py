"""How large the embedded cache may grow, and how long its calls may take."""

from __future__ import annotations

from datetime import timedelta

from pydantic import ByteSize, Field

from kmp_core.deadlines import Duration
from kmp_core.settings import Settings

__all__ = ["CacheSettings"]


class CacheSettings(Settings, prefix="storage.cache"):
    """Tune the embedded cache."""

    max_bytes: ByteSize = Field(default=ByteSize(256 << 20), ge=1 << 16)
    """Bytes that keys and values may take together; beyond it the least recently used entries go."""

    max_value_bytes: ByteSize = Field(default=ByteSize(8 << 20), ge=1)
    """Bytes that one value may have; a larger one is refused."""

    timeout: Duration = timedelta(seconds=5)
    """How long a call may take where it names no timeout of its own."""

    load_timeout: Duration = timedelta(seconds=30)
    """How long `get_or_load` may take, its loader and the wait for another process's loader included."""

    load_lease: Duration = Field(default=timedelta(seconds=5), ge=timedelta(milliseconds=100))
    """How long after a loading process was killed another one may load; the lease is renewed while a loader runs."""

    refresh_after: float = Field(default=0.8, gt=0, le=1)
    """The share of its time after which one caller of `get_or_load` refreshes a value; 1 turns early refresh off."""

    jitter: float = Field(default=0.05, ge=0, le=0.5)
    """The share of its time by which a loaded value may end earlier, at random, so that what was loaded together does
    not end together. A value that was `set` keeps its exact time."""
