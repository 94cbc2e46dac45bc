"""Where a container of Azure Blob Storage is and whose credential is used, read from a URL and from settings."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from kmp_core.errors import ConfigurationError
from kmp_core.project import Project
from kmp_storage.bucket.server_url import ServerUrl, fault
from kmp_storage.settings.cloud import CloudSettings

__all__ = ["CloudAddress", "Credentials"]

_EXAMPLE = "az://skylinestore.blob.core.windows.net or az+http://devstore@127.0.0.1:10000"
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}", re.ASCII)
_CONTAINER = re.compile(r"[a-z0-9](-?[a-z0-9]){2,62}", re.ASCII)
_LONGEST_CONTAINER = 63

Credentials = Callable[[], Awaitable[str]]
"""Gives the account's key or the SAS token as it is now."""


@dataclass(frozen=True, slots=True)
class CloudAddress:
    """One container of one storage account, and who asks."""

    endpoint: str
    account: str
    container: str
    credentials: Credentials = field(repr=False)
    may_sign: bool
    """Whether the credential is an account's key, which alone can sign URLs. One that changes is looked at later."""
    tls_ca_file: str | None = None

    @classmethod
    def read(
        cls, url: str, *, project: Project, settings: CloudSettings, credentials: Credentials | None = None
    ) -> CloudAddress:
        """Read `az://[account[:credential]@]host[:port][/container]`; `az+http:` speaks no TLS, for a loopback only.

        The host of one account (`skylinestore.blob...`) names it too. Without a host it is Azure's, and without a
        container the one called like the project. Raises `ConfigurationError`.
        """
        parts = _split(url)
        account = settings.account or parts.user or _account_of(parts.authority)
        if _ACCOUNT.fullmatch(account) is None:
            raise _fault("names no storage account; set KMP_STORAGE_CLOUD_ACCOUNT")
        secret = parts.secret if settings.credential is None else settings.credential.get_secret_value()
        if credentials is None:
            if not secret:
                raise _fault("names no key and no SAS token; set KMP_STORAGE_CLOUD_CREDENTIAL")
            credentials = _constant(secret)
        authority = parts.authority or f"{account}.blob.core.windows.net"
        # Azure's own hosts begin with the account; a host that is for several has it in the path.
        path = "" if authority.startswith(f"{account}.") else f"/{account}"
        return cls(
            endpoint=f"{parts.protocol}://{authority}{path}",
            account=account,
            container=_container(parts.bucket, project),
            credentials=credentials,
            may_sign=not is_token(secret),
            tls_ca_file=None if settings.tls_ca_file is None else str(settings.tls_ca_file),
        )

    @property
    def is_tls(self) -> bool:
        return self.endpoint.startswith("https:")


def is_token(credential: str) -> bool:
    """Whether this is a SAS token, and not an account's key."""
    return "sig=" in credential


def check_credential(credential: str) -> None:
    """Raise `ConfigurationError` for what is neither a SAS token nor an account's key, without showing it."""
    if is_token(credential):
        return
    try:
        base64.b64decode(credential, validate=True)
    except (binascii.Error, ValueError):
        raise _fault("has a credential that is neither an account's key (Base64) nor a SAS token") from None


def _split(url: str) -> ServerUrl:
    return ServerUrl.read(url, schemes=("az", "az+http"), prefix="KMP_STORAGE_CLOUD", example=_EXAMPLE)


def _account_of(authority: str) -> str:
    name, of_one, _ = authority.partition(".blob.")
    return name if of_one else ""


def _container(named: str, project: Project) -> str:
    name = named or str(project)
    if _CONTAINER.fullmatch(name) is not None and len(name) <= _LONGEST_CONTAINER:
        return name
    if named:
        raise _fault("must end with the host, or with the name of one container")
    raise _fault(f"must name a container, since none can be called like the project {project}")


def _constant(secret: str) -> Credentials:
    async def credentials() -> str:
        return secret

    return credentials


def _fault(problem: str) -> ConfigurationError:
    return fault(problem, _EXAMPLE)
