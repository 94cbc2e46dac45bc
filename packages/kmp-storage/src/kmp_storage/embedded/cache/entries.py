"""The rows of the embedded cache: what is kept, until when, and what goes first when room runs out."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kmp_core.errors import Conflict, InvalidInput
from kmp_storage.cache import check_value

__all__ = ["MIGRATIONS", "OVERHEAD_BYTES", "Entries", "Found", "Reads"]

MIGRATIONS = (
    """
    CREATE TABLE entry (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        value BLOB,
        size INTEGER NOT NULL,
        expires REAL,
        refresh REAL,
        used REAL NOT NULL
    ) STRICT;
    CREATE INDEX entry_expires ON entry (expires) WHERE expires IS NOT NULL;
    CREATE INDEX entry_used ON entry (used);
    CREATE TABLE usage (bytes INTEGER NOT NULL, evictions INTEGER NOT NULL) STRICT;
    INSERT INTO usage VALUES (0, 0);
    CREATE TRIGGER entry_added AFTER INSERT ON entry BEGIN
        UPDATE usage SET bytes = bytes + new.size;
    END;
    CREATE TRIGGER entry_changed AFTER UPDATE OF size ON entry BEGIN
        UPDATE usage SET bytes = bytes + new.size - old.size;
    END;
    CREATE TRIGGER entry_removed AFTER DELETE ON entry BEGIN
        UPDATE usage SET bytes = bytes - old.size;
    END;
    CREATE TABLE lease (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        owner TEXT,
        expires REAL NOT NULL,
        ttl REAL NOT NULL,
        token INTEGER NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX lease_expires ON lease (expires);
    """,
)

OVERHEAD_BYTES = 128
"""What an entry is taken to cost beside its key and its value: the row, and its place in three indexes."""

Reads = Callable[[], Iterable[tuple[str, float]]]
"""Gives the keys that were read since it was last asked, each with its time."""

_PURGED_AT_ONCE = 32
_EVICTED_AT_ONCE = 64
_LOW_WATER = 0.9
_INT64 = 1 << 63


@dataclass(frozen=True, slots=True)
class Found:
    """A live entry; `value` is None where a loader found nothing and that is remembered."""

    value: bytes | None
    expires: float | None
    refresh: float | None


@dataclass(frozen=True, slots=True)
class Entries:
    """What the cache does to its rows, each inside a transaction that the caller holds."""

    max_bytes: int
    max_value_bytes: int

    def check_value(self, value: bytes, key: str) -> None:
        """Raise `InvalidInput` for what is not bytes, or is more than an entry may hold."""
        check_value(value, key)
        if len(value) > self.max_value_bytes:
            problem = f"has {len(value)} bytes, more than the {self.max_value_bytes} that one entry may have"
            raise InvalidInput("value", problem, example="KMP_STORAGE_CACHE_MAX_VALUE_BYTES", key=key)

    @staticmethod
    def find(connection: sqlite3.Connection, key: str, now: float) -> Found | None:
        """The live entry, or None."""
        row = connection.execute(
            "SELECT value, expires, refresh FROM entry WHERE key = ? AND (expires IS NULL OR expires > ?)", (key, now)
        ).fetchone()
        return None if row is None else Found(*row)

    def put(
        self,
        connection: sqlite3.Connection,
        key: str,
        value: bytes | None,
        *,
        now: float,
        expires: float | None,
        refresh: float | None = None,
        reads: Reads = tuple,
    ) -> None:
        """Store an entry, after the expired and then the least recently used ones made room for it.

        `reads` is asked for what was read when, where something has to go.
        """
        size = len(key.encode()) + len(value or b"") + OVERHEAD_BYTES
        old = connection.execute("SELECT size FROM entry WHERE key = ?", (key,)).fetchone()
        self._make_room(connection, size - (old[0] if old else 0), keep=key, now=now, reads=reads)
        connection.execute(
            "INSERT INTO entry (key, value, size, expires, refresh, used) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value, size = excluded.size, "
            "expires = excluded.expires, refresh = excluded.refresh, used = excluded.used",
            (key, value, size, expires, refresh, now),
        )

    def increment(
        self,
        connection: sqlite3.Connection,
        key: str,
        by: int,
        *,
        now: float,
        expires: float | None,
        reads: Reads = tuple,
    ) -> int:
        """Add to the counter; a new one ends at `expires`, an old one keeps its own end."""
        found = self.find(connection, key, now)
        value = by
        if found is not None and found.value is not None:
            value += _counter(found.value, key)
            expires = found.expires
        if not -_INT64 <= value < _INT64:
            raise InvalidInput("by", "takes the counter beyond 64 bits", example="1", key=key)
        self.put(connection, key, b"%d" % value, now=now, expires=expires, reads=reads)
        return value

    @staticmethod
    def delete(connection: sqlite3.Connection, keys: Iterable[str], now: float) -> int:
        """Remove them, and return how many were live values."""
        live = 0
        for key in keys:
            rows = connection.execute(
                "DELETE FROM entry WHERE key = ? RETURNING value IS NOT NULL AND (expires IS NULL OR expires > ?)",
                (key, now),
            ).fetchall()
            live += sum(row[0] for row in rows)
        return live

    @staticmethod
    def usage(connection: sqlite3.Connection) -> tuple[int, int]:
        """Bytes in use, and how many entries ever had to go before their time."""
        row = connection.execute("SELECT bytes, evictions FROM usage").fetchone()
        return int(row[0]), int(row[1])

    def _make_room(self, connection: sqlite3.Connection, growth: int, *, keep: str, now: float, reads: Reads) -> None:
        # A little is purged with each write, so that what expired does not pile up and no single write pays for it.
        purge = "DELETE FROM entry WHERE id IN (SELECT id FROM entry WHERE expires <= ? AND key <> ? LIMIT ?)"
        connection.execute(purge, (now, keep, _PURGED_AT_ONCE))
        if self.usage(connection)[0] + growth <= self.max_bytes:
            return
        connection.execute(purge, (now, keep, -1))
        connection.executemany("UPDATE entry SET used = max(used, ?2) WHERE key = ?1", reads())
        # Down to a low-water mark, or every write of a full cache would evict.
        excess = self.usage(connection)[0] + growth - int(self.max_bytes * _LOW_WATER)
        while excess > 0 and (freed := self._evict(connection, excess, keep)):
            excess -= freed

    @staticmethod
    def _evict(connection: sqlite3.Connection, excess: int, keep: str) -> int:
        freed, going = 0, []
        oldest = "SELECT id, size FROM entry WHERE key <> ? ORDER BY used LIMIT ?"
        for row, size in connection.execute(oldest, (keep, _EVICTED_AT_ONCE)):
            going.append((row,))
            freed += size
            if freed >= excess:
                break
        connection.executemany("DELETE FROM entry WHERE id = ?", going)
        connection.execute("UPDATE usage SET evictions = evictions + ?", (len(going),))
        return freed


def _counter(value: bytes, key: str) -> int:
    digits = value[1:] if value[:1] == b"-" else value
    if not (digits.isdigit() and len(digits) <= 19):
        raise Conflict("the value under this key is no counter; delete it first", key=key)
    return int(value)
