"""How long the embedded time-series store's calls may take, and how much it handles at a time."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field

from kmp_core.deadlines import Duration
from kmp_core.settings import Settings

__all__ = ["TimeSeriesSettings"]


class TimeSeriesSettings(Settings, prefix="storage.timeseries"):
    """Tune the embedded time-series store."""

    timeout: Duration = timedelta(seconds=30)
    """How long a call may take where it names no timeout of its own; for streams, how long each chunk may."""

    chunk_rows: int = Field(default=2000, ge=1, le=100_000)
    """Rows that a stream holds in memory at a time."""

    synchronous: Literal["full", "normal"] = "full"
    """`full` survives a power cut; `normal` writes faster and may lose the last moments in one (never half a call)."""

    sweep_every: Duration = timedelta(seconds=60)
    """How long at least between two looks, while appending, for rows that are older than their series' retention."""
