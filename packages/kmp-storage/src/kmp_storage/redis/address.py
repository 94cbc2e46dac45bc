"""Where Redis is and who logs in, read from a URL and from settings, with every fault named and no secret shown."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from kmp_core.errors import ConfigurationError, Fault, Unavailable
from kmp_core.plugins import extra
from kmp_core.secrets import Secret
from kmp_storage.settings.redis import RedisSettings

with extra("redis", install="kmp-storage[redis]"):
    from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.credentials import CredentialProvider

__all__ = ["Password", "RedisAddress"]

Password = Callable[[], Awaitable[Secret]]
"""Gives the password as it is now."""

_EXAMPLE = "redis://cache.internal:6379 or rediss://cache.internal:6380"
_DEFAULT_PORT, _SENTINEL_PORT = 6379, 26379


class _Credentials(CredentialProvider):
    """Asks for the password whenever a connection logs in."""

    def __init__(self, user: str, password: Password) -> None:
        self._user = user
        self._password = password

    async def get_credentials_async(self) -> tuple[str, str]:
        return self._user, (await self._password()).reveal()


@dataclass(frozen=True, slots=True)
class Sentinel:
    """Who knows where the primary is: the nodes, how to log in there, and what they call it."""

    nodes: tuple[tuple[str, int], ...]
    service: str
    login: RedisAddress


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One Redis server and a user of it; or a cluster, with some of its nodes."""

    host: str
    port: int
    database: int = 0
    user: str | None = None
    password: Password | None = field(default=None, repr=False)
    tls: bool = False
    tls_ca_file: str | None = None
    sentinel: Sentinel | None = None
    cluster: tuple[tuple[str, int], ...] = ()

    @classmethod
    def read(cls, url: str, *, user: str, settings: RedisSettings, password: Password | None = None) -> RedisAddress:
        """Read `redis://[user[:password]@]host[:port][/database]`; `rediss:` speaks TLS and verifies the server.

        `redis+cluster:` and `rediss+cluster:` name some nodes of a cluster, which tell the others.
        `user` is who logs in where there is a password and nobody else is named. Raises `ConfigurationError`.
        """
        parts = _split(url)
        in_cluster = parts.scheme.endswith("+cluster")
        if in_cluster and settings.sentinel is not None:
            raise _fault("names a Cluster, which needs no Sentinel: unset KMP_STORAGE_REDIS_SENTINEL")
        if in_cluster and _database(parts):
            raise _fault("must not name a database: a Cluster has one alone")
        port = _DEFAULT_PORT if settings.sentinel is None else _SENTINEL_PORT
        nodes = _nodes(parts, port, several=in_cluster or settings.sentinel is not None)
        secret = _secret(parts, settings)
        password = _constant(secret) if password is None and secret is not None else password
        named = settings.username or (unquote(parts.username) if parts.username else None)
        return cls(
            host=nodes[0][0],
            port=nodes[0][1],
            database=_database(parts),
            user=named or (user if password is not None else None),
            password=password,
            tls=parts.scheme.startswith("rediss"),
            tls_ca_file=None if settings.tls_ca_file is None else str(settings.tls_ca_file),
            sentinel=None if settings.sentinel is None else _sentinel(nodes, parts, settings),
            cluster=tuple(nodes) if in_cluster else (),
        )

    def connection(self, connect_timeout: float | None) -> AbstractConnection:
        """A connection of redis-py that is not connected yet. It keeps no time of its own: its user does."""
        options: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "db": self.database,
            "protocol": 3,
            "socket_timeout": None,
            "socket_connect_timeout": connect_timeout,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
        }
        if self.password is not None:
            options["credential_provider"] = _Credentials(self.user or "default", self.password)
        if not self.tls:
            return Connection(**options)
        return SSLConnection(
            ssl_ca_certs=self.tls_ca_file, ssl_cert_reqs=ssl.CERT_REQUIRED, ssl_check_hostname=True, **options
        )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _fault("is no URL") from None
    if parts.scheme not in ("redis", "rediss", "redis+cluster", "rediss+cluster"):
        raise _fault("must begin with redis://, rediss://, redis+cluster:// or rediss+cluster://")
    if not parts.netloc:
        raise _fault("lacks the two slashes before the host")
    if parts.query or parts.fragment:
        raise _fault("takes no parameters; tune with KMP_STORAGE_REDIS_...")
    return parts


def _nodes(parts: SplitResult, port: int, *, several: bool) -> list[tuple[str, int]]:
    places = parts.netloc.rpartition("@")[2].split(",")
    if len(places) > 1 and not several:
        problem = (
            "names several servers: set KMP_STORAGE_REDIS_SENTINEL where they are Sentinels, or write redis+cluster://"
        )
        raise _fault(problem)
    nodes = []
    for place in places:
        try:
            one = urlsplit(f"//{place}")
            nodes.append((one.hostname or "localhost", one.port or port))
        except ValueError:
            raise _fault("has a port that is no number from 0 to 65535") from None
    return nodes


def _sentinel(nodes: list[tuple[str, int]], parts: SplitResult, settings: RedisSettings) -> Sentinel:
    word = settings.sentinel_password
    password = None if word is None else _constant(Secret(word.get_secret_value(), name="sentinel-password"))
    ca = None if settings.tls_ca_file is None else str(settings.tls_ca_file)
    user = settings.sentinel_username
    login = RedisAddress(*nodes[0], user=user, password=password, tls=parts.scheme == "rediss", tls_ca_file=ca)
    return Sentinel(tuple(nodes), settings.sentinel or "", login)


def _database(parts: SplitResult) -> int:
    name = parts.path.strip("/")
    if name and not (name.isascii() and name.isdigit() and len(name) < 6):
        raise _fault("must end with the host, or with the number of a database")
    return int(name or 0)


def _secret(parts: SplitResult, settings: RedisSettings) -> Secret | None:
    if settings.password is not None:
        return Secret(settings.password.get_secret_value(), name="password")
    return Secret(unquote(parts.password), name="password") if parts.password else None


def _constant(secret: Secret) -> Password:
    async def password() -> Secret:
        return secret

    return password


def _fault(problem: str) -> ConfigurationError:
    return ConfigurationError(Fault("KMP_STORAGE_CACHE_URL", problem, example=_EXAMPLE))


def unanswered(address: RedisAddress) -> Unavailable:
    """The error for a server that did not even accept a connection in time."""
    return Unavailable(f"Redis at {address.host}:{address.port} accepted no connection in time", backend="redis")
