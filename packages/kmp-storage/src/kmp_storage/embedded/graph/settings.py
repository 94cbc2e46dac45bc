"""How long the embedded graph's calls may take, and how far a walk may spread."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field

from kmp_core.deadlines import Duration
from kmp_core.settings import Settings

__all__ = ["GraphSettings"]


class GraphSettings(Settings, prefix="storage.graph"):
    """Tune the embedded graph store."""

    timeout: Duration = timedelta(seconds=30)
    """How long a call may take where it names no timeout of its own; for streams, how long each chunk may."""

    chunk_items: int = Field(default=2000, ge=1, le=100_000)
    """Nodes and edges that a stream merges in one transaction."""

    max_visited: int = Field(default=1_000_000, ge=1)
    """Nodes that one walk may visit; a wider one is refused, so that it does not take all memory."""

    synchronous: Literal["full", "normal"] = "full"
    """`full` survives a power cut; `normal` writes faster and may lose the last moments in one (never half a call)."""
