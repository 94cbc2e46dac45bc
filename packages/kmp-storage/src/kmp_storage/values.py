"""What the capabilities return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kmp_storage.models import Edge, Node, key_of

__all__ = ["BucketEntry", "CacheStatistics", "Lease", "Path", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of an aggregate.

    `time` is the bucket's beginning (aware; None without `every`), `tags` the values of `by`, and `values` maps
    `<field>_<aggregation>` (such as `minutes_mean`) to a number, or None where nothing was there to summarise.
    """

    time: datetime | None
    tags: Mapping[str, Any]
    values: Mapping[str, float | int | None]

    def __getitem__(self, name: str) -> Any:
        """A tag or a value by its name."""
        return self.tags[name] if name in self.tags else self.values[name]


@dataclass(frozen=True, slots=True)
class Path:
    """One way through a graph: `len(nodes) == len(edges) + 1`."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the nodes along the way."""
        return tuple(key_of(node) for node in self.nodes)

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.edges)


@dataclass(frozen=True, slots=True)
class Lease:
    """A held lock: `token` is greater than that of every earlier holder of the same name."""

    name: str
    token: int


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """How well a cache serves: counts since this process opened it, and what all its users see of the store.

    `bytes_used` is what keys and values take; `evictions` counts entries that had to go before their time.
    """

    hits: int
    misses: int
    loads: int
    bytes_used: int
    evictions: int = 0

    @property
    def hit_ratio(self) -> float:
        """Hits among all look-ups, from 0 to 1; 0 where there was none."""
        total = self.hits + self.misses
        return self.hits / total if total else 0.0


@dataclass(frozen=True, slots=True)
class BucketEntry:
    """One object of a bucket. `checksum` is the SHA-256 of the content in hexadecimal, where the store keeps it.

    `expires` is when it will be gone, where it was put to expire.
    """

    key: str
    size: int
    etag: str
    modified: datetime
    content_type: str | None = None
    checksum: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    expires: datetime | None = None
