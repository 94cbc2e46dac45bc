"""A bucket in a cloud's own object store, through obstore alone: Azure Blob Storage. Experimental."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from kmp_core.context import Context
from kmp_core.deadlines import Timeout, bounded, deadline, within
from kmp_core.errors import BackendError, NotFound, Unsupported
from kmp_core.project import Project
from kmp_core.secrets import SecretStore
from kmp_storage.bucket.cloud_address import CloudAddress, Credentials, check_credential, is_token
from kmp_storage.bucket.cloud_objects import BACKEND, CloudObjects
from kmp_storage.bucket.entries import Mark, items_of, server_tag
from kmp_storage.bucket.running import Running
from kmp_storage.bucket.server_bucket import ServerBucket
from kmp_storage.objects.contents import chain, chunks_of, closing, digest, parts_of
from kmp_storage.objects.keys import check_key
from kmp_storage.settings.cloud import CloudSettings
from kmp_storage.values import BucketEntry

if TYPE_CHECKING:
    from obstore import PutMode

    from kmp_storage.bucket.cloud_objects import Listing

__all__ = ["CloudBucket", "CloudSettings"]

_PROBE = "kmp-is-it-there"


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a put says about its content, and on which condition the server takes it."""

    key: str
    content_type: str | None
    metadata: Mapping[str, str]
    mode: PutMode
    seconds: float | None

    def attributes(self, mark: Mark) -> dict[str, str]:
        items = items_of(mark, self.metadata, self.key)
        return items if self.content_type is None else items | {"Content-Type": self.content_type}

    def mark(self, checksum: str | None) -> Mark:
        return Mark.now(checksum=checksum, part_bytes=None, typed=self.content_type is not None)

    def entry(self, size: int, etag: str, mark: Mark) -> BucketEntry:
        tag = f"{etag.strip(chr(34))}.{mark.version}"
        return BucketEntry(self.key, size, tag, mark.modified, self.content_type, mark.checksum, self.metadata)


