"""Where the S3 server is and whose access key is used, read from a URL and from settings; no secret is shown."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field

from kmp_core.errors import ConfigurationError
from kmp_storage.bucket.server_url import ServerUrl, fault
from kmp_storage.bucket.signing import AccessKey, AccessKeys
from kmp_storage.settings.s3 import S3Settings

__all__ = ["Address"]

_EXAMPLE = "s3://s3.internal:9000 or s3+http://127.0.0.1:9000"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_SCHEMES = ("s3", "s3+http")


@dataclass(frozen=True, slots=True)
class Address:
    """One S3 server, reached with path-style requests, and who asks."""

    endpoint: str
    authority: str
    region: str
    bucket: str | None
    keys: AccessKeys = field(repr=False)
    tls_ca_file: str | None = None

    @classmethod
    def read(cls, url: str, *, settings: S3Settings, keys: AccessKeys | None = None) -> Address:
        """Read `s3://[access-key[:secret]@]host[:port][/bucket]`; `s3+http:` speaks no TLS, for a loopback only.

        Without a host it is Amazon's, in the region of the settings. Raises `ConfigurationError`.
        """
        parts = _split(url)
        bucket = parts.bucket or None
        if bucket is not None and _BUCKET.fullmatch(bucket) is None:
            raise _fault("must end with the host, or with the name of one bucket")
        authority = parts.authority or f"s3.{settings.region}.amazonaws.com"
        return cls(
            endpoint=f"{parts.protocol}://{authority}",
            authority=authority,
            region=settings.region,
            bucket=bucket,
            keys=keys or _constant(_key(parts, settings)),
            tls_ca_file=None if settings.tls_ca_file is None else str(settings.tls_ca_file),
        )

    @property
    def is_tls(self) -> bool:
        return self.endpoint.startswith("https:")

    def tls_context(self) -> ssl.SSLContext | bool:
        """What verifies the server's certificate."""
        return ssl.create_default_context(cafile=self.tls_ca_file) if self.is_tls else True


def access_key_name(url: str, settings: S3Settings) -> str:
    """Who asks, where the secret comes from elsewhere."""
    name = settings.access_key or _split(url).user
    if not name:
        raise _fault("names no access key; set KMP_STORAGE_S3_ACCESS_KEY")
    return name


def _split(url: str) -> ServerUrl:
    return ServerUrl.read(url, schemes=_SCHEMES, prefix="KMP_STORAGE_S3", example=_EXAMPLE)


def _key(parts: ServerUrl, settings: S3Settings) -> AccessKey:
    name = settings.access_key or parts.user
    secret = parts.secret if settings.secret_key is None else settings.secret_key.get_secret_value()
    if not name or not secret:
        raise _fault("names no access key and secret; set KMP_STORAGE_S3_ACCESS_KEY and KMP_STORAGE_S3_SECRET_KEY")
    return AccessKey(name, secret)


def _constant(key: AccessKey) -> AccessKeys:
    async def keys() -> AccessKey:
        return key

    return keys


def _fault(problem: str) -> ConfigurationError:
    return fault(problem, _EXAMPLE)
