"""A bucket in an S3 server: one bucket and one access key per project, so that the server refuses the neighbour."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Literal, Self, TypeVar
from urllib.parse import unquote

from kmp_core.breaker import Breaker
from kmp_core.context import Context
from kmp_core.deadlines import Timeout, bounded, deadline, duration, within
from kmp_core.errors import (
    Conflict,
    InvalidInput,
    KmpError,
    NotFound,
    Unsupported,
)
from kmp_core.project import Project, backend_name
from kmp_core.resource import Provider
from kmp_core.retries import Retries
from kmp_core.secrets import SecretStore
from kmp_core.telemetry import Telemetry
from kmp_storage.bucket.address import Address, access_key_name
from kmp_storage.bucket.entries import Mark, describe, server_tag
from kmp_storage.bucket.objects import Objects
from kmp_storage.bucket.puts import Puts, Terms
from kmp_storage.bucket.requests import Requests, texts
from kmp_storage.bucket.signing import AccessKey, AccessKeys
from kmp_storage.bucket.uploads import Uploads
from kmp_storage.objects.contents import apart, check_count, chunks_of, closing
from kmp_storage.objects.keys import check_content_type, check_expires, check_key, check_metadata, check_prefix
from kmp_storage.protocols import Bucket
from kmp_storage.settings.s3 import S3Settings
from kmp_storage.values import BucketEntry

__all__ = ["S3Bucket", "S3Settings"]

T = TypeVar("T")

_PAGE = 1000
_HEADS_AT_ONCE = 16
_EVERYTHING = sys.maxsize
_LARGEST_CHUNK = 64 << 20
_LONGEST_SIGNATURE = timedelta(days=7)
_EXPIRY = "have who provisions the bucket set a lifecycle rule for a prefix, on a server with them, such as Amazon S3"


class S3Bucket(Provider, Bucket):
    """Keep objects in the project's own bucket of an S3 server, under their own keys, for every other program to read.

    A put is whole or nothing, and verified by the server; a get is verified here. Content type and metadata are the
    object's own; checksum, version and the moment of the put are one more item of metadata, `kmp`.
    """

    abilities = frozenset({"durable", "shared", "sign"})

    def __init__(
        self,
        url: str,
        *,
        project: str = "local",
        settings: S3Settings | None = None,
        keys: AccessKeys | None = None,
    ) -> None:
        self.project = Project(project)
        self.settings = S3Settings.load() if settings is None else settings
        self.address = Address.read(url, settings=self.settings, keys=keys)
        self.bucket = self.address.bucket or backend_name(self.project, "bucket")

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the bucket of a service's project."""
        settings = S3Settings.load()
        name = settings.secret_key_secret
        if name is None:
            return cls(url, project=context.project, settings=settings)
        access_key, secret_name = access_key_name(url, settings), name

        async def keys() -> AccessKey:
            secret = await (await context.get(SecretStore)).get(secret_name)
            return AccessKey(access_key, secret.reveal())

        return cls(url, project=context.project, settings=settings, keys=keys)

    async def _open(self) -> None:
        self._telemetry = Telemetry("db", "s3", project=self.project, scope="kmp_storage")
        self._retries = Retries("s3", breaker=Breaker("s3", longest_pause="3s"))
        self._requests = Requests(self.address, self.bucket, connections=self.settings.connections)
        self._uploads = Uploads(self._requests)
        self._objects = Objects(self.address, self.bucket, self.settings, self._requests, self.project)
        self._puts = Puts(
            self._requests, self._objects, self._uploads, retries=self._retries, part_bytes=self.settings.part_bytes
        )
        await self._check()
        with suppress(KmpError):
            async with deadline(5):
                await self._uploads.sweep(self.settings.abandoned_after)

    async def _close(self) -> None:
        if hasattr(self, "_uploads"):
            await self._uploads.close()
            await self._requests.close()

    async def _check(self) -> None:
        await self._requests.send("GET", query={"list-type": "2", "max-keys": "1"})

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
        items = check_metadata(metadata)
        if check_expires(expires, key) is not None:
            raise Unsupported("expiry", provider="S3Bucket", instead=_EXPIRY)
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("put"):
            chunks = chunks_of(content, key)
            # A content that is here already is one call with one deadline; of a stream, each step has it.
            async with deadline(seconds if isinstance(content, bytes) else None, what="putting", backend="s3"):
                condition = await self._puts.condition(key, if_absent, if_match, seconds)
                terms = Terms(key, content_type, items, condition, seconds)
                async with closing(chunks):
                    return await self._puts.put(terms, chunks)

    async def get(self, key: str, *, timeout: Timeout = None) -> bytes:
        self.ensure_open()
        check_key(key)
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("get"):
            async with deadline(seconds, what=f"getting {key!r}", backend="s3"):
                return await self._again(lambda: self._get(key, seconds))

    def stream(self, key: str, *, chunk: int = 1 << 20, timeout: Timeout = None) -> AsyncIterator[bytes]:
        self.ensure_open()
        check_key(key)
        check_count("chunk", chunk, lowest=1, highest=_LARGEST_CHUNK)
        return self._stream(key, chunk, within(timeout, self.settings.timeout))

    async def head(self, key: str, *, timeout: Timeout = None) -> BucketEntry | None:
        self.ensure_open()
        check_key(key)
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("head"):
            async with deadline(seconds, what=f"asking for {key!r}", backend="s3"):
                return await self._again(lambda: self._entry(key))

    def list(
        self, prefix: str = "", *, limit: int | None = None, timeout: Timeout = None
    ) -> AsyncIterator[BucketEntry]:
        """Entries in the order of their keys' bytes. S3 lists no metadata: each entry is one more request."""
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
            async with deadline(seconds, what=f"deleting {key!r}", backend="s3"):
                # S3 does not tell whether there was one.
                there = await self._entry(key) is not None
                if there:
                    await self._again(lambda: self._objects.delete(key))
                return there

    async def copy(self, source: str, target: str, *, timeout: Timeout = None) -> BucketEntry:
        """Copy within the server, metadata included; S3 copies up to 5 GiB."""
        self.ensure_open()
        check_key(source, "source")
        check_key(target, "target")
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("copy"):
            async with deadline(seconds, what=f"copying {source!r}", backend="s3"):
                while True:
                    with suppress(Conflict):  # the source was replaced between the two requests: look again
                        return await self._copy(source, target)

    async def sign(self, key: str, *, expires: Timeout, method: Literal["GET", "PUT"] = "GET") -> str:
        """A URL for whoever has it. What is put with one has no checksum and no metadata of ours."""
        self.ensure_open()
        check_key(key)
        if method not in ("GET", "PUT"):
            raise InvalidInput("method", "must be GET or PUT", example='"GET"', key=key)
        span = timedelta(0) if expires is None else duration(expires, field="expires")
        if not timedelta(seconds=1) <= span <= _LONGEST_SIGNATURE:
            raise InvalidInput("expires", "must lie between a second and seven days", example='"15m"', key=key)
        with self._telemetry.call("sign"):
            return await self._objects.sign(key, method, span, within(None, self.settings.timeout))

    async def _copy(self, source: str, target: str) -> BucketEntry:
        found = await self._objects.head(source)
        if found is None:
            raise NotFound(f"nothing is stored under {source!r}", project=self.project, key=source)
        entry, mark = found
        kept = Mark.now(checksum=None, part_bytes=None, typed=True) if mark is None else mark.anew()
        copied = await self._requests.send(
            "PUT",
            target,
            headers={
                "x-amz-copy-source": self._requests.path(source),
                "x-amz-copy-source-if-match": server_tag(entry.etag),
                "x-amz-metadata-directive": "REPLACE",
                **describe(kept, entry.content_type, entry.metadata, target),
            },
        )
        etag = texts(copied, "ETag")[0].strip('"')
        return replace(entry, key=target, etag=f"{etag}.{kept.version}", modified=kept.modified)

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
            async with aclosing(self._keys(prefix, min(limit, _PAGE), seconds)) as found:
                async for keys in found:
                    self.ensure_open()
                    heads = asyncio.gather(*map(self._entry, keys[:limit]))
                    for entry in await bounded(heads, seconds, what="listing", backend="s3"):
                        if entry is not None:  # deleted between the two requests
                            limit -= 1
                            yield entry
                    if limit <= 0:
                        return

    async def _keys(self, prefix: str, count: int, seconds: float | None) -> AsyncGenerator[Sequence[str], None]:
        """The keys, as many at a time as are then asked for at once."""
        query = {"list-type": "2", "prefix": prefix, "max-keys": str(count), "encoding-type": "url"}
        while count > 0:
            page = self._again(lambda: self._requests.send("GET", query=query))
            answer = await bounded(page, seconds, what="listing", backend="s3")
            keys = texts(answer, "Key")
            if "url" in texts(answer, "EncodingType"):  # not every server knows it
                keys = [unquote(key) for key in keys]
            for start in range(0, len(keys), _HEADS_AT_ONCE):
                yield keys[start : start + _HEADS_AT_ONCE]
            token = next(iter(texts(answer, "NextContinuationToken")), "")
            if not token:
                return
            query["continuation-token"] = token
