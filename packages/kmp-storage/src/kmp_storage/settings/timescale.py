"""How the TimescaleDB store connects, how long its calls may take, and how much it handles at a time."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from kmp_core.deadlines import Duration
from kmp_core.settings import ConnectionUrl, Settings

__all__ = ["TimescaleSettings"]


class TimescaleSettings(Settings, prefix="storage.timescale"):
    """Tune the store on TimescaleDB and PostgreSQL."""

    pool_size: int = Field(default=10, ge=1, le=1000)
    """Connections that one process opens at most. Projects × replicas × this must fit the server's max_connections."""

    acquire_timeout: Duration = timedelta(seconds=5)
    """How long a call waits for a free connection before it fails with PoolExhausted."""

    connect_timeout: Duration = timedelta(seconds=5)
    """How long making a connection may take, TLS and login included."""

    timeout: Duration = timedelta(seconds=30)
    """How long a call may take where it names no timeout of its own; for streams, how long each chunk may."""

    chunk_rows: int = Field(default=2000, ge=1, le=100_000)
    """Rows that a stream holds in memory at a time."""

    chunk_interval: Duration = Field(default=timedelta(days=7), gt=timedelta(minutes=1))
    """The stretch of time that one chunk of a new hypertable covers; with a retention, an eighth of it at most."""

    sweep_every: Duration = timedelta(seconds=60)
    """How long at least between two looks, while appending, for rows that are older than their series' retention."""

    transaction_pooler: bool = False
    """Whether a pooler in transaction mode, such as PgBouncer, stands before the server; sessions are then refused."""

    password_secret: str | None = None
    """The name of the secret with the password, asked for each new connection, so that it may be rotated."""

    replica_url: ConnectionUrl | None = Field(default=None, examples=["timescale://acme@replica.internal/acme"])
    """Where a streaming replica of the server is, which is asked instead while it is near enough, for all but writes.

    The password is the primary's where the URL has none."""

    replica_lag: Duration = Field(default=timedelta(seconds=5), ge=timedelta(milliseconds=100))
    """How old at most what the replica answers may be; while it may be older, or is away, the primary is asked."""
