"""How large the embedded bucket's objects may be, and how long its calls may take."""

from __future__ import annotations

from datetime import timedelta

from pydantic import ByteSize, Field

from kmp_core.deadlines import Duration
from kmp_core.settings import Settings

__all__ = ["BucketSettings"]


class BucketSettings(Settings, prefix="storage.bucket"):
    """Tune the embedded bucket."""

    max_object_bytes: ByteSize = Field(default=ByteSize(5 << 30), ge=1)
    """Bytes that one object may have; a larger one is refused, and nothing of it stays."""

    max_memory_bytes: ByteSize = Field(default=ByteSize(256 << 20), ge=1)
    """Bytes that all objects of a `memory:` bucket may take together."""

    timeout: Duration = timedelta(seconds=30)
    """How long a call may take where it names no timeout of its own; for streams, the wait for each chunk."""

    threads: int = Field(default=4, ge=1, le=64)
    """Threads that read and write files, so that the event loop never waits for a disk."""
