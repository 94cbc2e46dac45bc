"""The leak test of S3 servers, for a bucket and an access key per project."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from http import HTTPStatus
from typing import ClassVar

from kmp_core.plugins import extra
from kmp_storage.bucket.signing import AccessKey, encode_path, encode_query, signed
from kmp_storage.testing.leaks.suite import Attempt, Attempts, LeakTest, Login

with extra("httpx", install="kmp-storage[buckets]"):
    import httpx

__all__ = ["S3Leaks"]

_KEY = "leak-test/secret"


class _Refused(Exception):
    """The server's own answer of a refusal."""


class S3Leaks(LeakTest):
    """Objects, uploads, lists, copies, policies and access lists. `user` is the access key, `place` the bucket."""

    region: ClassVar[str] = "us-east-1"
    scheme: ClassVar[str] = "http"

    def refused(self, error: Exception) -> bool:
        return isinstance(error, _Refused)

    async def plant(self, victim: Login) -> None:
        await self._send(victim, "PUT", f"/{victim.place}/{_KEY}", content=self.secret.encode())

    async def untouched(self, victim: Login) -> bool:
        found = await self._send(victim, "GET", f"/{victim.place}/{_KEY}")
        listed = await self._send(victim, "GET", f"/{victim.place}", query={"list-type": "2"})
        return found == self.secret.encode() and listed.count(b"<Key>") == 1

    def connect(self, victim: Login, neighbour: Login) -> Attempts:
        path = f"/{victim.place}/{_KEY}"
        unknown = Login(victim.host, victim.port, "nobody-at-all", neighbour.password, victim.place)
        return {
            "without an access key": lambda: self._send(None, "GET", path, at=victim),
            "with an access key that nobody has": lambda: self._send(unknown, "GET", path),
            "the bucket itself": lambda: self._done(neighbour, "HEAD", f"/{victim.place}"),
        }

    def read(self, victim: Login, neighbour: Login) -> Attempts:
        path = f"/{victim.place}/{_KEY}"

        async def copied(source: str) -> bytes:
            target = f"/{neighbour.place}/{'stolen' if neighbour is not victim else _KEY + '-copy'}"
            await self._send(neighbour, "PUT", target, headers={"x-amz-copy-source": source})
            got = await self._send(neighbour, "GET", target)
            await self._send(neighbour, "DELETE", target)
            return got

        return {
            "GET": lambda: self._send(neighbour, "GET", path),
            "GET of a part": lambda: self._send(neighbour, "GET", path, headers={"range": "bytes=0-3"}),
            "HEAD": lambda: self._done(neighbour, "HEAD", path),
            "copy to its own bucket": lambda: copied(path),
        }

    def write(self, victim: Login, neighbour: Login) -> Attempts:
        bucket, path = f"/{victim.place}", f"/{victim.place}/{_KEY}"
        return {
            "overwrite": lambda: self._done(neighbour, "PUT", path, content=b"changed"),
            "put": lambda: self._done(neighbour, "PUT", f"{bucket}/planted", content=b"planted"),
            "begin an upload": lambda: self._done(neighbour, "POST", f"{bucket}/planted", query={"uploads": ""}),
            "copy within": lambda: self._done(
                neighbour, "PUT", f"{bucket}/planted", headers={"x-amz-copy-source": path}
            ),
            "tag": lambda: self._done(neighbour, "PUT", path, query={"tagging": ""}, content=_TAGS),
            "delete": lambda: self._done(neighbour, "DELETE", path),
            "delete many": lambda: self._done(neighbour, "POST", bucket, query={"delete": ""}, content=_DELETE),
            "delete the bucket": lambda: self._done(neighbour, "DELETE", bucket),
        }

    def browse(self, victim: Login, neighbour: Login) -> Attempts:
        bucket = f"/{victim.place}"

        async def all_buckets() -> bool:
            found = await self._send(neighbour, "GET", "/")
            return f"<Name>{victim.place}</Name>".encode() in found

        attempts: dict[str, Attempt] = {"its bucket among all": all_buckets}
        for name, query in {
            "objects": {"list-type": "2"},
            "objects, as of old": {"prefix": ""},
            "versions": {"versions": ""},
            "uploads": {"uploads": ""},
            "policy": {"policy": ""},
            "access list": {"acl": ""},
            "owner": {"ownershipControls": ""},
        }.items():
            attempts[name] = partial(self._done, neighbour, "GET", bucket, query)
        return attempts

    def guess(self, victim: Login, neighbour: Login) -> Attempts:
        own, other = f"/{neighbour.place}", f"{victim.place}/{_KEY}"
        paths = (
            f"{own}/../{other}",
            f"{own}/./../{other}",
            f"//{other}",
            f"{own}//../{other}",
            f"{own}/x/../../{other}",
        )
        attempts: dict[str, Attempt] = {}
        for path in paths:
            attempts[f"GET {path}"] = partial(self._done, neighbour, "GET", path)
            attempts[f"copy from {path}"] = partial(
                self._done, neighbour, "PUT", f"{own}/stolen", None, {"x-amz-copy-source": path}
            )
        for what, secret in {"the neighbour's secret": neighbour.password, "its name as secret": victim.user}.items():
            guessed = Login(victim.host, victim.port, victim.user, secret, victim.place)
            attempts[f"the victim's access key with {what}"] = partial(self._done, guessed, "GET", f"/{other}")
        return attempts

    def widen(self, victim: Login, neighbour: Login) -> Attempts:
        bucket = f"/{victim.place}"
        resources = [f"arn:aws:s3:::{victim.place}", f"arn:aws:s3:::{victim.place}/*"]
        allow = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": resources}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        public = {"x-amz-acl": "public-read-write"}
        return {
            "set the policy": lambda: self._done(
                neighbour, "PUT", bucket, query={"policy": ""}, content=policy.encode()
            ),
            "set the access list": lambda: self._done(neighbour, "PUT", bucket, query={"acl": ""}, headers=public),
            "make the bucket again": lambda: self._done(neighbour, "PUT", bucket),
            **{
                what: partial(self._done, neighbour, "PATCH", path, query, content=content)
                for what, path, query, content in _administration(victim)
            },
        }

    async def _done(
        self,
        login: Login,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        content: bytes = b"",
    ) -> bytes:
        return await self._send(login, method, path, query, headers, content=content) or b"the server did it"

    async def _send(
        self,
        login: Login | None,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        content: bytes = b"",
        at: Login | None = None,
    ) -> bytes:
        """Send a request as this login, or as nobody; a refusal raises `_Refused`."""
        server = at or login
        assert server is not None
        host, path, text = f"{server.host}:{server.port}", encode_path(path), encode_query(query or {})
        sent = dict(headers or {})
        if login is not None:
            sent = signed(
                method,
                host=host,
                path=path,
                query=text,
                headers=sent,
                content_hash=hashlib.sha256(content).hexdigest(),
                key=AccessKey(login.user, login.password),
                region=self.region,
            )
        # The path as it stands: a client that tidies it up would hide what is tried.
        target = f"{path}?{text}" if text else path
        url = httpx.URL(f"{self.scheme}://{host}").copy_with(raw_path=target.encode())
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            answer = await client.request(method, url, headers=sent, content=content)
        if HTTPStatus.BAD_REQUEST <= answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Refused(f"{answer.status_code} {answer.text[:200]}")
        if answer.status_code == HTTPStatus.NOT_IMPLEMENTED:
            raise _Refused("the server has no such request")
        answer.raise_for_status()
        return answer.content


_TAGS = b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
_DELETE = f"<Delete><Object><Key>{_KEY}</Key></Object></Delete>".encode()


def _administration(victim: Login) -> Iterable[tuple[str, str, dict[str, str], bytes]]:
    """What versitygw's administration takes; other servers refuse it for want of such a request."""
    user = b"<Account><Access>mine</Access><Secret>mine-mine-mine</Secret><Role>admin</Role></Account>"
    secret = b"<MutableProps><Secret>mine-mine-mine-mine</Secret></MutableProps>"
    mine = {"bucket": victim.place, "owner": "mine"}
    return (
        ("make a user", "/create-user", {}, user),
        ("set the victim's secret", "/update-user", {"access": victim.user}, secret),
        ("remove the victim", "/delete-user", {"access": victim.user}, b""),
        ("list the users", "/list-users", {}, b""),
        ("take the bucket", "/change-bucket-owner", mine, b""),
    )
