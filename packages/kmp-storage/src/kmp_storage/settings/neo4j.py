"""How the Neo4j store connects, how long its calls may take, and how far a walk may spread."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, SecretStr

from kmp_core.deadlines import Duration
from kmp_core.settings import ExistingFile, Settings

__all__ = ["Neo4jSettings"]


class Neo4jSettings(Settings, prefix="storage.neo4j"):
    """Tune the Neo4j store. Where the server is stands in `KMP_STORAGE_GRAPH_URL`."""

    username: str | None = None
    """Who logs in; the URL's where None, and `neo4j` where there is only a password."""

    password: SecretStr | None = None
    """The user's password; the URL's where None."""

    password_secret: str | None = None
    """The name of a secret that holds the password: asked anew when the server refuses it, so that it may rotate."""

    tls_ca_file: ExistingFile = None
    """Certificates of the authorities that may sign the server's, for `neo4j+s:` and `bolt+s:`; the system's where
    None."""

    database: str | None = None
    """Experimental: the project's database on an Enterprise server; the server's default where None."""

    pool_size: int = Field(default=10, ge=1, le=1000)
    """Connections that one process keeps open to each server at most."""

    acquire_timeout: Duration = Field(default=timedelta(seconds=5), gt=timedelta(0))
    """How long a call waits for a connection before it fails with `PoolExhausted`, within its own time."""

    connect_timeout: Duration = Field(default=timedelta(seconds=5), gt=timedelta(0))
    """How long connecting may take, within a call's own time."""

    timeout: Duration = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """How long a call may take where it names no timeout of its own; for streams, how long each chunk may. The server
    ends the transaction then, too."""

    chunk_items: int = Field(default=5000, ge=1, le=100_000)
    """Nodes and edges that a stream merges in one transaction."""

    fetch_items: int = Field(default=1000, ge=1, le=100_000)
    """Records that the server sends at a time."""

    max_visited: int = Field(default=1_000_000, ge=1)
    """Nodes that one walk may visit; a wider one is refused, so that it does not take all memory."""
