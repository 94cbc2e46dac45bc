"""Who may load a value or holds a lock, over all processes: a lease is a row that runs out unless it is renewed."""

from __future__ import annotations

import sqlite3
from typing import Literal

__all__ = ["Kind", "claim", "is_free", "purge", "release", "renew", "revoke"]

Kind = Literal["load", "lock"]

_KEPT_SECONDS = 86_400.0
_PURGED_AT_ONCE = 16


def is_free(connection: sqlite3.Connection, kind: Kind, name: str, now: float) -> bool:
    """Whether a claim would succeed at this moment."""
    row = connection.execute(
        "SELECT owner, expires, ttl FROM lease WHERE kind = ? AND name = ?", (kind, name)
    ).fetchone()
    return row is None or not _held(row[0], row[1], row[2], now)


def claim(connection: sqlite3.Connection, kind: Kind, name: str, owner: str, *, now: float, ttl: float) -> int | None:
    """Take the lease and return its fencing token, or None while somebody else has it.

    A token is greater than its predecessor's and at least the time in microseconds, so that tokens go on growing
    where the cache's file was deleted or lost its last moments in a power cut.
    """
    row = connection.execute(
        "SELECT owner, expires, ttl, token FROM lease WHERE kind = ? AND name = ?", (kind, name)
    ).fetchone()
    if row is not None and _held(row[0], row[1], row[2], now):
        return None
    token = max(row[3] + 1 if row else 0, int(now * 1_000_000))
    connection.execute(
        "INSERT INTO lease (kind, name, owner, expires, ttl, token) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (kind, name) DO UPDATE SET owner = excluded.owner, expires = excluded.expires, "
        "ttl = excluded.ttl, token = excluded.token",
        (kind, name, owner, now + ttl, ttl, token),
    )
    return token


def renew(connection: sqlite3.Connection, kind: Kind, name: str, owner: str, *, now: float) -> bool:
    """Hold it for another term; False where it is somebody else's by now."""
    return bool(
        connection.execute(
            "UPDATE lease SET expires = ? + ttl WHERE kind = ? AND name = ? AND owner = ?", (now, kind, name, owner)
        ).rowcount
    )


def release(connection: sqlite3.Connection, kind: Kind, name: str, owner: str, *, now: float) -> bool:
    """Let go; False where it was somebody else's already. The row stays for a while, for its token."""
    return bool(
        connection.execute(
            "UPDATE lease SET owner = NULL, expires = ? WHERE kind = ? AND name = ? AND owner = ?",
            (now, kind, name, owner),
        ).rowcount
    )


def revoke(connection: sqlite3.Connection, kind: Kind, name: str, *, now: float) -> None:
    """Take it from whoever has it: a load that began before a write must not store what it read before."""
    connection.execute("UPDATE lease SET owner = NULL, expires = ? WHERE kind = ? AND name = ?", (now, kind, name))


def purge(connection: sqlite3.Connection, *, now: float) -> None:
    """Forget a few leases that ended long ago, so that the names of yesterday do not pile up."""
    connection.execute(
        "DELETE FROM lease WHERE (kind, name) IN (SELECT kind, name FROM lease WHERE expires < ? LIMIT ?)",
        (now - _KEPT_SECONDS, _PURGED_AT_ONCE),
    )


def _held(owner: str | None, expires: float, ttl: float, now: float) -> bool:
    # More than one term left means that the clock was set back: such a lease would hold for as long as that.
    return owner is not None and now < expires <= now + ttl
