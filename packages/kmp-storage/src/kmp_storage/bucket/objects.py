"""What obstore does for a bucket: get with flat memory, verified as it passes; head, delete, and signed URLs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sys
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kmp_core.deadlines import deadline
from kmp_core.errors import (
    Corrupt,
    ErrorTable,
    KmpError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from kmp_core.plugins import extra
from kmp_core.project import Project
from kmp_storage.bucket.address import Address
from kmp_storage.bucket.entries import Mark, entry_of
from kmp_storage.bucket.requests import Requests
from kmp_storage.settings.s3 import S3Settings
from kmp_storage.values import BucketEntry

with extra("obstore", install="kmp-storage[buckets]"):
    import obstore
    from obstore import exceptions
    from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential

__all__ = ["Objects"]


def _away(_: BaseException) -> KmpError:
    return Unavailable("the S3 server does not answer, or failed", backend="s3")


# The driver's words are not repeated: they hold whole URLs.
_ERRORS = ErrorTable(
    {
        FileNotFoundError: lambda _: NotFound("nothing is stored under this key"),
        exceptions.PermissionDeniedError: lambda _: PermissionDenied("the S3 server refused access to the bucket"),
        exceptions.UnauthenticatedError: lambda _: Unauthenticated(message="the S3 server refused the access key"),
        exceptions.BaseError: _away,
        OSError: _away,
    }
)


class Objects:
    """The objects of one bucket, as obstore reaches them. obstore bounds no connections: `turns` does."""

    def __init__(
        self, address: Address, bucket: str, settings: S3Settings, requests: Requests, project: Project
    ) -> None:
        self._store = _store(address, bucket, settings)
        self._requests = requests
        self.project = project
        self.turns = asyncio.Semaphore(settings.connections)

    async def head(self, key: str) -> tuple[BucketEntry, Mark | None] | None:
        """What the server knows of an object; None where there is none."""
        async with self.turns:
            with _ERRORS.translating():
                try:
                    result = await self._requests.until_closed(
                        lambda: obstore.get_async(self._store, key, options={"head": True})
                    )
                    return _described(key, result)
                except FileNotFoundError:
                    return None

    async def delete(self, key: str) -> None:
        async with self.turns:
            with _ERRORS.translating():
                await self._requests.until_closed(lambda: obstore.delete_async(self._store, key))

    async def sign(self, key: str, method: Literal["GET", "PUT"], span: timedelta, seconds: float | None) -> str:
        with _ERRORS.translating():
            async with deadline(seconds, what=f"signing {key!r}", backend="s3"):
                return await obstore.sign_async(self._store, method, key, span)

    async def contents(self, key: str, chunk: int, seconds: float | None) -> AsyncGenerator[bytes, None]:
        """The content, verified before its last chunk is handed out."""
        with _ERRORS.translating():
            try:
                async with deadline(seconds, what=f"opening {key!r}", backend="s3"):
                    result = await self._requests.until_closed(lambda: obstore.get_async(self._store, key))
                    checker = await self._checker(key, result)
            except FileNotFoundError as error:
                raise NotFound(f"nothing is stored under {key!r}", project=self.project, key=key) from error
            pieces = aiter(result.stream(min_chunk_size=chunk))
            left, last = result.meta["size"], b""
            while left > 0:
                async with deadline(seconds, what=f"reading {key!r}", backend="s3"):
                    piece = await self._requests.until_closed(lambda: anext(pieces, None))
                if piece is None:
                    break
                data = memoryview(piece)
                left -= len(data)
                checker.update(data)
                for start in range(0, len(data), chunk):
                    if last:
                        yield last
                    last = bytes(data[start : start + chunk])
            if left or not checker.intact():
                message = f"the content of {key!r} is damaged; it was left as it is. Put it again from its source"
                raise Corrupt(message, project=self.project, key=key)
            if last:
                yield last

    async def _checker(self, key: str, result: obstore.GetResult) -> _Checker:
        _, mark = _described(key, result)
        if mark is None:
            return _Checker(None, None)
        if mark.part_bytes is None:
            return _Checker(None if mark.checksum is None else bytes.fromhex(mark.checksum), None)
        # The server keeps the checksum of the parts' checksums, and tells it to those who ask.
        answer = await self._requests.send("HEAD", key, headers={"x-amz-checksum-mode": "ENABLED"})
        if answer.headers.get("etag") != result.meta["e_tag"]:
            return _Checker(None, None)  # replaced since: what is read here is the version before
        text, composite, _ = answer.headers.get("x-amz-checksum-sha256", "").partition("-")
        return _Checker(base64.b64decode(text) or None, mark.part_bytes if composite else None)


def _described(key: str, result: obstore.GetResult) -> tuple[BucketEntry, Mark | None]:
    meta = result.meta
    # What is the server's own has capitals; names of metadata have none.
    metadata = {name: value for name, value in result.attributes.items() if name == name.lower()}
    return entry_of(
        key,
        size=meta["size"],
        etag=meta["e_tag"] or "",
        modified=meta["last_modified"],
        content_type=result.attributes.get("Content-Type"),
        metadata=metadata,
    )


class _Checker:
    """Verifies a content as it passes: as a whole, or where it went up in parts, by the parts' checksums."""

    def __init__(self, expected: bytes | None, part_bytes: int | None) -> None:
        self._expected = expected
        self._left = self._part_bytes = part_bytes or sys.maxsize
        self._parts: list[bytes] = []
        self._digest = hashlib.sha256()

    def update(self, data: memoryview) -> None:
        if self._expected is None:
            return
        while data:
            now = data[: self._left]
            self._digest.update(now)
            self._left -= len(now)
            data = data[len(now) :]
            if self._left == 0:
                self._end_part()

    def _end_part(self) -> None:
        self._parts.append(self._digest.digest())
        self._digest, self._left = hashlib.sha256(), self._part_bytes

    def intact(self) -> bool:
        if self._expected is None:
            return True
        if self._part_bytes == sys.maxsize:
            return self._digest.digest() == self._expected
        if self._left != self._part_bytes:
            self._end_part()
        return hashlib.sha256(b"".join(self._parts)).digest() == self._expected


def _store(address: Address, bucket: str, settings: S3Settings) -> S3Store:
    async def credentials() -> S3Credential:
        # Over as soon as it is told, so that each request asks anew, and a rotated secret is used at once.
        now = datetime.now(UTC)
        key = await address.keys()
        return {"access_key_id": key.name, "secret_access_key": key.secret, "token": None, "expires_at": now}

    options: ClientConfig = {
        "allow_http": not address.is_tls,
        "connect_timeout": settings.connect_timeout,
        # obstore would ask the environment for a proxy unless it had one, so it has one for no host at all.
        "proxy_url": "http://127.0.0.1:9",
        "proxy_excludes": "*,0.0.0.0/0,::/0",
        # The caller's deadline bounds each step; a whole download may take as long as it takes.
        "timeout": timedelta(days=1),
    }
    if address.tls_ca_file is not None:
        options["root_certificate"] = Path(address.tls_ca_file).read_bytes()
    return S3Store(
        bucket,
        endpoint=address.endpoint,
        region=address.region,
        virtual_hosted_style_request=False,
        disable_bulk_delete=True,  # whose refusals have no type
        credential_provider=credentials,
        client_options=options,
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
    )
