"""The leak test of Azure Blob Storage, for a container and a SAS token per project in one storage account."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import ClassVar
from urllib.parse import quote

from kmp_core.plugins import extra
from kmp_storage.testing.leaks.suite import Attempt, Attempts, LeakTest, Login

with extra("httpx", install="kmp-storage[buckets]"):
    import httpx

__all__ = ["AzureLeaks"]

_KEY = "leak-test/secret"
_BLOB = {"x-ms-blob-type": "BlockBlob"}
_BLOCKS = b"<BlockList><Uncommitted>AAAA</Uncommitted></BlockList>"
_POLICY = (
    b"<SignedIdentifiers><SignedIdentifier><Id>mine</Id><AccessPolicy><Expiry>2099-01-01T00:00:00Z</Expiry>"
    b"<Permission>rwdl</Permission></AccessPolicy></SignedIdentifier></SignedIdentifiers>"
)


class _Refused(Exception):
    """The server's own answer of a refusal."""


class AzureLeaks(LeakTest):
    """Blobs, blocks, lists, copies, tags and policies. `user` is the account, `password` the token, `place` the
    container."""

    scheme: ClassVar[str] = "http"
    version: ClassVar[str] = "2023-11-03"

    def refused(self, error: Exception) -> bool:
        return isinstance(error, _Refused)

    async def plant(self, victim: Login) -> None:
        await self._send(victim, "PUT", f"{victim.place}/{_KEY}", headers=_BLOB, content=self.secret.encode())

    async def untouched(self, victim: Login) -> bool:
        found = await self._send(victim, "GET", f"{victim.place}/{_KEY}")
        listed = await self._send(victim, "GET", victim.place, "restype=container&comp=list")
        return found == self.secret.encode() and listed.count(b"<Blob>") == 1

    def connect(self, victim: Login, neighbour: Login) -> Attempts:
        path = f"{victim.place}/{_KEY}"
        return {
            "without a token": lambda: self._send(None, "GET", path, at=victim),
            "the container itself": lambda: self._done(neighbour, "GET", victim.place, "restype=container"),
            "the account": lambda: self._done(neighbour, "GET", "", "restype=account&comp=properties"),
        }

    def read(self, victim: Login, neighbour: Login) -> Attempts:
        path = f"{victim.place}/{_KEY}"

        async def copied() -> bytes:
            target = f"{neighbour.place}/{'stolen' if neighbour is not victim else _KEY + '-copy'}"
            await self._send(neighbour, "PUT", target, headers={"x-ms-copy-source": self._url(neighbour, path)})
            got = await self._send(neighbour, "GET", target)
            await self._send(neighbour, "DELETE", target)
            return got

        return {
            "GET": lambda: self._send(neighbour, "GET", path),
            "GET of a part": lambda: self._send(neighbour, "GET", path, headers={"range": "bytes=0-3"}),
            "HEAD": lambda: self._done(neighbour, "HEAD", path),
            "metadata": lambda: self._done(neighbour, "GET", path, "comp=metadata"),
            "copy to its own container": copied,
        }

    def write(self, victim: Login, neighbour: Login) -> Attempts:
        container, path = victim.place, f"{victim.place}/{_KEY}"
        planted, copy = f"{container}/planted", {"x-ms-copy-source": self._url(neighbour, path)}
        return {
            "overwrite": lambda: self._done(neighbour, "PUT", path, headers=_BLOB, content=b"changed"),
            "put": lambda: self._done(neighbour, "PUT", planted, headers=_BLOB, content=b"planted"),
            "put a block": lambda: self._done(neighbour, "PUT", path, "comp=block&blockid=AAAA", content=b"x"),
            "put the blocks": lambda: self._done(neighbour, "PUT", path, "comp=blocklist", content=_BLOCKS),
            "copy within": lambda: self._done(neighbour, "PUT", planted, headers=copy),
            "set metadata": lambda: self._done(neighbour, "PUT", path, "comp=metadata", {"x-ms-meta-a": "b"}),
            "lease": lambda: self._done(
                neighbour, "PUT", path, "comp=lease", {"x-ms-lease-action": "acquire", "x-ms-lease-duration": "-1"}
            ),
            "snapshot": lambda: self._done(neighbour, "PUT", path, "comp=snapshot"),
            "delete": lambda: self._done(neighbour, "DELETE", path),
            "delete the container": lambda: self._done(neighbour, "DELETE", container, "restype=container"),
        }

    def browse(self, victim: Login, neighbour: Login) -> Attempts:
        attempts: dict[str, Attempt] = {
            name: partial(self._done, neighbour, "GET", victim.place, f"restype=container&comp={query}")
            for name, query in {"blobs": "list", "snapshots": "list&include=snapshots", "policy": "acl"}.items()
        }
        attempts["all containers"] = lambda: self._done(neighbour, "GET", "", "comp=list")
        return attempts

    def guess(self, victim: Login, neighbour: Login) -> Attempts:
        own, other = neighbour.place, f"{victim.place}/{_KEY}"
        paths = (f"{own}/../{other}", f"{own}/%2e%2e/{other}", f"{own}//../{other}", f"{own}/x/../../{other}")
        attempts: dict[str, Attempt] = {
            f"GET {path}": partial(self._done, neighbour, "GET", path, encoded=True) for path in paths
        }
        for what, (old, new) in {
            "its token, said to be the account's": ("sr=c", "ss=b&srt=sco"),
            "its token, said to end later": ("&se=", "&se=2099-01-01T00%3A00%3A00Z&was="),
            "its token without a signature": ("&sig=", "&was="),
        }.items():
            token = neighbour.password.replace(old, new)
            changed = Login(victim.host, victim.port, victim.user, token, victim.place)
            attempts[what] = partial(self._done, changed, "GET", other)
        return attempts

    def widen(self, victim: Login, neighbour: Login) -> Attempts:
        public = {"x-ms-blob-public-access": "container"}
        own, other = neighbour.place, victim.place
        acl = "restype=container&comp=acl"
        return {
            "open the victim's container": lambda: self._done(neighbour, "PUT", other, acl, public),
            "a policy on the victim's container": lambda: self._done(neighbour, "PUT", other, acl, content=_POLICY),
            "open its own container": lambda: self._done(neighbour, "PUT", own, acl, public),
            "make a container": lambda: self._done(neighbour, "PUT", f"{own}-more", "restype=container"),
            "the account's settings": lambda: self._done(
                neighbour, "PUT", "", "restype=service&comp=properties", content=b"<StorageServiceProperties/>"
            ),
            "a key to sign with": lambda: self._done(
                neighbour, "POST", "", "restype=service&comp=userdelegationkey", content=b"<KeyInfo/>"
            ),
        }

    def _url(self, login: Login, path: str, query: str = "", *, encoded: bool = False) -> str:
        joined = "&".join(part for part in (query, login.password) if part)
        path = path if encoded else quote(path)
        return f"{self.scheme}://{login.host}:{login.port}/{login.user}/{path}?{joined}"

    async def _done(
        self,
        login: Login,
        method: str,
        path: str,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        *,
        content: bytes = b"",
        encoded: bool = False,
    ) -> bytes:
        found = await self._send(login, method, path, query, headers, content=content, encoded=encoded)
        return found or b"the server did it"

    async def _send(
        self,
        login: Login | None,
        method: str,
        path: str,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        *,
        content: bytes = b"",
        encoded: bool = False,
        at: Login | None = None,
    ) -> bytes:
        """Send a request with this login's token, or with none; a refusal raises `_Refused`."""
        server = at or login
        assert server is not None
        whole = self._url(server, path, query, encoded=encoded)
        # The path as it stands: a client that tidies it up would hide what is tried.
        start = f"{self.scheme}://{server.host}:{server.port}"
        target = whole.removeprefix(start) if login is not None else whole.removeprefix(start).partition("?")[0]
        sent = {"x-ms-version": self.version, **(headers or {})}
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            url = httpx.URL(start).copy_with(raw_path=target.encode())
            answer = await client.request(method, url, headers=sent, content=content)
        if HTTPStatus.BAD_REQUEST <= answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Refused(f"{answer.status_code} {answer.text[:200]}")
        answer.raise_for_status()
        return answer.content
