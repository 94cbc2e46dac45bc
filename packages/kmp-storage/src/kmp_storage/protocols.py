"""The capabilities of this package: what a service may ask for, whatever technology answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from pydantic import BaseModel

from kmp_core.capability import capability
from kmp_core.deadlines import Timeout
from kmp_core.resource import Resource
from kmp_storage.models import Edge, Measurement, Node
from kmp_storage.values import BucketEntry, CacheStatistics, Lease, Path, Row

if TYPE_CHECKING:
    from kmp_storage.cache import TypedCache
    from kmp_storage.cache.codecs import Codec

__all__ = ["Aggregation", "Bucket", "Cache", "Direction", "Fill", "GraphStore", "TimeSeriesStore", "Via"]

M = TypeVar("M", bound=Measurement)
N = TypeVar("N", bound=Node)
E = TypeVar("E", bound=Edge)
B = TypeVar("B", bound=BaseModel)

Direction = Literal["out", "in", "both"]
"""Which way edges are walked."""

Via = type[Edge] | Sequence[type[Edge]]
"""The class of edges that a walk may take, or a tuple of several."""

Aggregation = Literal["count", "sum", "mean", "min", "max", "first", "last", "stddev"]

Fill = Literal["null", "previous", "linear"]
"""What stands where a bucket has no value: None, the value before, or what lies on a line between both neighbours."""


@capability("storage.timeseries", default="sqlite:")
class TimeSeriesStore(Resource, Protocol):
    """Keep measurements and ask about them over time.

    `append` is all or nothing. Where the measurement declares `unique`, the same row again is ignored and not
    counted, and the same key with other values raises `Conflict`. A wrong value raises `InvalidInput` with the row's
    position and the field.
    """

    @abstractmethod
    async def append(self, *measurements: Measurement, timeout: Timeout = None) -> int:
        """Store them all or none, and return how many were new. They may be of several series."""

    @abstractmethod
    async def append_all(self, measurements: Iterable[M] | AsyncIterable[M], *, timeout: Timeout = None) -> int:
        """Store a stream of one series with flat memory, all or nothing, and return how many were new.

        `timeout` bounds each chunk.
        """

    @abstractmethod
    def read(
        self,
        series: type[M],
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int | None = None,
        timeout: Timeout = None,
    ) -> AsyncIterator[M]:
        """Iterate in the order of time over `start <= time < end`, tags equal to `where`, with flat memory."""

    @abstractmethod
    async def aggregate(
        self,
        series: type[Measurement],
        *,
        values: Mapping[str, Aggregation | Sequence[Aggregation]],
        every: str | timedelta | None = None,
        by: Sequence[str] = (),
        start: datetime | None = None,
        end: datetime | None = None,
        where: Mapping[str, Any] | None = None,
        zone: str = "UTC",
        fill: Fill | None = None,
        timeout: Timeout = None,
    ) -> list[Row]:
        """Summarise per bucket of time (`every`: `"1h"`, `"1d"`, `"1month"`; None: one bucket) and per tag in `by`.

        Buckets begin at whole units of the IANA zone's local time. Missing values are left out, as SQL does, and so
        are buckets without rows, unless `fill` says what stands there. Then there is one for each unit from `start`
        to `end` (from the first to the last one found, where they are not given), for each combination of tags that
        was found; a `count` there is 0, and no value is made up before the first or, by a line, after the last.
        """

    @abstractmethod
    async def latest(
        self,
        series: type[M],
        *,
        by: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
        timeout: Timeout = None,
    ) -> list[M]:
        """The newest measurement of each combination of the tags in `by` (of the series where `by` is empty)."""

    @abstractmethod
    async def erase(self, series: type[Measurement], *, where: Mapping[str, Any], timeout: Timeout = None) -> int:
        """Delete what has these tags, for a person's right to be forgotten, and return how many rows went."""


