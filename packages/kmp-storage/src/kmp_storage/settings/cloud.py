"""How the bucket in a cloud's own object store connects, how long its calls may take, and how large its parts are."""

from __future__ import annotations

from datetime import timedelta

from pydantic import ByteSize, Field, SecretStr

from kmp_core.deadlines import Duration
from kmp_core.settings import ExistingFile, Settings

__all__ = ["CloudSettings"]


class CloudSettings(Settings, prefix="storage.cloud"):
    """Tune the bucket in Azure Blob Storage. Where it is stands in `KMP_STORAGE_BUCKET_URL`."""

    account: str | None = Field(default=None, pattern=r"^[a-z0-9]{3,24}$", examples=["skylinestore"])
    """The name of the storage account; the URL's where None."""

    credential: SecretStr | None = None
    """The storage account's key, or a SAS token for the one container; the URL's where None."""

    credential_secret: str | None = None
    """The name of a secret that holds the key or token; asked for each request, so that it may be rotated."""

    tls_ca_file: ExistingFile = None
    """Certificates of the authorities that may sign the server's; the system's where None."""

    connections: int = Field(default=16, ge=1, le=1000)
    """Requests of one process at a time at most, beside those that streams read and write."""

    timeout: Duration = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """How long a call may take where it names no timeout of its own; for streams, the wait for each chunk."""

    connect_timeout: Duration = Field(default=timedelta(seconds=5), gt=timedelta(0))
    """How long connecting may take, within a call's own time."""

    part_bytes: ByteSize = Field(default=ByteSize(8 << 20), ge=1 << 20, le=1 << 30)
    """Bytes of a stream that go up in one request, with a checksum and a condition; more go up in parts of this size,
    with neither. A running put holds two or three of them."""
