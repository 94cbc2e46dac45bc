"""Where Neo4j is and who logs in, read from a URL and from settings, with every fault named and no secret shown."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from kmp_core.errors import ConfigurationError, Fault
from kmp_core.plugins import extra
from kmp_core.secrets import Secret
from kmp_storage.settings.neo4j import Neo4jSettings

with extra("neo4j", install="kmp-storage[neo4j]"):
    import neo4j
    from neo4j.auth_management import AsyncAuthManagers

__all__ = ["Neo4jAddress", "Password"]

Password = Callable[[], Awaitable[Secret]]
"""Gives the password as it is now."""

_SCHEMES = ("neo4j", "neo4j+s", "bolt", "bolt+s")
_EXAMPLE = "neo4j+s://graph.internal:7687 or bolt://graph.internal:7687"
_DEFAULT_PORT = 7687


@dataclass(frozen=True, slots=True)
class Neo4jAddress:
    """One Neo4j instance (with `neo4j:`, the cluster behind it) and a user of it."""

    scheme: str
    host: str
    port: int
    user: str | None = None
    password: Password | None = field(default=None, repr=False)
    tls_ca_file: str | None = None

    @classmethod
    def read(cls, url: str, *, settings: Neo4jSettings, password: Password | None = None) -> Neo4jAddress:
        """Read `neo4j[+s]://[user[:password]@]host[:port]` or `bolt[+s]://…`; `+s` speaks TLS and verifies the server.

        Raises `ConfigurationError`.
        """
        parts = _split(url)
        secret = _secret(parts, settings)
        password = _constant(secret) if password is None and secret is not None else password
        named = settings.username or (unquote(parts.username) if parts.username else None)
        return cls(
            scheme=parts.scheme,
            host=parts.hostname or "localhost",
            port=parts.port or _DEFAULT_PORT,
            user=named or ("neo4j" if password is not None else None),
            password=password,
            tls_ca_file=None if settings.tls_ca_file is None else str(settings.tls_ca_file),
        )

    def driver(self, **options: Any) -> neo4j.AsyncDriver:
        """A driver that is not connected yet."""
        scheme = self.scheme
        if self.tls_ca_file is not None and scheme.endswith("+s"):
            # The driver takes authorities of one's own only where the scheme leaves encryption to its options.
            scheme = scheme.removesuffix("+s")
            options["ssl_context"] = _trusting(self.tls_ca_file)
        if self.password is not None:
            options["auth"] = AsyncAuthManagers.basic(self._credentials)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return neo4j.AsyncGraphDatabase.driver(f"{scheme}://{host}:{self.port}", **options)

    async def _credentials(self) -> neo4j.Auth:
        assert self.password is not None
        return neo4j.basic_auth(self.user or "neo4j", (await self.password()).reveal())


def _trusting(file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:  # an SSLError is one too
        problem = f"cannot be read as certificates ({error.strerror})"
        example = "/etc/ssl/graph-authority.pem, in PEM format"
        raise ConfigurationError(Fault("KMP_STORAGE_NEO4J_TLS_CA_FILE", problem, example=example)) from None


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise _fault("is no URL, or its port is no number from 0 to 65535") from None
    if parts.scheme.endswith("+ssc"):
        raise _fault("would trust any certificate; use +s, and KMP_STORAGE_NEO4J_TLS_CA_FILE for your own authority")
    if parts.scheme not in _SCHEMES:
        raise _fault("must begin with neo4j://, neo4j+s://, bolt:// or bolt+s://")
    if not parts.netloc and parts.path:
        raise _fault("lacks the two slashes before the host")
    if parts.query or parts.fragment or parts.path.strip("/"):
        raise _fault("must end with the host and its port; tune with KMP_STORAGE_NEO4J_...")
    return parts


def _secret(parts: SplitResult, settings: Neo4jSettings) -> Secret | None:
    if settings.password is not None:
        return Secret(settings.password.get_secret_value(), name="password")
    return Secret(unquote(parts.password), name="password") if parts.password else None


def _constant(secret: Secret) -> Password:
    async def password() -> Secret:
        return secret

    return password


def _fault(problem: str) -> ConfigurationError:
    return ConfigurationError(Fault("KMP_STORAGE_GRAPH_URL", problem, example=_EXAMPLE))
