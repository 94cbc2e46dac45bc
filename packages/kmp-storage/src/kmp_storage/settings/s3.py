"""How the S3 bucket connects, how long its calls may take, and how large its parts are."""

from __future__ import annotations

from datetime import timedelta

from pydantic import ByteSize, Field, SecretStr

from kmp_core.deadlines import Duration
from kmp_core.settings import ExistingFile, Settings

__all__ = ["S3Settings"]


class S3Settings(Settings, prefix="storage.s3"):
    """Tune the S3 bucket. Where the server is stands in `KMP_STORAGE_BUCKET_URL`."""

    access_key: str | None = None
    """The name of the access key; the URL's where None."""

    secret_key: SecretStr | None = None
    """The access key's secret; the URL's where None."""

    secret_key_secret: str | None = None
    """The name of a secret that holds the access key's secret; asked for each request, so that it may be rotated."""

    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]{1,63}$")
    """The region that requests are signed for."""

    tls_ca_file: ExistingFile = None
    """Certificates of the authorities that may sign the server's; the system's where None."""

    connections: int = Field(default=16, ge=1, le=1000)
    """Requests of one process at a time at most: of puts, copies and lists, and again of all others but streams.

    They are two clients, each with its own connections, so a process may have twice as many open, beside streams."""

    timeout: Duration = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """How long a call may take where it names no timeout of its own; for streams, the wait for each chunk."""

    connect_timeout: Duration = Field(default=timedelta(seconds=5), gt=timedelta(0))
    """How long connecting may take, within a call's own time."""

    part_bytes: ByteSize = Field(default=ByteSize(8 << 20), ge=5 << 20, le=1 << 30)
    """Bytes of one part of a large object. A running put holds two or three of them; an object has at most 10,000."""

    abandoned_after: Duration = Field(default=timedelta(days=2), ge=timedelta(minutes=1))
    """Age at which an upload in parts that nobody finished is removed by the next process that opens the bucket."""
