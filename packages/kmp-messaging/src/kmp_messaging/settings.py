"""How a bus is tuned: `KMP_MESSAGING_BUS_…`, or `[settings.messaging.bus]` in `kmp.toml`."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import ByteSize, Field

from kmp_core.deadlines import Duration
from kmp_core.settings import Settings

__all__ = ["BusSettings"]


class BusSettings(Settings, prefix="messaging.bus"):
    """Bounds in time and memory of the embedded bus; the defaults suit a laptop."""

    publish_timeout: Duration = timedelta(seconds=10)
    """How long a call to publish may take, unless it says so itself."""

    read_timeout: Duration = timedelta(seconds=10)
    """How long other calls may take, and how long reading dead letters waits for each chunk."""

    drain_timeout: Duration = timedelta(seconds=10)
    """How long handlers may go on after intake has stopped."""

    handler_timeout: Duration = timedelta(minutes=5)
    """How long one call of a handler may take before it is cancelled and counted as failed."""

    lease: Duration = timedelta(seconds=10)
    """How long a member that gives no sign of life keeps its partitions; an ended process is noticed sooner."""

    commit_interval: Duration = timedelta(milliseconds=50)
    """How long a handled event may wait for its commit; what was not committed is handled again after a crash."""

    poll_interval: Duration = timedelta(milliseconds=20)
    """How often an idle bus looks for what other processes published, at most; sooner after traffic."""

    retry_delay: Duration = timedelta(milliseconds=100)
    """The first retry comes after a random time up to this; each further bound is twice the one before."""

    retry_delay_limit: Duration = timedelta(seconds=30)
    """No retry waits longer than this."""

    partitions: int = Field(default=16, ge=1, le=256)
    """Into how many parts a new topic is divided: as many members of a group can share it."""

    in_flight_events: int = Field(default=2000, ge=2, le=1_000_000)
    """Events that one subscription holds in memory, handled or waiting for it."""

    in_flight_size: ByteSize = Field(default=ByteSize(32 * 1024**2), ge=4096)
    """Bytes of events that one subscription holds in memory."""

    event_size: ByteSize = Field(default=ByteSize(1024**2), ge=256, le=256 * 1024**2)
    """The largest event that may be published."""

    backlog_size: ByteSize = Field(default=ByteSize(4 * 1024**3), ge=65536)
    """Bytes of events a topic may keep; publishing beyond it waits for room, and fails when the time is over."""

    retention: Duration = timedelta(days=1)
    """How long events stay for new groups to find, once every known group (there may be none) has handled them."""

    retention_size: ByteSize = Field(default=ByteSize(64 * 1024**2), ge=4096)
    """Bytes of such events that a topic keeps; what no group has asked for yet is bounded by `backlog_size` alone."""

    synchronous: Literal["full", "unsafe_at_power_cut"] = "full"
    """`full`: what was published survives a power cut. The other survives a killed process only, and may lose the last
    moments in a power cut; it spares publishers the wait for the disk."""
