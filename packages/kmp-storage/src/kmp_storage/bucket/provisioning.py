"""Make a project's bucket and access key, and remove them: an administrator's work, never a service's.

S3 itself has no request that makes a user. This speaks the administration interface of versitygw; on another server,
make the access key with its own tools and let it reach the one bucket that `backend_name(project, "bucket")` names.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from types import TracebackType
from typing import Self
from xml.sax.saxutils import escape

from kmp_core.deadlines import Timeout, deadline
from kmp_core.errors import Conflict, InvalidInput, NotFound
from kmp_core.project import Project, backend_name
from kmp_storage.bucket.address import Address
from kmp_storage.bucket.requests import Requests, texts
from kmp_storage.bucket.signing import AccessKey
from kmp_storage.settings.s3 import S3Settings

__all__ = ["VersityProvisioner"]

_SHORTEST_SECRET = 16


class VersityProvisioner:
    """Give each project its own bucket, and an access key with which the server lets it reach nothing else.

    `url` holds the administrator's access key. Every call may be repeated, and repairs what an earlier one left half
    done.
    """

    def __init__(self, url: str, *, settings: S3Settings | None = None) -> None:
        self._settings = S3Settings.load() if settings is None else settings
        self._address = Address.read(url, settings=self._settings)
        self._server = Requests(self._address, "", connections=2)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._server.close()

    async def provision(self, project: str, *, secret: str | None = None, timeout: Timeout = "30s") -> AccessKey:
        """Make the bucket and the access key; the same again changes nothing.

        Without `secret` a new one is made, and replaces that of an access key that is there already: keep what is
        returned, the server does not tell it again. Raises `Conflict` where the bucket is somebody else's.
        """
        name = backend_name(Project(project), "bucket")
        if secret is not None and len(secret) < _SHORTEST_SECRET:
            raise InvalidInput("secret", f"must have at least {_SHORTEST_SECRET} characters", project=project)
        key = AccessKey(name, secret or secrets.token_urlsafe(32))
        async with deadline(timeout, what=f"provisioning {project}", backend="s3"):
            bucket = Requests(self._address, name, connections=1)
            try:
                await self._refuse_anothers(bucket, name)
                await self._make_user(key)
                with suppress(Conflict):  # it is there
                    await bucket.send("PUT")
            finally:
                await bucket.close()
            await self._server.send("PATCH", "change-bucket-owner", query={"bucket": name, "owner": name})
        return key

    async def deprovision(self, project: str, *, force: bool = False, timeout: Timeout = "10m") -> None:
        """Remove the bucket and the access key. Raises `Conflict` where there are objects, unless forced.

        Forced, the access key goes first, so that nobody puts what is then lost unseen.
        """
        name = backend_name(Project(project), "bucket")
        bucket = Requests(self._address, name, connections=1)
        try:
            async with deadline(timeout, what=f"deprovisioning {project}", backend="s3"):
                if force:
                    await self._remove_user(name)
                    with suppress(NotFound):
                        await _empty(bucket)
                with suppress(NotFound):
                    await bucket.send("DELETE")
                await self._remove_user(name)
        finally:
            await bucket.close()

    async def _refuse_anothers(self, bucket: Requests, name: str) -> None:
        """A bucket that an earlier call left half done is empty, and the administrator's."""
        listed = await self._server.send("PATCH", "list-buckets")
        owner = dict(zip(texts(listed, "Name"), texts(listed, "Owner"), strict=True)).get(name, name)
        if owner == name:
            return
        keys = texts(await bucket.send("GET", query={"list-type": "2", "max-keys": "1"}), "Key")
        if keys or owner != (await self._address.keys()).name:
            raise Conflict(f"the bucket {name!r} is there already and belongs to {owner!r}, not to a project", key=name)

    async def _make_user(self, key: AccessKey) -> None:
        secret = f"<Secret>{escape(key.secret)}</Secret>"
        account = f"<Account><Access>{key.name}</Access>{secret}<Role>user</Role></Account>"
        try:
            await self._server.send("PATCH", "create-user", content=account.encode())
        except Conflict:
            changed = f"<MutableProps>{secret}<Role>user</Role></MutableProps>".encode()
            await self._server.send("PATCH", "update-user", query={"access": key.name}, content=changed)

    async def _remove_user(self, name: str) -> None:
        with suppress(NotFound):
            await self._server.send("PATCH", "delete-user", query={"access": name})


async def _empty(bucket: Requests) -> None:
    """Remove all objects and all uploads that were begun."""
    while True:
        listed = await bucket.send("GET", query={"uploads": ""})
        uploads = [*zip(texts(listed, "Key"), texts(listed, "UploadId"), strict=True)]
        keys = texts(await bucket.send("GET", query={"list-type": "2"}), "Key")
        if not uploads and not keys:
            return
        for key, upload in uploads:
            with suppress(NotFound):
                await bucket.send("DELETE", key, query={"uploadId": upload})
        for key in keys:
            await bucket.send("DELETE", key)
