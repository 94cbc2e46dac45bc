"""Help for tests on Azure's emulator: an account's containers, and tokens that reach one of them alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import httpx

import testbed
from kmp_storage.bucket.cloud import CloudBucket, CloudSettings
from kmp_storage.bucket.cloud_signing import blob_token

ACCOUNT = "kmptests"
VERSION = "2023-11-03"
SMALL_PARTS = CloudSettings.load(part_bytes=1 << 20)


def key(server: testbed.Server) -> str:
    """The account's key: the server's password, which is Base64 as it stands."""
    return server.password


def account_token(server: testbed.Server) -> str:
    """What lets its bearer do everything in the account (Azure, "Create an account SAS")."""
    rights = "rwdlacup"
    end = (datetime.now(UTC) + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = "\n".join((ACCOUNT, rights, "b", "sco", "", end, "", "", VERSION, "", ""))
    return urlencode(
        {"sv": VERSION, "ss": "b", "srt": "sco", "sp": rights, "se": end, "sig": _signature(key(server), text)}
    )


def container_token(server: testbed.Server, container: str, rights: str = "rwdlac") -> str:
    """What lets its bearer use one container."""
    return blob_token(key(server), ACCOUNT, container, rights=rights, span=timedelta(hours=6), resource="c")


def url(server: testbed.Server, credential: str, *, port: int | None = None, container: str = "") -> str:
    return f"az+http://{ACCOUNT}:{quote(credential, safe='')}@127.0.0.1:{port or server.port}/{container}"


async def send(server: testbed.Server, method: str, path: str, token: str, **options: Any) -> httpx.Response:
    """A request with a token, beside the bucket under test."""
    joint = "&" if "?" in path else "?"
    async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
        return await client.request(method, f"http://{server.address}/{ACCOUNT}/{path}{joint}{token}", **options)


async def make_container(server: testbed.Server, name: str) -> None:
    answer = await send(server, "PUT", f"{name}?restype=container", account_token(server))
    assert answer.status_code in (201, 409), answer.text


async def remove_container(server: testbed.Server, name: str) -> None:
    answer = await send(server, "DELETE", f"{name}?restype=container", account_token(server))
    assert answer.status_code in (202, 404), answer.text


async def containers(server: testbed.Server) -> list[str]:
    """The names of all that the account has."""
    answer = await send(server, "GET", "?comp=list", account_token(server))
    answer.raise_for_status()
    return re.findall(r"<Name>(.*?)</Name>", answer.text)


async def as_it_was(server: testbed.Server, *names: str) -> None:
    """After a kill: Azurite writes its index every few seconds, so it lost what was new and has what was removed."""
    for name in await containers(server):
        if name not in names:
            await remove_container(server, name)
    for name in names:
        await make_container(server, name)


@dataclass
class CloudProject:
    """A project with a container of its own, and a token for it."""

    name: str
    server: testbed.Server
    token: str

    def url(self, port: int | None = None) -> str:
        return url(self.server, self.token, port=port)

    def bucket(self, *, port: int | None = None, settings: CloudSettings = SMALL_PARTS, **options: Any) -> CloudBucket:
        return CloudBucket(self.url(port), project=self.name, settings=settings, **options)

    async def send(self, method: str, key: str, query: str = "", **options: Any) -> httpx.Response:
        path = f"{self.name}/{quote(key)}" + (f"?{query}" if query else "")
        answer = await send(self.server, method, path, self.token, **options)
        answer.raise_for_status()
        return answer


@asynccontextmanager
async def own_project(server: testbed.Server) -> AsyncIterator[CloudProject]:
    """A project that is removed after, with whatever is in it."""
    name = f"t{secrets.token_hex(6)}"
    await make_container(server, name)
    try:
        yield CloudProject(name, server, container_token(server, name))
    finally:
        await remove_container(server, name)


def _signature(account_key: str, text: str) -> str:
    return base64.b64encode(hmac.new(base64.b64decode(account_key), text.encode(), hashlib.sha256).digest()).decode()
