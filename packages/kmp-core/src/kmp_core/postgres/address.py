"""Where a PostgreSQL server is, who logs in, and how it proves who it is.

timescale://acme@db.internal:5432/acme?sslmode=verify-full&sslrootcert=/etc/ssl/db-ca.pem
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from kmp_core.errors import ConfigurationError, Fault
from kmp_core.secrets import Secret

__all__ = ["Address", "Password", "PasswordSource"]

PasswordSource = Callable[[], Awaitable[Secret | str]]
"""Asked for each new connection, so that a password that is rotated needs no restart."""

Password = PasswordSource | Secret | str | None

_EXAMPLE = "timescale://acme:…@db.internal:5432/acme?sslrootcert=/etc/ssl/db-ca.pem"
_PARAMETERS = ("sslmode", "sslrootcert")


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL says, checked. TLS is `verify-full` unless the URL says `sslmode=disable`; nothing lies between.

    A mode that encrypts without checking who answers (`require`) hides an attacker from you, not you from them.
    """

    host: str
    port: int
    user: str
    database: str
    password: Password = field(default=None, repr=False)
    encrypted: bool = True
    authority: str | None = None

    @classmethod
    def of(cls, url: str, *, password: Password = None, name: str = "the URL") -> Self:
        """Read a URL. Raises `ConfigurationError` with every fault and without the URL, which may hold a password.

        `name` is what an error calls it: the setting that it comes from.
        """
        faults: list[Fault] = []
        try:
            parts = urlsplit(url)
            port = parts.port or 5432
        except ValueError:
            raise ConfigurationError(Fault(name, "cannot be read", example=_EXAMPLE)) from None
        query = dict(parse_qsl(parts.query))
        mode = query.get("sslmode", "verify-full")
        if mode not in ("verify-full", "disable"):
            faults.append(Fault(f"{name}'s sslmode", "must be verify-full or disable", example="verify-full"))
        for parameter in query.keys() - set(_PARAMETERS):
            faults.append(Fault(f"{name}'s parameter {parameter}", "is unknown", example=" or ".join(_PARAMETERS)))
        database = unquote(parts.path.removeprefix("/"))
        for part, value in (("host", parts.hostname), ("user", parts.username), ("database", database)):
            if not value:
                faults.append(Fault(f"{name}'s {part}", "is missing", example=_EXAMPLE))
        if faults:
            raise ConfigurationError(*faults)
        inside = None if parts.password is None else unquote(parts.password)
        return cls(
            host=parts.hostname or "",
            port=port,
            user=unquote(parts.username or ""),
            database=database,
            password=inside if password is None else password,
            encrypted=mode == "verify-full",
            authority=query.get("sslrootcert"),
        )

    @property
    def rotates(self) -> bool:
        """Whether the password is asked for anew each time."""
        return callable(self.password)

    async def current_password(self) -> str | None:
        """The password as it is now."""
        found = await self.password() if callable(self.password) else self.password
        return found.reveal() if isinstance(found, Secret) else found

    def tls(self) -> ssl.SSLContext | bool:
        """The context for the driver, made anew so that a renewed authority file counts; False for none."""
        if not self.encrypted:
            return False
        try:
            return ssl.create_default_context(cafile=self.authority)
        except (OSError, ssl.SSLError) as error:
            problem = f"cannot be read as certificates ({type(error).__name__})"
            raise ConfigurationError(Fault("sslrootcert", problem, example="/etc/ssl/db-ca.pem")) from None