@capability("storage.graph", default="sqlite:")
class GraphStore(Resource, Protocol):
    """Keep things and how they are connected, and ask how one leads to another."""

    @abstractmethod
    async def merge(self, *items: Node | Edge, timeout: Timeout = None) -> int:
        """Create or update, all or nothing; return how many were new or changed.

        A node is known by its class and key, an edge by its class and its two ends. An end that does not exist yet
        becomes a node without details. Only fields that were passed are changed, so what is known already is not
        wiped by a default.
        """

    @abstractmethod
    async def merge_all(
        self, items: Iterable[Node | Edge] | AsyncIterable[Node | Edge], *, timeout: Timeout = None
    ) -> int:
        """Merge a stream in chunks with flat memory; `timeout` bounds each chunk, and each chunk is all or nothing."""

    @abstractmethod
    async def get(self, node: type[N], key: str, *, timeout: Timeout = None) -> N | None:
        """The node, or None; a node without details has only its key and its defaults."""

    @abstractmethod
    async def delete(self, node: type[Node], key: str, *, timeout: Timeout = None) -> bool:
        """Remove a node and its edges; False where there was none."""

    @overload
    async def neighbours(
        self,
        node: Node,
        *,
        via: Via,
        only: type[N],
        depth: int = 1,
        direction: Direction = "out",
        limit: int | None = None,
        timeout: Timeout = None,
    ) -> list[N]: ...

    @overload
    async def neighbours(
        self,
        node: Node,
        *,
        via: Via,
        only: None = None,
        depth: int = 1,
        direction: Direction = "out",
        limit: int | None = None,
        timeout: Timeout = None,
    ) -> list[Node]: ...

    @abstractmethod
    async def neighbours(
        self,
        node: Node,
        *,
        via: Via,
        only: type[N] | None = None,
        depth: int = 1,
        direction: Direction = "out",
        limit: int | None = None,
        timeout: Timeout = None,
    ) -> list[N] | list[Node]:
        """The nodes within `depth` steps, nearest first and by key among equals, without the start.

        `only` leaves the other classes out of the result (not out of the way), and gives the result its type.
        """

    @abstractmethod
    async def edges(self, edge: type[E], *, limit: int | None = None, timeout: Timeout = None) -> list[E]:
        """All edges of a class, in the order of their ends."""

    @abstractmethod
    async def paths(
        self,
        start: Node,
        end: Node,
        *,
        via: Via,
        direction: Direction = "out",
        depth: int = 8,
        limit: int = 1,
        timeout: Timeout = None,
    ) -> list[Path]:
        """Shortest ways first, at most `limit` and none longer than `depth` steps; empty where there is no way.

        No way visits a node twice; the way from a node to itself has no step.
        """


