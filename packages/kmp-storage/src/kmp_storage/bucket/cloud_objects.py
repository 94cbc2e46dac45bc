"""The blobs of one container of Azure Blob Storage, as obstore reads and writes them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import quote

from kmp_core.deadlines import bounded, deadline
from kmp_core.errors import Conflict, NotFound, Unavailable
from kmp_core.plugins import extra
from kmp_core.project import Project
from kmp_storage.bucket.cloud_address import CloudAddress, is_token
from kmp_storage.bucket.cloud_signing import blob_token
from kmp_storage.bucket.objects import NO_RETRIES, Objects, client_options
from kmp_storage.bucket.running import Running
from kmp_storage.settings.cloud import CloudSettings

with extra("obstore", install="kmp-storage[buckets]"):
    import obstore
    from obstore.store import AzureStore

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode
    from obstore.store import AzureConfig

    Listing = AsyncIterator[Sequence[ObjectMeta]]

__all__ = ["BACKEND", "CloudObjects"]

T = TypeVar("T")

BACKEND = "azure"

_PAGE = 1000
_ABORT_SECONDS = 1.0
_UNNAMEABLE = re.compile(r"-|^[0-9]|_(?=x)")
_STAND_IN = re.compile(r"_x([0-9a-f]{4})_")


class CloudObjects(Objects):
    """What obstore does with a container, beyond what it does with any bucket."""

    def __init__(
        self, address: CloudAddress, credential: str, settings: CloudSettings, running: Running, project: Project
    ) -> None:
        self._address = address
        self._credential = credential
        self._settings = settings
        super().__init__(
            self._connect(),
            server="Azure Blob Storage",
            backend=BACKEND,
            connections=settings.connections,
            project=project,
            running=running,
        )

    async def send(self, work: Callable[[], Awaitable[T]]) -> T:
        # A store is made for one credential. obstore asks one that could tell another behind a lock, and a list that
        # was given up on its way there keeps that lock from everybody.
        credential = await self._address.credentials()
        if credential != self._credential:
            self._credential = credential
            self.store = self._connect()
        return await super().send(work)

    async def sign(self, key: str, method: Literal["GET", "PUT"], span: timedelta, seconds: float | None) -> str:
        # obstore signs the key as it is encoded in the URL, which Azure refuses.
        async with deadline(seconds, what=f"signing {key!r}", backend=BACKEND):
            credential = await self._address.credentials()
        address, rights = self._address, {"GET": "r", "PUT": "cw"}[method]
        token = blob_token(credential, address.account, f"{address.container}/{key}", rights=rights, span=span)
        return f"{address.endpoint}/{address.container}/{quote(key, safe='/-_.~')}?{token}"

    def named(self, stored: str) -> str:
        return _STAND_IN.sub(lambda found: chr(int(found[1], 16)), stored)

    async def put(self, key: str, content: bytes | bytearray, attributes: Mapping[str, str], mode: PutMode) -> str:
        """Put it in one request; the tag that the server gave it. Raises `Conflict`."""
        try:
            result = await self._change(
                lambda: obstore.put_async(
                    self.store, key, content, attributes=_stored(attributes), mode=mode, use_multipart=False
                )
            )
        except (Conflict, NotFound) as error:
            if isinstance(error, NotFound) and mode in ("create", "overwrite"):
                raise
            raise Conflict(f"what is stored under {key!r} is not what was expected", key=key) from error
        return result["e_tag"] or ""

    async def put_parts(
        self,
        key: str,
        parts: AsyncIterator[bytearray],
        attributes: Mapping[str, str],
        *,
        part_bytes: int,
        seconds: float | None,
    ) -> int:
        """Put a stream in parts of this size, and return how many bytes they were; nothing where it fails."""
        writer = obstore.open_writer_async(
            self.store, key, attributes=_stored(attributes), buffer_size=part_bytes, max_concurrency=1
        )
        total = 0
        try:
            async for part in parts:
                total += len(part)
                sent = self.send(lambda part=part: writer.write(part))  # type: ignore[misc]
                await bounded(sent, seconds, what=f"putting {key!r}", backend=BACKEND)
            await bounded(self.send(writer.close), seconds, what=f"completing {key!r}", backend=BACKEND)
        except BaseException as error:
            # Azure forgets the parts by itself, after a week; what is still being sent ends now.
            with suppress(Exception):
                await bounded(writer.__aexit__(type(error), error, None), _ABORT_SECONDS, what="aborting")
            if isinstance(error, Unavailable):
                error.outcome_unknown = True
            raise
        return total

    async def delete(self, key: str) -> None:
        await self._change(lambda: obstore.delete_async(self.store, key))

    async def copy(self, source: str, target: str) -> None:
        try:
            await self._change(lambda: obstore.copy_async(self.store, source, target))
        except NotFound as error:
            raise NotFound(f"nothing is stored under {source!r}", project=self.project, key=source) from error

    async def _change(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self.in_turn(work)
        except Unavailable as error:
            error.outcome_unknown = True  # obstore does not tell whether it was sent
            raise

    def listing(self, prefix: str) -> Listing:
        """The pages of the folder that the prefix is in: obstore lists whole folders, in another order than ours."""
        return aiter(obstore.list(self.store, prefix.rpartition("/")[0] or None, chunk_size=_PAGE))

    async def page(self, listing: Listing) -> list[str] | None:
        """The keys of the next page. After an error there is none: a listing that broke has to begin anew."""
        found = await self.in_turn(lambda: anext(listing, None))
        return None if found is None else [meta["path"] for meta in found]

    def _connect(self) -> AzureStore:
        address, credential = self._address, self._credential
        # The type is named because the environment may hold other credentials, some of which would come first.
        login: AzureConfig = (
            {"credential_type": "sas_token", "sas_key": credential.removeprefix("?")}
            if is_token(credential)
            else {"credential_type": "access_key", "account_key": credential}
        )
        return AzureStore(
            address.container,
            config=login,
            account_name=address.account,
            endpoint=address.endpoint,
            use_emulator=False,  # whatever the environment says
            client_options=client_options(
                tls=address.is_tls, tls_ca_file=address.tls_ca_file, connect_timeout=self._settings.connect_timeout
            ),
            retry_config=NO_RETRIES,
        )


def _stored(attributes: Mapping[str, str]) -> dict[str, str]:
    """The attributes with names that Azure takes, which are those of C#'s identifiers.

    What they cannot have is written as .NET does in names of XML: `run-id` is `run_x002d_id`.
    """
    return {
        name if name == "Content-Type" else _UNNAMEABLE.sub(lambda found: f"_x{ord(found[0]):04x}_", name): value
        for name, value in attributes.items()
    }
