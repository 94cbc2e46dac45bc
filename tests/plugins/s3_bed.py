"""Help for tests on the real S3 server: a project of a test's own, and requests beside the bucket under test."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import testbed
from kmp_storage.bucket import S3Bucket, S3Settings
from kmp_storage.bucket.address import Address
from kmp_storage.bucket.provisioning import VersityProvisioner
from kmp_storage.bucket.requests import Requests, texts
from kmp_storage.bucket.signing import AccessKey

SMALL_PARTS = S3Settings.load(part_bytes=5 << 20)
"""The smallest parts that S3 takes, so that few bytes make several."""


def admin_url(server: testbed.Server) -> str:
    return f"s3+http://admin:{server.password}@{server.address}"


@dataclass
class S3Project:
    """A project with a bucket and an access key of its own."""

    name: str
    server: testbed.Server
    key: AccessKey
    requests: Requests

    def url(self, port: int | None = None) -> str:
        return f"s3+http://{self.key.name}:{self.key.secret}@127.0.0.1:{port or self.server.port}"

    def bucket(self, *, port: int | None = None, settings: S3Settings = SMALL_PARTS, **options: Any) -> S3Bucket:
        return S3Bucket(self.url(port), project=self.name, settings=settings, **options)

    async def uploads(self) -> list[str]:
        """The keys of uploads that were begun and neither completed nor aborted."""
        return texts(await self.requests.send("GET", query={"uploads": ""}), "Key")

    async def bucket_is_empty(self) -> bool:
        return not texts(await self.requests.send("GET", query={"list-type": "2"}), "Key")

    def damage(self, key: str, at: int) -> None:
        """Change one byte of an object behind the server's back."""
        self._at_the_disk(f"printf '\\377' | dd of={self._path(key)} bs=1 seek={at} conv=notrunc")

    def age(self, key: str) -> None:
        """Have the server say that the object was put an hour ago."""
        self._at_the_disk(f"touch -d '1 hour ago' {self._path(key)}")

    def _path(self, key: str) -> str:
        return f"/data/buckets/{self.name}/{key}"

    def _at_the_disk(self, command: str) -> None:
        code, output = self.server.container.get_wrapped_container().exec_run(["sh", "-c", command])
        assert code == 0, output


@asynccontextmanager
async def own_project(server: testbed.Server) -> AsyncIterator[S3Project]:
    """A project that is removed after, with whatever is in it."""
    name = f"t{secrets.token_hex(6)}"
    async with VersityProvisioner(admin_url(server)) as provisioner:
        key = await provisioner.provision(name)
        requests = Requests(Address.read(admin_url(server), settings=S3Settings.load()), name, connections=2)
        try:
            yield S3Project(name, server, key, requests)
        finally:
            await requests.close()
            await provisioner.deprovision(name, force=True)