class CloudBucket(ServerBucket):
    """Keep objects in the project's own container of Azure Blob Storage. Experimental: CI runs its emulator, Azurite.

    `bytes` go up in one request of any size, and a stream up to `part_bytes` too: whole or nothing, on a condition
    where there is one, with a checksum that every get verifies. A longer stream goes up in parts, whole or nothing,
    without a checksum; a condition on one is `Unsupported`.
    """

    abilities = frozenset({"durable", "shared", "sign"})
    backend = BACKEND
    no_expiry = "have who provisions the container set a lifecycle rule for a prefix"
    no_signature = "open it with the storage account's key: a SAS token cannot sign"

    def __init__(
        self,
        url: str,
        *,
        project: str = "local",
        settings: CloudSettings | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.project = Project(project)
        self.settings = CloudSettings.load() if settings is None else settings
        self.address = CloudAddress.read(url, project=self.project, settings=self.settings, credentials=credentials)
        self._can(sign=self.address.may_sign)

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make the bucket of a service's project."""
        settings = CloudSettings.load()
        name = settings.credential_secret
        if name is None:
            return cls(url, project=context.project, settings=settings)
        secret_name = name

        async def credentials() -> str:
            return (await (await context.get(SecretStore)).get(secret_name)).reveal()

        return cls(url, project=context.project, settings=settings, credentials=credentials)

    def _can(self, *, sign: bool) -> None:
        self.abilities = type(self).abilities - (frozenset() if sign else {"sign"})

    async def _open(self) -> None:
        self._begin(self.settings.timeout)
        self._running = Running()
        credential = await self.address.credentials()
        check_credential(credential)
        self._can(sign=not is_token(credential))
        self._objects = self._blobs = CloudObjects(self.address, credential, self.settings, self._running, self.project)
        await self._check()

    async def _close(self) -> None:
        if hasattr(self, "_running"):
            await self._running.close()

    async def _check(self) -> None:
        # A refused list has no type of its own in obstore, and a blob that is not there is like its container: ask for
        # both, and whether it was the server.
        await self._blobs.head(_PROBE)
        try:
            await self._blobs.page(self._blobs.listing(f"{_PROBE}/"))
        except BackendError as error:
            await self._blobs.head(_PROBE)
            message = f"there is no container {self.address.container!r}, or it may not be listed: provision it"
            raise NotFound(message, project=self.project) from error

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
        items = self._check_put(
            key,
            content_type=content_type,
            metadata=metadata,
            if_absent=if_absent,
            if_match=if_match,
            expires=expires,
        )
        mode: PutMode = "create" if if_absent else "overwrite"
        if if_match is not None:
            mode = {"e_tag": server_tag(if_match)}
        terms = _Terms(key, content_type, items, mode, within(timeout, self.settings.timeout))
        with self._telemetry.call("put"):
            chunks = chunks_of(content, key)
            async with closing(chunks):
                if isinstance(content, bytes):
                    return await self._put_whole(terms, content)
                size = self.settings.part_bytes
                split = parts_of(chunks, size, key=key, seconds=terms.seconds, backend=BACKEND)
                async with aclosing(split) as parts:
                    return await self._put_stream(terms, parts)

    async def delete(self, key: str, *, timeout: Timeout = None) -> bool:
        self.ensure_open()
        check_key(key)
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("delete"):
            async with deadline(seconds, what=f"deleting {key!r}", backend=BACKEND):
                # A refused delete has no type of its own in obstore; of a refused look it has.
                if await self._again(lambda: self._entry(key)) is None:
                    return False
                try:
                    await self._objects.delete(key)
                except NotFound:  # somebody else was faster
                    return False
                return True

    async def copy(self, source: str, target: str, *, timeout: Timeout = None) -> BucketEntry:
        """Copy within the server, metadata included; `modified` stays the moment at which the content was put."""
        self.ensure_open()
        check_key(source, "source")
        check_key(target, "target")
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("copy"):
            async with deadline(seconds, what=f"copying {source!r}", backend=BACKEND):
                await self._blobs.copy(source, target)
                entry = await self._again(lambda: self._entry(target))
                if entry is None:
                    raise NotFound(f"{target!r} was removed at once", project=self.project, key=target)
                return entry

    async def _put_stream(self, terms: _Terms, parts: AsyncGenerator[bytearray, None]) -> BucketEntry:
        first = await anext(parts, bytearray())
        if len(first) < self.settings.part_bytes:
            return await self._put_whole(terms, first)
        if terms.mode != "overwrite":
            raise Unsupported(
                f"a condition on a stream of {self.settings.part_bytes} bytes or more",
                provider="CloudBucket",
                instead="give the content as bytes, or raise KMP_STORAGE_CLOUD_PART_BYTES above its size",
            )
        rest = chain(first, parts)
        del first
        return await self._put_parts(terms, rest)

    async def _put_whole(self, terms: _Terms, content: bytes | bytearray) -> BucketEntry:
        async with deadline(terms.seconds, what=f"putting {terms.key!r}", backend=BACKEND):
            mark = terms.mark((await digest(content)).hex())
            etag = await self._blobs.put(terms.key, content, terms.attributes(mark), terms.mode)
        return terms.entry(len(content), etag, mark)

    async def _put_parts(self, terms: _Terms, parts: AsyncIterator[bytearray]) -> BucketEntry:
        mark = terms.mark(None)  # the description is sent before the checksum of a stream could be known
        part_bytes, seconds = self.settings.part_bytes, terms.seconds
        size = await self._blobs.put_parts(
            terms.key, parts, terms.attributes(mark), part_bytes=part_bytes, seconds=seconds
        )
        # obstore tells no tag of what went up in parts.
        head = self._again(lambda: self._objects.head(terms.key))
        found = await bounded(head, seconds, what="asking for it", backend=BACKEND)
        if found is not None and found[1] is not None and found[1].version == mark.version:
            return found[0]
        return terms.entry(size, "", mark)  # replaced already: no condition on it holds

    async def _keys(self, prefix: str, limit: int, seconds: float | None) -> AsyncGenerator[Sequence[str], None]:
        async def begin() -> tuple[Listing, Sequence[str] | None]:
            listing = self._blobs.listing(prefix)
            return listing, await self._blobs.page(listing)

        if limit <= 0:
            return
        found: list[str] = []
        listing, page = await bounded(self._again(begin), seconds, what="listing", backend=BACKEND)
        while page is not None:
            found += [key for key in page if key.startswith(prefix)]
            page = await bounded(self._blobs.page(listing), seconds, what="listing", backend=BACKEND)
        yield sorted(found, key=str.encode)
