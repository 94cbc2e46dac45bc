"""The objects of an S3 bucket: the checksums of parts, which the server keeps, and the connection."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kmp_core.plugins import extra
from kmp_core.project import Project
from kmp_storage.bucket.address import Address
from kmp_storage.bucket.objects import NO_RETRIES, Checker, Objects, client_options
from kmp_storage.bucket.requests import Requests
from kmp_storage.settings.s3 import S3Settings

with extra("obstore", install="kmp-storage[buckets]"):
    import obstore
    from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import S3Credential

__all__ = ["S3Objects"]


class S3Objects(Objects):
    """obstore's half of an S3 bucket, beside its requests."""

    def __init__(
        self, address: Address, bucket: str, settings: S3Settings, requests: Requests, project: Project
    ) -> None:
        super().__init__(
            _store(address, bucket, settings),
            server="the S3 server",
            backend="s3",
            connections=settings.connections,
            project=project,
            running=requests.running,
        )
        self._requests = requests

    async def _checker_of_parts(self, key: str, result: obstore.GetResult, part_bytes: int) -> Checker:
        # The server keeps the checksum of the parts' checksums, and tells it to those who ask.
        answer = await self._requests.send("HEAD", key, headers={"x-amz-checksum-mode": "ENABLED"})
        if answer.headers.get("etag") != result.meta["e_tag"]:
            return Checker(None, None)  # replaced since: what is read here is the version before
        text, composite, _ = answer.headers.get("x-amz-checksum-sha256", "").partition("-")
        return Checker(base64.b64decode(text) or None, part_bytes if composite else None)


def _store(address: Address, bucket: str, settings: S3Settings) -> S3Store:
    async def credentials() -> S3Credential:
        # Over as soon as it is told, so that each request asks anew, and a rotated secret is used at once.
        now = datetime.now(UTC)
        key = await address.keys()
        return {"access_key_id": key.name, "secret_access_key": key.secret, "token": None, "expires_at": now}

    return S3Store(
        bucket,
        endpoint=address.endpoint,
        region=address.region,
        virtual_hosted_style_request=False,
        # What the environment could say otherwise.
        aws_endpoint_url_s3=address.endpoint,
        skip_signature=False,
        s3_express=False,
        unsigned_payload=False,
        request_payer=False,
        disable_bulk_delete=True,  # whose refusals have no type
        credential_provider=credentials,
        client_options=client_options(
            tls=address.is_tls, tls_ca_file=address.tls_ca_file, connect_timeout=settings.connect_timeout
        ),
        retry_config=NO_RETRIES,
    )
