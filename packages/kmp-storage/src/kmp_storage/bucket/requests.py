"""The requests of S3 that obstore has no call for, each signed, bounded and with a typed error.

obstore 0.12 leaves the parts of a cancelled upload at the server, makes no upload in parts conditional, lists by whole
path segments, copies without a new description, does not show the checksums that the server keeps, and reports a
refused list, key or large content by one class for everything. No package that signs fits better than `signing`:
botocore is 34 MB for it, httpx-aws-auth leaves out the headers that S3 wants signed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any
from xml.etree import ElementTree

from kmp_core.errors import (
    BackendError,
    Conflict,
    InvalidInput,
    KmpError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from kmp_core.plugins import extra
from kmp_storage.bucket.address import Address
from kmp_storage.bucket.running import Running
from kmp_storage.bucket.signing import encode_path, encode_query, signed

with extra("httpx", install="kmp-storage[buckets]"):
    import httpx

    from kmp_core.http.errors import table_for

__all__ = ["Answer", "Requests", "texts"]

Answer = httpx.Response

_BACKEND = "s3"
_SLICE_BYTES = 256 << 10
_UNKNOWN_CALLER = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
# What servers that keep objects as files cannot hold, which Amazon's can (versitygw's own codes).
_UNSTORABLE = {
    "KeyTooLongError": "is longer, or has a longer segment, than this server can hold",
    "ObjectParentIsFile": "lies below another object, which this server cannot hold",
    "ExistingObjectIsDirectory": "has other objects below it, beside which this server cannot hold it",
}
_MISSED = frozenset({HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT})


class Requests:
    """Signed requests about one bucket, or with `bucket=""` about the server."""

    def __init__(self, address: Address, bucket: str, *, connections: int) -> None:
        self._address = address
        self._bucket = bucket
        self.running = Running()
        # First come, first served: httpx's own pool lets some wait for ever longer, and all the longer the more wait.
        self._turns = asyncio.Semaphore(connections)
        # The caller's deadline bounds everything; httpx keeps no time of its own.
        self._client = httpx.AsyncClient(
            timeout=None,  # noqa: S113
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            verify=address.tls_context(),
            trust_env=False,
        )

    async def close(self) -> None:
        """End what is under way; a connection that is still being made would outlive its pool."""
        await self.running.close()
        await self._client.aclose()

    def path(self, key: str) -> str:
        """Where an object is, encoded for a request."""
        return encode_path("/" + "/".join(part for part in (self._bucket, key) if part))

    async def send(
        self,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | bytearray = b"",
        content_hash: str | None = None,
    ) -> Answer:
        """Send one request and return the answer, or raise what it stands for."""
        path, text = self.path(key), encode_query(query or {})
        sent = signed(
            method,
            host=self._address.authority,
            path=path,
            query=text,
            headers=headers or {},
            content_hash=content_hash or hashlib.sha256(content).hexdigest(),
            key=await self._address.keys(),
            region=self._address.region,
        )
        url = f"{self._address.endpoint}{path}" + (f"?{text}" if text else "")
        with table_for(method, _BACKEND).translating():
            if len(content) > _SLICE_BYTES:
                # Whole, it would be copied by every layer below.
                sent["content-length"] = str(len(content))
                answer = await self._run(method, url, headers=sent, content=_slices(content))
            else:
                answer = await self._run(method, url, headers=sent, content=bytes(content))
        error = _error(answer, key, self._bucket)
        if error is not None:
            raise error
        return answer

    async def _run(self, method: str, url: str, **request: Any) -> Answer:
        async def in_turn() -> Answer:
            async with self._turns:
                return await self._client.request(method, url, **request)

        return await self.running.until_closed(in_turn)


async def _slices(content: bytes | bytearray) -> AsyncIterator[bytes]:
    view = memoryview(content)
    for start in range(0, len(view), _SLICE_BYTES):
        yield bytes(view[start : start + _SLICE_BYTES])


def texts(answer: Answer, name: str) -> list[str]:
    """The texts of all elements of this name in an answer, whatever their namespace."""
    try:
        root = ElementTree.fromstring(answer.content)  # noqa: S314 - expat refuses to expand entities without end
    except ElementTree.ParseError as error:
        raise BackendError("the S3 server gave an answer that cannot be read", backend=_BACKEND) from error
    return [element.text or "" for element in root.iter() if element.tag.rpartition("}")[2] == name]


def _error(answer: Answer, key: str, bucket: str) -> KmpError | None:
    # A completed upload or copy may fail after its status was sent: then the body is an error.
    if not answer.is_error and b"<Error>" not in answer.content[:300]:
        return None
    code = next(iter(texts(answer, "Code")), "") if answer.content else ""
    status = answer.status_code
    return _about_key(status, code, key) or _about_access(status, code, bucket) or _about_server(status, code, key)


def _about_key(status: int, code: str, key: str) -> KmpError | None:
    if code in _UNSTORABLE:
        return InvalidInput("key", _UNSTORABLE[code], example='"reports/2013/january.html"', key=key)
    if key and code != "NoSuchBucket" and (status == HTTPStatus.NOT_FOUND or code == "NoSuchUpload"):
        return NotFound(f"nothing is stored under {key!r}", key=key)
    if key and status in _MISSED:
        return Conflict(f"what is stored under {key!r} is not what was expected", key=key)
    return None


def _about_access(status: int, code: str, bucket: str) -> KmpError | None:
    if status == HTTPStatus.UNAUTHORIZED or code in _UNKNOWN_CALLER:
        return Unauthenticated("invalid", message="the S3 server refused the access key or its secret")
    if status == HTTPStatus.FORBIDDEN:
        return PermissionDenied(f"the S3 server refused access to the bucket {bucket!r}")
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(f"there is no bucket {bucket!r}: provision it, or name another in the URL")
    return Conflict(f"the bucket {bucket!r} stands in the way ({code})") if status in _MISSED else None


def _about_server(status: int, code: str, key: str) -> KmpError:
    if status == HTTPStatus.NOT_IMPLEMENTED:
        return Unsupported(code or "this request", provider="the S3 server")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.OK):
        return Unavailable(f"the S3 server failed with {status} {code}", backend=_BACKEND, outcome_unknown=True)
    return BackendError(f"the S3 server refused the request with {status} {code}", backend=_BACKEND, key=key)
