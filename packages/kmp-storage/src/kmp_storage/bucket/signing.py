"""Sign a request so that an S3 server knows who asks: AWS Signature Version 4, in headers.

Source of the rules: AWS, "Signature Version 4 signing process" and "Authenticating Requests (Authorization Header)".
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote

__all__ = ["AccessKey", "AccessKeys", "encode_path", "encode_query", "signed"]


@dataclass(frozen=True, slots=True)
class AccessKey:
    """Who asks: the name of a key and its secret, which no `repr` shows."""

    name: str
    secret: str = field(repr=False)


AccessKeys = Callable[[], Awaitable[AccessKey]]
"""Gives the access key as it is now."""


def encode_path(path: str) -> str:
    """A path as it is signed and sent: every byte but unreserved ones and `/` percent-encoded, once."""
    return quote(path, safe="/-_.~")


def encode_query(query: Mapping[str, str]) -> str:
    """A query string in the order in which it is signed."""
    return "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))


def signed(
    method: str,
    *,
    host: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    content_hash: str,
    key: AccessKey,
    region: str,
    now: datetime | None = None,
) -> dict[str, str]:
    """The headers to send: those given, and `Host`, `x-amz-date`, `x-amz-content-sha256` and `Authorization`.

    `path` and `query` are encoded already; `content_hash` is the SHA-256 of the body in hexadecimal.
    """
    moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    sent = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    sent |= {"host": host, "x-amz-date": moment, "x-amz-content-sha256": content_hash}
    names = ";".join(sorted(sent))
    lines = "".join(f"{name}:{sent[name]}\n" for name in sorted(sent))
    request = "\n".join((method, path, query, lines, names, content_hash))
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    text = "\n".join(("AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.encode()).hexdigest()))
    signature = hmac.new(_signing_key(key, moment[:8], region), text.encode(), hashlib.sha256).hexdigest()
    sent["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key.name}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return sent


def _signing_key(key: AccessKey, day: str, region: str) -> bytes:
    value = f"AWS4{key.secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        value = hmac.new(value, part.encode(), hashlib.sha256).digest()
    return value
