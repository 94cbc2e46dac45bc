"""What the embedded bucket knows of its objects: one row per key, which names the content and describes it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from kmp_core.errors import Conflict, Unavailable
from kmp_storage.embedded.bucket.blobs import Upload
from kmp_storage.objects.keys import after_prefix
from kmp_storage.values import BucketEntry

__all__ = ["MIGRATIONS", "Condition", "commit", "delete", "expire", "find", "forget", "garbage", "names", "page"]

MIGRATIONS = (
    """
    CREATE TABLE object (
        key BLOB PRIMARY KEY,
        content TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        checksum TEXT NOT NULL,
        modified INTEGER NOT NULL,
        content_type TEXT,
        metadata TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE garbage (content TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE object ADD COLUMN expires INTEGER;
    CREATE INDEX object_expires ON object (expires) WHERE expires IS NOT NULL;
    """,
)

_COLUMNS = "key, size, content, modified, content_type, checksum, metadata, expires"
_LIVES = "(expires IS NULL OR expires > ?)"
_FIND = f"SELECT {_COLUMNS} FROM object WHERE key = ? AND {_LIVES}"  # noqa: S608 - constants
_EXPIRED_AT_ONCE = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Condition:
    """When a put may replace what is there."""

    if_absent: bool = False
    if_match: str | None = None

    def check(self, connection: sqlite3.Connection, key: str) -> BucketEntry | None:
        """What is under the key now; raises `Conflict` where the condition does not hold."""
        current = find(connection, key)
        if self.if_absent and current is not None:
            raise Conflict(f"{key!r} is there already; nothing was changed", key=key)
        if self.if_match is not None and (current is None or current.etag != self.if_match):
            state = "is not there" if current is None else "was changed since"
            raise Conflict(f"{key!r} {state}; nothing was changed", key=key)
        return current


def find(connection: sqlite3.Connection, key: str) -> BucketEntry | None:
    """The object's entry, or None; its `etag` is the name of its content."""
    row = connection.execute(_FIND, (key.encode(), _microseconds(datetime.now(UTC)))).fetchone()
    return None if row is None else _entry(row)


def page(connection: sqlite3.Connection, prefix: str, after: str | None, count: int) -> list[BucketEntry]:
    """The next entries after a key, in the order of the keys' bytes."""
    start = prefix.encode()
    low, compare = (start, ">=") if after is None else (after.encode(), ">")
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM object WHERE key {compare} ? AND key < ? AND {_LIVES} ORDER BY key LIMIT ?",  # noqa: S608
        (low, after_prefix(start), _microseconds(datetime.now(UTC)), count),
    )
    return [_entry(row) for row in rows]


def commit(connection: sqlite3.Connection, entry: BucketEntry, upload: Upload, condition: Condition) -> str | None:
    """Name a sealed content by its key, and return the name of the content that it replaces."""
    condition.check(connection, entry.key)
    if not upload.intact():
        raise Unavailable("the content was swept away before it was complete; put it again", backend="file")
    replaced = _content(connection, entry.key)
    connection.execute(
        f"INSERT OR REPLACE INTO object ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - constants
        (
            entry.key.encode(),
            entry.size,
            entry.etag,
            _microseconds(entry.modified),
            entry.content_type,
            entry.checksum,
            json.dumps(dict(entry.metadata)),
            None if entry.expires is None else _microseconds(entry.expires),
        ),
    )
    _discard(connection, replaced)
    return replaced


def delete(connection: sqlite3.Connection, key: str) -> bool:
    """Forget the object; False where there was none."""
    there = find(connection, key) is not None
    _discard(connection, _content(connection, key))
    connection.execute("DELETE FROM object WHERE key = ?", (key.encode(),))
    return there


def expire(connection: sqlite3.Connection) -> bool:
    """Forget objects whose time is over, but not many at once; True where there were any."""
    over = connection.execute(
        "SELECT key, content FROM object WHERE expires <= ? LIMIT ?",
        (_microseconds(datetime.now(UTC)), _EXPIRED_AT_ONCE),
    ).fetchall()
    for key, content in over:
        _discard(connection, content)
        connection.execute("DELETE FROM object WHERE key = ?", (key,))
    return bool(over)


def names(connection: sqlite3.Connection, content: str) -> bool:
    """Whether an object has this content."""
    return connection.execute("SELECT 1 FROM object WHERE content = ?", (content,)).fetchone() is not None


def garbage(connection: sqlite3.Connection) -> list[str]:
    """Contents that no object has any more, and that may still lie in the store."""
    return [row[0] for row in connection.execute("SELECT content FROM garbage")]


def forget(connection: sqlite3.Connection, contents: Iterable[str]) -> None:
    """They are gone from the store."""
    connection.executemany("DELETE FROM garbage WHERE content = ?", [(name,) for name in contents])


def _content(connection: sqlite3.Connection, key: str) -> str | None:
    """The name of the content under a key, also where its time is over."""
    row = connection.execute("SELECT content FROM object WHERE key = ?", (key.encode(),)).fetchone()
    return None if row is None else row[0]


def _discard(connection: sqlite3.Connection, content: str | None) -> None:
    # Remembered in the same transaction, so that a process killed before it removes the content leaves no orphan.
    if content is not None:
        connection.execute("INSERT INTO garbage VALUES (?)", (content,))


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _entry(row: tuple[Any, ...]) -> BucketEntry:
    key, size, content, modified, content_type, checksum, metadata, expires = row
    return BucketEntry(
        key=key.decode(),
        size=size,
        etag=content,
        modified=_EPOCH + timedelta(microseconds=modified),
        content_type=content_type,
        checksum=checksum,
        metadata=json.loads(metadata),
        expires=None if expires is None else _EPOCH + timedelta(microseconds=expires),
    )
