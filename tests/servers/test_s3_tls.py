"""`s3:` encrypts, and asks no server whose certificate does not hold; both of the bucket's clients keep to it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import s3_bed
import testbed
from certificates import certificate, pem
from kmp_core.errors import Unavailable
from kmp_core.project import Project
from kmp_storage.bucket import S3Bucket, S3Settings
from kmp_storage.bucket.address import Address
from kmp_storage.bucket.requests import Requests
from kmp_storage.bucket.s3_objects import S3Objects
from relay import Relay


@dataclass
class Encrypted:
    project: s3_bed.S3Project
    relay: Relay
    directory: Path

    def url(self, host: str = "localhost") -> str:
        return f"s3://{self.project.key.name}:{self.project.key.secret}@{host}:{self.relay.port}"

    def settings(self, authority: str | None) -> S3Settings:
        return S3Settings.load(tls_ca_file=None if authority is None else self.directory / f"{authority}.pem")


@pytest.fixture
async def encrypted(s3: testbed.Server, tmp_path: Path) -> AsyncIterator[Encrypted]:
    """A project's bucket behind TLS, as `localhost`."""
    authority, authority_key = certificate("our authority")
    leaf, leaf_key = certificate("localhost", authority, authority_key)
    (tmp_path / "ours.pem").write_bytes(pem(authority))
    (tmp_path / "stranger.pem").write_bytes(pem(certificate("another authority")[0]))
    (tmp_path / "leaf.pem").write_bytes(pem(leaf) + pem(leaf_key))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "leaf.pem")
    async with s3_bed.own_project(s3) as project, Relay(s3.port, tls=tls) as relay:
        yield Encrypted(project, relay, tmp_path)


async def test_a_server_that_our_authority_vouches_for_is_used(encrypted: Encrypted) -> None:
    settings = encrypted.settings("ours")
    async with S3Bucket(encrypted.url(), project=encrypted.project.name, settings=settings) as bucket:
        entry = await bucket.put("key", b"content")
        assert await bucket.get("key") == b"content"
        assert [found async for found in bucket.list()] == [entry]
        assert (await bucket.sign("key", expires="1m")).startswith("https://localhost:")
    assert encrypted.relay.opened >= 2, "both clients came this way"


@pytest.mark.parametrize(("host", "authority"), [("localhost", "stranger"), ("localhost", None), ("127.0.0.1", "ours")])
async def test_a_certificate_that_does_not_hold_is_not_asked_anything(
    encrypted: Encrypted, host: str, authority: str | None
) -> None:
    settings, name = encrypted.settings(authority), encrypted.project.name
    with pytest.raises(Unavailable):
        await S3Bucket(encrypted.url(host), project=name, settings=settings).open()
    address = Address.read(encrypted.url(host), settings=settings)
    requests = Requests(address, name, connections=1)
    with pytest.raises(Unavailable):
        await S3Objects(address, name, settings, requests, Project(name)).head("key")
    await requests.close()
    assert encrypted.relay.opened == 0
