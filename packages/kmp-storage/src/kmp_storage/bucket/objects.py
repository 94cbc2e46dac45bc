"""What obstore does for a bucket whatever the server: get with flat memory, verified on its way; head, delete, sign."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from kmp_core.deadlines import deadline
from kmp_core.errors import (
    Conflict,
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
from kmp_storage.bucket.entries import Mark, entry_of
from kmp_storage.bucket.running import Running
from kmp_storage.values import BucketEntry

with extra("obstore", install="kmp-storage[buckets]"):
    import obstore
    from obstore import exceptions

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, RetryConfig, S3Store

    Store = AzureStore | S3Store

__all__ = ["NO_RETRIES", "Checker", "Objects", "client_options"]

T = TypeVar("T")

NO_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
"""Whether to try again is decided here, by the budget and the breaker of the backend."""


_UNEXPECTED = "what is stored under this key is not what was expected"


def client_options(*, tls: bool, tls_ca_file: str | None, connect_timeout: timedelta) -> ClientConfig:
    """How obstore's HTTP client connects."""
    options: ClientConfig = {
        "allow_http": not tls,
        "connect_timeout": connect_timeout,
        # obstore would ask the environment for a proxy unless it had one, so it has one for no host at all.
        "proxy_url": "http://127.0.0.1:9",
        "proxy_excludes": "*,0.0.0.0/0,::/0",
        # The caller's deadline bounds each step; a whole download may take as long as it takes.
        "timeout": timedelta(days=1),
    }
    if tls_ca_file is not None:
        options["root_certificate"] = Path(tls_ca_file).read_bytes()
    return options


class Objects:
    """The objects of one bucket, as obstore reaches them. obstore bounds no connections: `turns` does.

    `server` is what an error calls it, `backend` what a metric does.
    """

    def __init__(
        self, store: Store, *, server: str, backend: str, connections: int, project: Project, running: Running
    ) -> None:
        self.store = store
        self.project = project
        self.running = running
        self.turns = asyncio.Semaphore(connections)
        self._backend = backend
        # The driver's words are not repeated: they hold whole URLs.
        self.errors = ErrorTable(
            {
                FileNotFoundError: lambda _: NotFound("nothing is stored under this key"),
                exceptions.AlreadyExistsError: lambda _: Conflict(_UNEXPECTED),
                exceptions.PreconditionError: lambda _: Conflict(_UNEXPECTED),
                exceptions.PermissionDeniedError: lambda _: PermissionDenied(f"{server} refused access to the bucket"),
                exceptions.UnauthenticatedError: lambda _: Unauthenticated(message=f"{server} refused the access key"),
                exceptions.BaseError: self._away,
                OSError: self._away,
            }
        )
        self._server = server

    def _away(self, _: BaseException) -> KmpError:
        return Unavailable(f"{self._server} does not answer, or failed", backend=self._backend)

    async def in_turn(self, work: Callable[[], Awaitable[T]]) -> T:
        """Send one request when it is its turn."""
        async with self.turns:
            return await self.send(work)

    async def send(self, work: Callable[[], Awaitable[T]]) -> T:
        """Send one request, with our errors for the driver's; `close` ends it."""
        with self.errors.translating():
            return await self.running.until_closed(work)

    async def head(self, key: str) -> tuple[BucketEntry, Mark | None] | None:
        """What the server knows of an object; None where there is none."""
        try:
            result = await self.in_turn(lambda: obstore.get_async(self.store, key, options={"head": True}))
        except NotFound:
            return None
        return self.described(key, result)

    async def delete(self, key: str) -> None:
        await self.in_turn(lambda: obstore.delete_async(self.store, key))

    async def sign(self, key: str, method: Literal["GET", "PUT"], span: timedelta, seconds: float | None) -> str:
        async with deadline(seconds, what=f"signing {key!r}", backend=self._backend):
            return await self.send(lambda: obstore.sign_async(self.store, method, key, span))

    async def contents(self, key: str, chunk: int, seconds: float | None) -> AsyncGenerator[bytes, None]:
        """The content, verified before its last chunk is handed out."""
        with self.errors.translating():
            try:
                async with deadline(seconds, what=f"opening {key!r}", backend=self._backend):
                    result = await self.send(lambda: obstore.get_async(self.store, key))
                    checker = await self._checker(key, result)
            except NotFound as error:
                raise NotFound(f"nothing is stored under {key!r}", project=self.project, key=key) from error
            pieces = aiter(result.stream(min_chunk_size=chunk))
            left, last = result.meta["size"], b""
            while left > 0:
                async with deadline(seconds, what=f"reading {key!r}", backend=self._backend):
                    piece = await self.running.until_closed(lambda: anext(pieces, None))
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

    async def _checker(self, key: str, result: obstore.GetResult) -> Checker:
        _, mark = self.described(key, result)
        if mark is not None and mark.part_bytes is not None:
            return await self._checker_of_parts(key, result, mark.part_bytes)
        return Checker(None if mark is None or mark.checksum is None else bytes.fromhex(mark.checksum), None)

    async def _checker_of_parts(self, key: str, result: obstore.GetResult, part_bytes: int) -> Checker:
        """What verifies an object that went up in parts: nothing, unless the server keeps checksums and tells them."""
        return Checker(None, None)

    def described(self, key: str, result: obstore.GetResult) -> tuple[BucketEntry, Mark | None]:
        """What the server said about an object, beside its content."""
        meta = result.meta
        # What is the server's own has capitals; names of metadata have none.
        metadata = {self.named(name): value for name, value in result.attributes.items() if name == name.lower()}
        return entry_of(
            key,
            size=meta["size"],
            etag=meta["e_tag"] or "",
            modified=meta["last_modified"],
            content_type=result.attributes.get("Content-Type"),
            metadata=metadata,
        )

    def named(self, stored: str) -> str:
        """The name of an item of metadata, from what the server calls it."""
        return stored


class Checker:
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
