"""How the Redis cache connects, how long its calls may take, and what it does while Redis is away."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import ByteSize, Field, SecretStr

from kmp_core.deadlines import Duration
from kmp_core.settings import ExistingFile, Settings

__all__ = ["RedisSettings"]


class RedisSettings(Settings, prefix="storage.redis"):
    """Tune the Redis cache. Where the server is stands in `KMP_STORAGE_CACHE_URL`."""

    username: str | None = None
    """The ACL user; the URL's where None, and the project's own where the URL names none but there is a password."""

    password: SecretStr | None = None
    """The user's password; the URL's where None."""

    password_secret: str | None = None
    """The name of a secret that holds the password: asked anew for each connection, so that it may be rotated."""

    sentinel: str | None = None
    """What the Sentinels call the primary, where the URL names them (`redis://one:26379,two:26379`) and not a server.

    They are asked for the primary with each new connection, so that a failover is followed."""

    sentinel_username: str | None = None
    """The Sentinels' own user, where they have one for services: their default user may lead all to another server."""

    sentinel_password: SecretStr | None = None
    """The password that the Sentinels themselves ask for, where they do."""

    tls_ca_file: ExistingFile = None
    """Certificates of the authorities that may sign the server's, for `rediss:`; the system's where None."""

    pool_size: int = Field(default=10, ge=1, le=1000)
    """Connections that one process keeps open at most, with each node of a Cluster, beside what hears of changes."""

    timeout: Duration = Field(default=timedelta(seconds=1), gt=timedelta(0))
    """How long a call may take where it names no timeout of its own, waiting for a connection included."""

    connect_timeout: Duration = Field(default=timedelta(seconds=1), gt=timedelta(0))
    """How long connecting and logging in may take, within a call's own time."""

    outage: Literal["miss", "error"] = "miss"
    """What a cache that does not answer is to its callers: `miss`, so that they load for themselves, or an `error`.

    Locks, counters, limits and `set(..., if_absent=True)` always raise: there is no answer that would be harmless."""

    max_value_bytes: ByteSize = Field(default=ByteSize(8 << 20), ge=1)
    """Bytes that one value may have; a larger one is refused."""

    load_timeout: Duration = timedelta(seconds=30)
    """How long `get_or_load` may take, its loader and the wait for another process's loader included."""

    load_lease: Duration = Field(default=timedelta(seconds=5), ge=timedelta(milliseconds=100))
    """How long after a loading process was killed another one may load; the lease is renewed while a loader runs."""

    refresh_after: float = Field(default=0.8, gt=0, le=1)
    """The share of its time after which one caller of `get_or_load` refreshes a value; 1 turns early refresh off."""

    jitter: float = Field(default=0.05, ge=0, le=0.5)
    """The share of its time by which a loaded value may end earlier, at random, so that what was loaded together does
    not end together. A value that was `set` keeps its exact time."""

    near_max_bytes: ByteSize = Field(default=ByteSize(0), ge=0)
    """Bytes of values that this process keeps beside Redis and serves without asking; 0 keeps none."""

    near_tracking: bool = False
    """Whether the server itself says what changed (client tracking), expiry and eviction included. Only for a server
    that is the project's own, since tracking shows the names of all keys that begin alike: provision the project with
    `placement="dedicated"`. Otherwise the project's own channel says it."""

    near_ttl: Duration = Field(default=timedelta(seconds=2), gt=timedelta(0))
    """How long such a value is served at most: the bound of staleness where a message of its change was lost."""
