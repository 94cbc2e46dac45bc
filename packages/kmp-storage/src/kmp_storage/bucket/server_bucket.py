"""What a bucket on a server does the same way whichever server it is: it gets, describes, lists and signs."""

from __future__ import annotations

import asyncio
import sys
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import ClassVar, Literal, TypeVar

from kmp_core.breaker import Breaker
from kmp_core.deadlines import Timeout, bounded, deadline, duration, within
from kmp_core.errors import InvalidInput, Unsupported
from kmp_core.project import Project
from kmp_core.resource import Provider
from kmp_core.retries import Retries
from kmp_core.telemetry import Telemetry
from kmp_storage.bucket.objects import Objects
from kmp_storage.objects.contents import apart, check_count
from kmp_storage.objects.keys import check_content_type, check_expires, check_key, check_metadata, check_prefix
from kmp_storage.protocols import Bucket
from kmp_storage.values import BucketEntry

__all__ = ["ServerBucket"]

T = TypeVar("T")

_HEADS_AT_ONCE = 16
_EVERYTHING = sys.maxsize
_LARGEST_CHUNK = 64 << 20
_LONGEST_SIGNATURE = timedelta(days=7)


class ServerBucket(Provider, Bucket):
    """A bucket whose objects obstore reads. A provider sets `_objects` as it opens, and says how it puts and lists."""

    backend: ClassVar[str]
    """What spans, metrics and errors call the server."""

    no_expiry: ClassVar[str]
    """What to do instead of `put(..., expires=)`."""

    no_signature: ClassVar[str] = ""
    """What to do instead of `sign`, where an instance lacks that."""

    project: Project
    _objects: Objects

    def _begin(self, timeout: Timeout) -> None:
        """What all calls have in common; the first thing that `_open` does."""
        self._timeout = timeout
        self._telemetry = Telemetry("db", self.backend, project=self.project, scope="kmp_storage")
        self._retries = Retries(self.backend, breaker=Breaker(self.backend, longest_pause="3s"))

    @abstractmethod
    def _keys(self, prefix: str, limit: int, seconds: float | None) -> AsyncGenerator[Sequence[str], None]:
        """The keys in the order of their bytes, about as many as `limit`, in pages."""

    def _check_put(
        self,
        key: str,
        *,
        content_type: str | None,
        metadata: Mapping[str, str] | None,
        if_absent: bool,
        if_match: str | None,
        expires: Timeout,
    ) -> dict[str, str]:
        """Refuse what no put takes; a copy of the metadata."""
        self.ensure_open()
        check_key(key)
        check_content_type(content_type)
        if if_absent and if_match is not None:
            raise InvalidInput("if_match", "contradicts if_absent", example="if_match=entry.etag", key=key)
        items = check_metadata(metadata)
        if check_expires(expires, key) is not None:
            raise Unsupported("expiry", provider=type(self).__name__, instead=self.no_expiry)
        return items

    async def get(self, key: str, *, timeout: Timeout = None) -> bytes:
        self.ensure_open()
        check_key(key)
        seconds = within(timeout, self._timeout)
        with self._telemetry.call("get"):
            async with deadline(seconds, what=f"getting {key!r}", backend=self.backend):
                return await self._again(lambda: self._get(key, seconds))

    def stream(self, key: str, *, chunk: int = 1 << 20, timeout: Timeout = None) -> AsyncIterator[bytes]:
        self.ensure_open()
        check_key(key)
        check_count("chunk", chunk, lowest=1, highest=_LARGEST_CHUNK)
        return self._stream(key, chunk, within(timeout, self._timeout))

    async def head(self, key: str, *, timeout: Timeout = None) -> BucketEntry | None:
        self.ensure_open()
        check_key(key)
        seconds = within(timeout, self._timeout)
        with self._telemetry.call("head"):
            async with deadline(seconds, what=f"asking for {key!r}", backend=self.backend):
                return await self._again(lambda: self._entry(key))

    def list(
        self, prefix: str = "", *, limit: int | None = None, timeout: Timeout = None
    ) -> AsyncIterator[BucketEntry]:
        """Entries in the order of their keys' bytes. A server lists no metadata: each entry is one more request."""
        self.ensure_open()
        check_prefix(prefix)
        limit = _EVERYTHING if limit is None else limit
        check_count("limit", limit, lowest=0, highest=_EVERYTHING)
        return self._list(prefix, limit, within(timeout, self._timeout))

    async def sign(self, key: str, *, expires: Timeout, method: Literal["GET", "PUT"] = "GET") -> str:
        """A URL for whoever has it. What is put with one has no checksum and no metadata of ours."""
        self.ensure_open()
        check_key(key)
        if method not in ("GET", "PUT"):
            raise InvalidInput("method", "must be GET or PUT", example='"GET"', key=key)
        if "sign" not in self.abilities:
            raise Unsupported("sign", provider=type(self).__name__, instead=self.no_signature)
        span = timedelta(0) if expires is None else duration(expires, field="expires")
        if not timedelta(seconds=1) <= span <= _LONGEST_SIGNATURE:
            raise InvalidInput("expires", "must lie between a second and seven days", example='"15m"', key=key)
        with self._telemetry.call("sign"):
            return await self._objects.sign(key, method, span, within(None, self._timeout))

    # Reading

    async def _again(self, work: Callable[[], Awaitable[T]]) -> T:
        return await self._retries.call(work, idempotent=True)

    async def _entry(self, key: str) -> BucketEntry | None:
        found = await self._objects.head(key)
        return None if found is None else found[0]

    async def _get(self, key: str, seconds: float | None) -> bytes:
        content = bytearray()
        async with self._objects.turns, aclosing(self._objects.contents(key, 4 << 20, seconds)) as chunks:
            async for chunk in chunks:
                content += chunk
        return bytes(content)

    async def _stream(self, key: str, chunk: int, seconds: float | None) -> AsyncIterator[bytes]:
        self.ensure_open()
        with apart(self._telemetry.call("stream")):
            async with aclosing(self._objects.contents(key, chunk, seconds)) as chunks:
                async for part in chunks:
                    yield part

    async def _list(self, prefix: str, limit: int, seconds: float | None) -> AsyncIterator[BucketEntry]:
        self.ensure_open()
        with apart(self._telemetry.call("list")):
            async with aclosing(self._keys(prefix, limit, seconds)) as pages:
                async for page in pages:
                    for start in range(0, len(page), _HEADS_AT_ONCE):
                        self.ensure_open()
                        # No more at once than are then asked for.
                        keys = page[start : start + _HEADS_AT_ONCE][:limit]
                        heads = asyncio.gather(*map(self._entry, keys))
                        for entry in await bounded(heads, seconds, what="listing", backend=self.backend):
                            if entry is not None:  # deleted between the two requests
                                limit -= 1
                                yield entry
                        if limit <= 0:
                            return
