"""Put a content that is larger than one part: whole at the end, and nothing of it where it is given up on the way."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from kmp_core.deadlines import deadline, detached, remaining
from kmp_core.errors import DeadlineExceeded, InvalidInput, KmpError, NotFound
from kmp_storage.bucket.requests import Answer, Requests, texts
from kmp_storage.objects.contents import digest

__all__ = ["Uploads", "checksum_header"]

T = TypeVar("T")

_MOST_PARTS = 10_000
_ABORT_SECONDS = 30.0
_CLEAN_SECONDS = 1.0
_LATE_SECONDS = 0.05
"""How long a put waits for its own clean-up, and where its time is over already; the clean-up goes on after."""
_CHECKSUM = "x-amz-checksum-sha256"


def checksum_header(digest: bytes) -> tuple[str, dict[str, str]]:
    """A SHA-256 in hexadecimal, and the header by which the server verifies and keeps it."""
    return digest.hex(), {_CHECKSUM: base64.b64encode(digest).decode()}


@dataclass(slots=True)
class _Upload:
    key: str
    id: str
    running: asyncio.Task[str] | None = None


class Uploads:
    """The uploads in parts of one bucket, and the clean-up of those that failed."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._cleaning: set[asyncio.Task[Any]] = set()

    async def put(
        self,
        key: str,
        parts: AsyncIterator[bytearray],
        *,
        description: Mapping[str, str],
        condition: Mapping[str, str],
        seconds: float | None,
    ) -> tuple[str, int]:
        """Send the parts and return the ETag and the size; `seconds` bounds each step. Aborts where it fails."""
        upload = _Upload(key, await self._begin(key, description, seconds))
        try:
            done, size = await self._send(upload, parts, seconds)
            content = f"<CompleteMultipartUpload>{''.join(done)}</CompleteMultipartUpload>".encode()
            async with deadline(seconds, what=f"completing {key!r}", backend="s3"):
                answer = await self._requests.send(
                    "POST", key, query={"uploadId": upload.id}, headers=condition, content=content
                )
        except BaseException as error:
            late = isinstance(error, DeadlineExceeded) or remaining() == 0
            await self._regardless(self._give_up(upload), _LATE_SECONDS if late else _CLEAN_SECONDS)
            raise
        return texts(answer, "ETag")[0].strip('"'), size

    async def _begin(self, key: str, description: Mapping[str, str], seconds: float | None) -> str:
        headers = {"x-amz-checksum-algorithm": "SHA256", **description}
        create = self._task(self._requests.send("POST", key, query={"uploads": ""}, headers=headers))
        try:
            async with deadline(seconds, what=f"beginning to put {key!r}", backend="s3"):
                return texts(await asyncio.shield(create), "UploadId")[0]
        except BaseException:
            # The answer names what has to be aborted: it is waited for where the caller no longer is.
            self._task(self._abort_begun(key, create))
            raise

    async def _send(
        self, upload: _Upload, parts: AsyncIterator[bytearray], seconds: float | None
    ) -> tuple[list[str], int]:
        """Send one part while the next is being received."""
        done: list[str] = []
        size = number = 0
        async for part in parts:
            number, size = number + 1, size + len(part)
            if number > _MOST_PARTS:
                problem = f"has more than {_MOST_PARTS} parts"
                raise InvalidInput("content", problem, example="KMP_STORAGE_S3_PART_BYTES=64MiB", key=upload.key)
            if upload.running is not None:
                done.append(await asyncio.shield(upload.running))
            upload.running = self._task(self._part(upload, number, part, seconds))
            del part
        if upload.running is not None:
            done.append(await asyncio.shield(upload.running))
        return done, size

    async def _part(self, upload: _Upload, number: int, content: bytearray, seconds: float | None) -> str:
        checksum, header = checksum_header(await digest(content))
        query = {"partNumber": str(number), "uploadId": upload.id}
        async with deadline(seconds, what=f"putting part {number} of {upload.key!r}", backend="s3"):
            answer = await self._requests.send(
                "PUT", upload.key, query=query, headers=header, content=content, content_hash=checksum
            )
        return (
            f"<Part><PartNumber>{number}</PartNumber><ETag>{answer.headers['etag']}</ETag>"
            f"<ChecksumSHA256>{header[_CHECKSUM]}</ChecksumSHA256></Part>"
        )

    async def sweep(self, older_than: timedelta) -> None:
        """Abort the uploads that nobody finished for so long, such as those of killed processes."""
        answer = await self._requests.send("GET", query={"uploads": ""})
        found = zip(texts(answer, "Key"), texts(answer, "UploadId"), texts(answer, "Initiated"), strict=False)
        for key, upload, begun in found:
            if datetime.now(UTC) - datetime.fromisoformat(begun) > older_than:
                await self._abort(key, upload)

    async def close(self) -> None:
        """Wait a moment for what is being aborted."""
        if self._cleaning:
            _, late = await asyncio.wait(self._cleaning, timeout=3)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _abort_begun(self, key: str, create: asyncio.Task[Answer]) -> None:
        with suppress(KmpError):
            async with deadline(_ABORT_SECONDS):
                await self._abort(key, texts(await create, "UploadId")[0])

    async def _give_up(self, upload: _Upload) -> None:
        """Abort when the part that is on its way has arrived: one that arrives later begins the upload anew.

        AWS, AbortMultipartUpload: "it might be necessary to abort a given multipart upload multiple times".
        """
        unclear = False
        if upload.running is not None:
            (outcome,) = await asyncio.gather(upload.running, return_exceptions=True)
            unclear = isinstance(outcome, BaseException)
        await self._abort(upload.key, upload.id)
        if unclear:
            await asyncio.sleep(1)
            await self._abort(upload.key, upload.id)

    async def _abort(self, key: str, upload: str) -> None:
        """Abort it, again and again for a while where the server does not answer; the sweep gets what remains."""
        with suppress(KmpError):
            async with deadline(_ABORT_SECONDS):
                while True:
                    try:
                        async with deadline(5):
                            await self._requests.send("DELETE", key, query={"uploadId": upload})
                    except NotFound:
                        return
                    except KmpError:
                        await asyncio.sleep(0.5)
                    else:
                        return

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work, context=detached())
        self._cleaning.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._cleaning.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits for it; nobody may be left

    async def _regardless(self, work: Coroutine[Any, Any, None], seconds: float) -> None:
        """Finish it even where the caller is gone; wait a moment for it, so that what failed has left nothing."""
        task = self._task(work)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.shield(task)