@capability("storage.cache", default="sqlite:")
class Cache(Resource, Protocol):
    """Remember what was costly to find out, for a while.

    Values are `bytes` here; `cache.of(Model, ttl="1h")` is the view for models. A key is text of 1 to 512 bytes
    without control characters; what breaks that, or is larger than the cache takes, raises `InvalidInput`. A `ttl` is
    more than zero. A `set`, `delete` or `increment` outdates a load that is under way: its value is not stored.
    """

    def of(
        self, model: type[B], *, prefix: str | None = None, ttl: Timeout = None, codec: Codec = "json"
    ) -> TypedCache[B]:
        """The typed view: what goes in and comes out are models, under `prefix` (the model's name where None).

        They are kept as JSON, or as MessagePack, which is smaller; a view reads both.
        """
        from kmp_storage.cache import TypedCache

        return TypedCache(self, model, prefix=prefix, ttl=ttl, codec=codec)

    @abstractmethod
    async def get(self, key: str, *, timeout: Timeout = None) -> bytes | None:
        """The value, or None when there is none or its time is over."""

    @abstractmethod
    async def set(
        self, key: str, value: bytes, *, ttl: Timeout = None, if_absent: bool = False, timeout: Timeout = None
    ) -> bool:
        """Store a value for `ttl` (for ever where None); with `if_absent`, False where there was one."""

    @abstractmethod
    async def delete(self, *keys: str, timeout: Timeout = None) -> int:
        """Forget them, and return how many there were."""

    @abstractmethod
    async def get_or_load(
        self,
        key: str,
        load: Callable[[], Awaitable[bytes | None]],
        *,
        ttl: Timeout,
        negative_ttl: Timeout = None,
        timeout: Timeout = None,
    ) -> bytes | None:
        """The value, loaded once where it is missing: one load at a time per key over all processes.

        Shortly before its time is over one caller refreshes it while the others get the old value. `negative_ttl`
        remembers for that long that the loader found nothing (returned None). What a loader raises reaches those who
        waited for it in this process and is not remembered. `timeout` bounds the whole, the loader included.
        """

    @abstractmethod
    async def increment(self, key: str, by: int = 1, *, ttl: Timeout = None, timeout: Timeout = None) -> int:
        """Add to a counter atomically and return its new value; `ttl` starts with the counter."""

    @abstractmethod
    def lock(self, name: str, *, ttl: Timeout = "10s", timeout: Timeout = None) -> AbstractAsyncContextManager[Lease]:
        """Hold a lock over all processes, renewed while held; for efficiency, not for correctness.

        Waits at most `timeout` for it, then raises `DeadlineExceeded`. A killed holder loses it after `ttl`. A holder
        that was stopped for so long that another one came raises `Conflict` when it leaves. `lease.token` grows with
        every holder, so that a store can refuse one whose time was over (fencing).
        """

    @abstractmethod
    async def statistics(self) -> CacheStatistics:
        """How well it serves."""


@capability("storage.bucket", default="file:")
class Bucket(Resource, Protocol):
    """Keep whole objects under keys such as `reports/2013/january.html`."""

    @abstractmethod
    async def put(
        self,
        key: str,
        content: bytes | AsyncIterable[bytes],
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
        expires: Timeout = None,
        timeout: Timeout = None,
    ) -> BucketEntry:
        """Store the whole object or nothing, durably, with flat memory.

        `if_absent` and `if_match` (an entry's `etag`) raise `Conflict` where the condition does not hold. `expires` is
        how long it is kept, and raises `Unsupported` where the provider keeps everything.
        """

    @abstractmethod
    async def get(self, key: str, *, timeout: Timeout = None) -> bytes:
        """The whole content, its checksum verified. Raises `NotFound`, or `Corrupt` where the content was damaged."""

    @abstractmethod
    def stream(self, key: str, *, chunk: int = 1 << 20, timeout: Timeout = None) -> AsyncIterator[bytes]:
        """The content in chunks, with flat memory; the checksum is verified at the end."""

    @abstractmethod
    async def head(self, key: str, *, timeout: Timeout = None) -> BucketEntry | None:
        """Size, checksum, type and metadata without the content, or None."""

    @abstractmethod
    def list(
        self, prefix: str = "", *, limit: int | None = None, timeout: Timeout = None
    ) -> AsyncIterator[BucketEntry]:
        """Entries whose key begins with `prefix`, in the order of their keys' bytes."""

    @abstractmethod
    async def delete(self, key: str, *, timeout: Timeout = None) -> bool:
        """Remove it; False where there was none."""

    @abstractmethod
    async def copy(self, source: str, target: str, *, timeout: Timeout = None) -> BucketEntry:
        """Copy within the bucket, metadata included; the copy expires when its source does. Raises `NotFound`."""

    @abstractmethod
    async def sign(self, key: str, *, expires: Timeout, method: Literal["GET", "PUT"] = "GET") -> str:
        """A URL that lets its bearer get or put this one object until it expires.

        Raises `Unsupported` where the provider has no such URLs.
        """
