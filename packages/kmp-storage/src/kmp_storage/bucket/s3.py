"""A bucket in an S3 server: one bucket and one access key per project, so that the server refuses the neighbour."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Self
from urllib.parse import unquote

from kmp_core.context import Context
from kmp_core.deadlines import Timeout, bounded, deadline, within
from kmp_core.errors import Conflict, KmpError, NotFound
from kmp_core.project import Project, backend_name
from kmp_core.secrets import SecretStore
from kmp_storage.bucket.address import Address, access_key_name
from kmp_storage.bucket.entries import Mark, describe, server_tag
from kmp_storage.bucket.puts import Puts, Terms
from kmp_storage.bucket.requests import Requests, texts
from kmp_storage.bucket.s3_objects import S3Objects
from kmp_storage.bucket.server_bucket import ServerBucket
from kmp_storage.bucket.signing import AccessKey, AccessKeys
from kmp_storage.bucket.uploads import Uploads
from kmp_storage.objects.contents import chunks_of, closing
from kmp_storage.objects.keys import check_key
from kmp_storage.settings.s3 import S3Settings
from kmp_storage.values import BucketEntry

__all__ = ["S3Bucket", "S3Settings"]

_PAGE = 1000


class S3Bucket(ServerBucket):
    """Keep objects in the project's own bucket of an S3 server, under their own keys, for every other program to read.

    A put is whole or nothing, and verified by the server; a get is verified here. Content type and metadata are the
    object's own; checksum, version and the moment of the put are one more item of metadata, `kmp`.
    """

    abilities = frozenset({"durable", "shared", "sign"})
    backend = "s3"
    no_expiry = (
        "have who provisions the bucket set a lifecycle rule for a prefix, on a server with them, such as Amazon S3"
    )

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
        self._begin(self.settings.timeout)
        self._requests = Requests(self.address, self.bucket, connections=self.settings.connections)
        self._uploads = Uploads(self._requests)
        self._objects = S3Objects(self.address, self.bucket, self.settings, self._requests, self.project)
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
        items = self._check_put(
            key,
            content_type=content_type,
            metadata=metadata,
            if_absent=if_absent,
            if_match=if_match,
            expires=expires,
        )
        seconds = within(timeout, self.settings.timeout)
        with self._telemetry.call("put"):
            chunks = chunks_of(content, key)
            # A content that is here already is one call with one deadline; of a stream, each step has it.
            async with deadline(seconds if isinstance(content, bytes) else None, what="putting", backend="s3"):
                condition = await self._puts.condition(key, if_absent, if_match, seconds)
                terms = Terms(key, content_type, items, condition, seconds)
                async with closing(chunks):
                    return await self._puts.put(terms, chunks)

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

    async def _keys(self, prefix: str, limit: int, seconds: float | None) -> AsyncGenerator[Sequence[str], None]:
        count = str(min(limit, _PAGE))
        query = {"list-type": "2", "prefix": prefix, "max-keys": count, "encoding-type": "url"}
        while limit > 0:
            page = self._again(lambda: self._requests.send("GET", query=query))
            answer = await bounded(page, seconds, what="listing", backend="s3")
            keys = texts(answer, "Key")
            if "url" in texts(answer, "EncodingType"):  # not every server knows it
                keys = [unquote(key) for key in keys]
            yield keys
            token = next(iter(texts(answer, "NextContinuationToken")), "")
            if not token:
                return
            query["continuation-token"] = token
