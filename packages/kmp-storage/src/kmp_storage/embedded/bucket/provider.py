"""A bucket that needs no server: contents in files, and an index in SQLite that makes every change atomic."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeVar

from kmp_core.context import Context
from kmp_core.deadlines import Timeout, bounded, deadline, within
from kmp_core.errors import ConfigurationError, Corrupt, Fault, InvalidInput, NotFound, Unsupported
from kmp_core.project import Project
from kmp_core.resource import Provider
from kmp_core.sqlite import Database, local_path
from kmp_core.telemetry import Telemetry
from kmp_storage.embedded.bucket import index
from kmp_storage.embedded.bucket.blobs import Blobs, Content
from kmp_storage.embedded.bucket.files import FileBlobs
from kmp_storage.embedded.bucket.index import Condition
from kmp_storage.embedded.bucket.memory import MemoryBlobs
from kmp_storage.embedded.bucket.settings import BucketSettings
from kmp_storage.embedded.bucket.threads import Threads
from kmp_storage.embedded.bucket.writes import Description, Writes
from kmp_storage.objects.contents import PIECE_BYTES, apart, check_count, chunks_of
from kmp_storage.objects.keys import check_content_type, check_expires, check_key, check_metadata, check_prefix
from kmp_storage.protocols import Bucket
from kmp_storage.values import BucketEntry

__all__ = ["BucketSettings", "FileBucket"]

T = TypeVar("T")

_PAGE = 500
_EVERYTHING = sys.maxsize
_LARGEST_CHUNK = 64 << 20


class FileBucket(Provider, Bucket):
    """Keep objects below a directory (`file:`) that several processes share, or in the memory of this one (`memory:`).

    A put is durable when it returns: content and index are synced to the disk. No key names a file, so none can lead
    out of the directory, and `a` and `a/b` stand side by side. To look at an object with another program, get it.
    """

    abilities = frozenset({"durable", "expiry", "shared"})
    embedded = True

    def __init__(
        self,
        url: str = "file:",
        *,
        project: str = "local",
        directory: Path | None = None,
        settings: BucketSettings | None = None,
    ) -> None:
        self.project = Project(project)
        self.settings = BucketSettings.load() if settings is None else settings
        root = _root(url, Path(".kmp") / self.project if directory is None else directory)
        self._blobs: Blobs = MemoryBlobs(self.settings.max_memory_bytes) if root is None else FileBlobs(root)
        path = None if root is None else root / "index.db"
        self._database = Database(path, project=self.project, capability="storage.bucket", migrations=index.MIGRATIONS)
        if path is None:
            self.abilities -= {"durable", "shared"}

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the bucket of a service's project."""
        return cls(url, project=context.project, directory=context.directory)

    async def _open(self) -> None:
        self._threads = Threads(self.settings.threads)
        self._writes = Writes(self._database, self._blobs, self._threads, self.settings.max_object_bytes)
        self._telemetry = Telemetry("db", "file", project=self.project, scope="kmp_storage")
        await self._threads.run(self._blobs.open)
        await self._database.open()
        await self._threads.regardless(self._writes.sweep())

    async def _close(self) -> None:
        await self._threads.close()
        await self._database.close()
        self._blobs.close()

    async def _check(self) -> None:
        await self._threads.run(self._blobs.check)
        await self._database.read(lambda connection: index.page(connection, "", None, 1))

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
        self.ensure_open()
        check_key(key)
        check_content_type(content_type)
        if if_absent and if_match is not None:
            raise InvalidInput("if_match", "contradicts if_absent", example="if_match=entry.etag", key=key)
        condition, span = Condition(if_absent, if_match), check_expires(expires, key)
        description = Description(key, content_type, check_metadata(metadata), condition, span)
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("put"):
            chunks = chunks_of(content, key)
            # A content that is here already is one call with one deadline; of a stream, each step has it.
            async with deadline(seconds if isinstance(content, bytes) else None, what="putting", backend="file"):
                return await self._writes.put(description, chunks, seconds)

    async def get(self, key: str, *, timeout: Timeout = None) -> bytes:
        self.ensure_open()
        check_key(key)
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("get"):
            async with deadline(seconds, what=f"getting {key!r}", backend="file", outcome_unknown=False):
                entry, content = await self._find(key)
                async with aclosing(self._contents(entry, content, PIECE_BYTES, seconds)) as chunks:
                    return b"".join([chunk async for chunk in chunks])

    def stream(self, key: str, *, chunk: int = 1 << 20, timeout: Timeout = None) -> AsyncIterator[bytes]:
        self.ensure_open()
        check_key(key)
        check_count("chunk", chunk, lowest=1, highest=_LARGEST_CHUNK)
        return self._stream(key, chunk, within(timeout, self.settings.timeout))

    async def head(self, key: str, *, timeout: Timeout = None) -> BucketEntry | None:
        self.ensure_open()
        check_key(key)
        with self._telemetry.call("head"):
            return await self._entry(key, within(timeout, self.settings.timeout))

    def list(
        self, prefix: str = "", *, limit: int | None = None, timeout: Timeout = None
    ) -> AsyncIterator[BucketEntry]:
        self.ensure_open()
        check_prefix(prefix)
        limit = _EVERYTHING if limit is None else limit
        check_count("limit", limit, lowest=0, highest=_EVERYTHING)
        return self._list(prefix, limit, within(timeout, self.settings.timeout))

    async def delete(self, key: str, *, timeout: Timeout = None) -> bool:
        self.ensure_open()
        check_key(key)
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("delete"):
            try:
                there = await self._writes.change(partial(index.delete, key=key), seconds)
            finally:
                # Also after a failure: the delete may have been committed in the very moment of a cancellation.
                await self._threads.regardless(self._writes.collect())
        return there

    async def copy(self, source: str, target: str, *, timeout: Timeout = None) -> BucketEntry:
        self.ensure_open()
        check_key(source, "source")
        check_key(target, "target")
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("copy"):
            entry, content = await self._find(source)
            description = Description(target, entry.content_type, entry.metadata, Condition(), entry.expires)
            try:
                pieces = self._contents(entry, content, PIECE_BYTES, seconds)
                return await self._writes.put(description, pieces, seconds)
            finally:
                self._threads.later(content.close)

    async def sign(self, key: str, *, expires: Timeout, method: Literal["GET", "PUT"] = "GET") -> str:
        self.ensure_open()
        check_key(key)
        instead = "serve the object from an endpoint of your own with stream(), or use a bucket of an object store"
        raise Unsupported("sign", provider="FileBucket", instead=instead)

    # Reading

    async def _entry(self, key: str, seconds: float | None = None) -> BucketEntry | None:
        return await self._database.read(lambda connection: index.find(connection, key), timeout=seconds)

    async def _find(self, key: str) -> tuple[BucketEntry, Content]:
        missing = None
        while True:
            entry = await self._entry(key, within(None, self.settings.timeout))
            if entry is None:
                raise NotFound(f"nothing is stored under {key!r}", project=self.project, key=key)
            name = entry.etag
            content = await self._threads.obtain(partial(self._blobs.read, name), _close)
            if content is not None:
                return entry, content
            # Replaced or deleted between the two looks; the same entry again means that its content is gone.
            if missing == name:
                raise Corrupt(f"the content of {key!r} is gone from the store; put it again", key=key)
            missing = name

    async def _contents(
        self, entry: BucketEntry, content: Content, chunk: int, seconds: float | None
    ) -> AsyncGenerator[bytes, None]:
        """The content, verified before its last chunk is handed out."""
        digest, left = hashlib.sha256(), entry.size

        def read() -> bytes:
            part = content.read(chunk)
            digest.update(part)
            return part

        try:
            damaged = content.size != entry.size
            while left and not damaged:
                what = f"reading {entry.key!r}"
                part = await bounded(self._threads.run(read), seconds, what=what, backend="file", outcome_unknown=False)
                left -= len(part)
                damaged = not part or left < 0 or (left == 0 and digest.hexdigest() != entry.checksum)
                if not damaged:
                    yield part
            if damaged:
                message = f"the content of {entry.key!r} is damaged; it was left as it is. Put it again from its source"
                raise Corrupt(message, project=self.project, key=entry.key)
        finally:
            self._threads.later(content.close)

    async def _stream(self, key: str, chunk: int, seconds: float | None) -> AsyncIterator[bytes]:
        self.ensure_open()
        with apart(self._telemetry.call("stream")):
            async with deadline(seconds, what=f"opening {key!r}", backend="file", outcome_unknown=False):
                entry, content = await self._find(key)
            async with aclosing(self._contents(entry, content, chunk, seconds)) as chunks:
                async for part in chunks:
                    yield part

    async def _list(self, prefix: str, limit: int, seconds: float | None) -> AsyncIterator[BucketEntry]:
        self.ensure_open()
        after: str | None = None
        with apart(self._telemetry.call("list")):
            while limit > 0:
                self.ensure_open()
                count = min(limit, _PAGE)
                look = partial(index.page, prefix=prefix, after=after, count=count)
                page = await self._database.read(look, timeout=seconds)
                for entry in page:
                    yield entry
                if len(page) < count:
                    return
                after, limit = page[-1].key, limit - count


def _root(url: str, directory: Path) -> Path | None:
    scheme, colon, _ = url.partition(":")
    if scheme not in ("file", "memory") or not colon:
        raise ConfigurationError(Fault("url", "must begin with 'file:' or 'memory:'", example="file:"))
    if scheme == "memory":
        return None
    return local_path(url) or directory / "bucket"


def _close(content: Content | None) -> None:
    if content is not None:
        content.close()
