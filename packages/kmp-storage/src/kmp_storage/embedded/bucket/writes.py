"""Changing the embedded bucket: a content is received, synced, named in the index, and what it replaced removed.

Whatever happens on the way, a content that nothing names is removed in the end, by its writer or by the next to open.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from kmp_core.deadlines import bounded, deadline
from kmp_core.errors import InvalidInput, KmpError
from kmp_core.sqlite import Database
from kmp_storage.embedded.bucket import index
from kmp_storage.embedded.bucket.blobs import Blobs, Upload
from kmp_storage.embedded.bucket.index import Condition
from kmp_storage.embedded.bucket.threads import Threads
from kmp_storage.objects.contents import check_chunk, closing
from kmp_storage.values import BucketEntry

__all__ = ["Description", "Writes"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Description:
    """What a put says about its content."""

    key: str
    content_type: str | None
    metadata: Mapping[str, str]
    condition: Condition
    expires: timedelta | datetime | None = None

    def entry(self, size: int, etag: str, checksum: str) -> BucketEntry:
        now = datetime.now(UTC)
        expires = now + self.expires if isinstance(self.expires, timedelta) else self.expires
        return BucketEntry(self.key, size, etag, now, self.content_type, checksum, self.metadata, expires)


class Writes:
    """The changes of one open bucket."""

    def __init__(self, database: Database, blobs: Blobs, threads: Threads, max_object_bytes: int) -> None:
        self._database = database
        self._blobs = blobs
        self._threads = threads
        self._max_object_bytes = max_object_bytes
        self._removed: set[str] = set()

    async def put(self, description: Description, chunks: AsyncIterator[bytes], seconds: float | None) -> BucketEntry:
        """Receive into a content that nothing names yet, then name it; `seconds` bounds each step."""
        key, condition = description.key, description.condition
        async with closing(chunks):
            # Asked again in the transaction that counts; a put that cannot succeed need not send its content.
            await self._database.read(lambda connection: condition.check(connection, key), timeout=seconds)
            upload = await self._threads.obtain(self._blobs.begin, lambda made: made.discard())
            try:
                size, checksum = await self._receive(description.key, upload, chunks, seconds)
                await bounded(self._threads.run(upload.seal), seconds, what="syncing the content", backend="file")
                entry = description.entry(size, upload.name, checksum)
                replaced = await self.change(
                    partial(index.commit, entry=entry, upload=upload, condition=condition), seconds
                )
            except BaseException:
                await self._threads.regardless(self._clean_up(upload))
                raise
        await self._threads.regardless(self._settle(upload, replaced))
        return entry

    async def _receive(
        self, key: str, upload: Upload, chunks: AsyncIterator[bytes], seconds: float | None
    ) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0

        def store(chunk: bytes) -> None:
            digest.update(chunk)
            upload.write(chunk)

        while True:
            async with deadline(seconds, what=f"receiving {key!r}", backend="file"):
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return size, digest.hexdigest()
                check_chunk(chunk, key)
                size += len(chunk)
                if size > self._max_object_bytes:
                    problem = f"is more than the {self._max_object_bytes} bytes that one object may have"
                    raise InvalidInput("content", problem, example="KMP_STORAGE_BUCKET_MAX_OBJECT_BYTES", key=key)
                await self._threads.run(store, chunk)

    async def change(self, work: Callable[[sqlite3.Connection], T], seconds: float | None) -> T:
        """One transaction, which also forgets what expired, and the contents that were removed since the last one."""
        removed = tuple(self._removed)

        def change(connection: sqlite3.Connection) -> tuple[T, bool]:
            index.forget(connection, removed)
            result = work(connection)
            return result, index.expire(connection)

        result, expired = await self._database.write(change, timeout=seconds)
        self._removed.difference_update(removed)
        if expired:
            await self._threads.regardless(self.collect())
        return result

    async def _clean_up(self, upload: Upload) -> None:
        """The put failed; whether its content was named in the very moment of a cancellation, the index knows."""
        with contextlib.suppress(KmpError):
            named = await self._database.read(lambda connection: index.names(connection, upload.name))
            await self._threads.run(upload.settle if named else upload.discard)
        await self.collect()

    async def _settle(self, upload: Upload, replaced: str | None) -> None:
        # The object is stored by now. What cannot be moved is read where it is, and moved by the next to open.
        with contextlib.suppress(KmpError):
            await self._threads.run(upload.settle)
        if replaced is not None:
            await self._remove(replaced)

    async def _remove(self, content: str) -> None:
        with contextlib.suppress(KmpError):  # it stays listed as garbage
            await self._threads.run(self._blobs.remove, content)
            self._removed.add(content)

    async def collect(self) -> None:
        """Remove contents that no object has any more."""
        with contextlib.suppress(KmpError):
            for name in await self._database.read(index.garbage):
                if name not in self._removed:
                    await self._remove(name)

    async def sweep(self) -> None:
        """Remove what nothing names; a content that a living process still writes is locked, and left alone."""
        while await self._database.write(index.expire):
            continue
        await self.collect()
        uploads = self._blobs.abandoned()

        def following() -> Upload | None:
            return next(uploads, None)

        while upload := await self._threads.run(following):
            await self._clean_up(upload)
