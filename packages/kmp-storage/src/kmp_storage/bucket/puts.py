"""Put an object: a small content in one request, a larger one in parts; an answer that is lost is asked for."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from kmp_core.deadlines import bounded, deadline
from kmp_core.errors import BackendError, Conflict, NotFound, OutcomeUnknown, Unavailable
from kmp_core.retries import Retries
from kmp_storage.bucket.entries import Mark, describe, server_tag
from kmp_storage.bucket.objects import Objects
from kmp_storage.bucket.requests import Answer, Requests
from kmp_storage.bucket.uploads import Uploads, checksum_header
from kmp_storage.objects.contents import chain, digest, parts_of
from kmp_storage.values import BucketEntry

__all__ = ["Puts", "Terms"]

_ASKED_BYTES = 64 << 10
_APART_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a put says about its content, and on which condition the server takes it."""

    key: str
    content_type: str | None
    metadata: Mapping[str, str]
    condition: Mapping[str, str]
    seconds: float | None


class Puts:
    """The puts into one bucket."""

    def __init__(
        self, requests: Requests, objects: Objects, uploads: Uploads, *, retries: Retries, part_bytes: int
    ) -> None:
        self._requests = requests
        self._objects = objects
        self._uploads = uploads
        self._retries = retries
        self._part_bytes = part_bytes

    async def condition(self, key: str, if_absent: bool, if_match: str | None, seconds: float | None) -> dict[str, str]:
        """The header that makes the server refuse. An ETag names a content; which version it was, the mark knows."""
        if if_absent:
            return {"if-none-match": "*"}
        if if_match is None:
            return {}
        found = await bounded(self._objects.head(key), seconds, what=f"asking for {key!r}", backend="s3")
        if found is None or found[0].etag != if_match:
            raise _unexpected(key)
        return {"if-match": server_tag(if_match)}

    async def put(self, terms: Terms, chunks: AsyncIterator[bytes]) -> BucketEntry:
        """Put the content, in parts where it is larger than one."""
        split = parts_of(chunks, self._part_bytes, key=terms.key, seconds=terms.seconds, backend="s3")
        async with aclosing(split) as parts:
            return await self._put(terms, parts)

    async def _put(self, terms: Terms, parts: AsyncGenerator[bytearray, None]) -> BucketEntry:
        first = await anext(parts, bytearray())
        small, typed = len(first) < self._part_bytes, terms.content_type is not None
        checksum, header = checksum_header(await digest(first)) if small else (None, {})
        mark = Mark.now(checksum=checksum, part_bytes=None if small else self._part_bytes, typed=typed)
        headers = describe(mark, terms.content_type, terms.metadata, terms.key)
        await self._spare(terms, len(first))
        try:
            if small:
                etag, size = await self._put_small(terms, mark, first, {**headers, **header}), len(first)
            else:
                rest = chain(first, parts)
                del first
                etag, size = await self._put_large(terms, mark, rest, headers)
        except NotFound as error:
            if "if-match" not in terms.condition:
                raise
            raise Conflict(f"nothing is stored under {terms.key!r}", key=terms.key) from error
        tag = f"{etag}.{mark.version}"
        return BucketEntry(terms.key, size, tag, mark.modified, terms.content_type, checksum, terms.metadata)

    async def _put_small(self, terms: Terms, mark: Mark, content: bytearray, headers: Mapping[str, str]) -> str:
        sent = {**headers, **terms.condition}
        began, lost = time.monotonic(), False

        async def put() -> str:
            nonlocal lost
            # Where nobody knows yet what became of the try before, another could replace what was put since.
            if lost and (done := await self._landed(terms, mark, began)):
                return done[0]
            lost = False
            try:
                answer = await self._requests.send(
                    "PUT", terms.key, headers=sent, content=content, content_hash=mark.checksum
                )
            except Unavailable as error:
                lost = error.outcome_unknown
                if not lost:  # it was never sent
                    raise
                etag, _ = await self._outcome(terms, mark, began, error)
                return etag
            return str(answer.headers["etag"]).strip('"')

        async with deadline(terms.seconds, what=f"putting {terms.key!r}", backend="s3"):
            # With a condition, the answer to a second try would be about the first.
            return await self._retries.call(put, idempotent=not terms.condition)

    async def _put_large(
        self, terms: Terms, mark: Mark, parts: AsyncIterator[bytearray], headers: Mapping[str, str]
    ) -> tuple[str, int]:
        began = time.monotonic()
        try:
            return await self._uploads.put(
                terms.key, parts, description=headers, condition=terms.condition, seconds=terms.seconds
            )
        except (Unavailable, OutcomeUnknown) as error:
            return await self._outcome(terms, mark, began, error)

    async def _spare(self, terms: Terms, size: int) -> None:
        """Ask before a larger content is sent in vain: the server's refusal of it may be lost on the way."""
        if size < _ASKED_BYTES or "if-none-match" not in terms.condition:
            return
        found = await bounded(self._objects.head(terms.key), terms.seconds, what="asking for it", backend="s3")
        if found is not None:
            raise _unexpected(terms.key)

    async def _outcome(self, terms: Terms, mark: Mark, began: float, error: BackendError) -> tuple[str, int]:
        """ETag and size of what was put, where its answer was lost; or what the server would have said.

        A server may refuse a content before it has read it whole, and the connection breaks on its words.
        """
        try:
            done = await self._landed(terms, mark, began)
        except (Conflict, OutcomeUnknown) as found:
            raise found from error
        except BackendError:
            raise error from None
        if done is None:
            raise error
        return done

    async def _landed(self, terms: Terms, mark: Mark, began: float) -> tuple[str, int] | None:
        """ETag and size of what was put; None where it was not, and what the condition is about is still there.

        Raises `Conflict` where the server would have, and `OutcomeUnknown` where it may have been put and replaced.
        """
        async with deadline(terms.seconds, what="asking for it", backend="s3"):
            try:
                there = await self._requests.send("HEAD", terms.key)
            except NotFound:
                there = None
        if there is None:
            if "if-match" in terms.condition:  # it was there when the put began
                raise _overtaken(terms.key)
            return None
        etag, kept = there.headers.get("etag", "").strip('"'), Mark.of(there.headers)
        if kept is not None and kept.version == mark.version:
            return etag, int(there.headers["content-length"])
        if server_tag(etag) == terms.condition.get("if-match"):
            return None
        if not _is_older(there, time.monotonic() - began):
            raise _overtaken(terms.key)
        if terms.condition:
            raise _unexpected(terms.key)
        return None


def _is_older(there: Answer, seconds: float) -> bool:
    """Whether an object was certainly there so many seconds ago, by the server's clock alone.

    Its headers know only whole seconds. Of an object put in parts, some servers tell when that began.
    """
    if "-" in there.headers.get("etag", "-"):
        return False
    try:
        modified, now = (parsedate_to_datetime(there.headers[name]) for name in ("last-modified", "date"))
        return (now - modified).total_seconds() >= seconds + _APART_SECONDS
    except (KeyError, ValueError, TypeError):
        return False


def _unexpected(key: str) -> Conflict:
    return Conflict(f"what is stored under {key!r} is not what was expected", key=key)


def _overtaken(key: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"the answer to a put was lost, and {key!r} may have been changed since: look whether to put it again",
        backend="s3",
    )
