"""One table per series, made on first use and evolved by addition alone.

The catalogue tells what a series' table holds, so that a class which does not fit is refused with advice before
anything is written. Every function here runs inside a transaction.
"""

from __future__ import annotations

import json
import sqlite3
from datetime import timedelta
from typing import Any

from kmp_storage.columns import SQL_TYPES, kept_kind
from kmp_storage.series.codec import Codec
from kmp_storage.series.shape import Series, check, declared_fields, quoted

__all__ = [
    "MIGRATIONS",
    "find",
    "prepare",
    "table",
    "unique_index",
]

MIGRATIONS = (
    """
    CREATE TABLE series (
        name TEXT PRIMARY KEY,
        fields TEXT NOT NULL,      -- JSON: name to [kind, may be missing]
        tags TEXT NOT NULL,        -- JSON
        unique_fields TEXT NOT NULL,  -- JSON
        retention INTEGER          -- microseconds
    ) STRICT, WITHOUT ROWID
    """,
)


def table(series: str) -> str:
    """The table of a series, already quoted; the prefix keeps it apart from ours and SQLite's own."""
    return quoted(f"series_{series}")


def unique_index(codec: Codec[Any]) -> str:
    """The columns of the key, for SQL."""
    return ", ".join(map(quoted, ("time", *codec.unique)))


def find(connection: sqlite3.Connection, series: str) -> Series | None:
    """What is known of a series, or None before its first use."""
    row = connection.execute(
        "SELECT fields, tags, unique_fields, retention FROM series WHERE name = ?", (series,)
    ).fetchone()
    if row is None:
        return None
    fields = {name: (kind, missing) for name, (kind, missing) in json.loads(row[0]).items()}
    return Series(fields, tuple(json.loads(row[1])), tuple(json.loads(row[2])), row[3])


def prepare(connection: sqlite3.Connection, codec: Codec[Any]) -> None:
    """Make or extend the table, under the write lock. Raises `Conflict` where the class does not fit what is stored."""
    stored = find(connection, codec.series)
    declared = declared_fields(codec)
    if stored is None:
        _create(connection, codec)
        _save(connection, codec, declared)
        return
    check(codec, stored)
    for name, (kind, _) in declared.items():
        if name not in stored.fields:
            connection.execute(f"ALTER TABLE {table(codec.series)} ADD COLUMN {quoted(name)} {SQL_TYPES[kind]}")
    _index_tags(connection, codec)
    # A field of another version of the class stays known; one that both have got looser at most, by `check`.
    _save(connection, codec, {**stored.fields, **declared})


def _create(connection: sqlite3.Connection, codec: Codec[Any]) -> None:
    columns = [
        f"{quoted(field.name)} {SQL_TYPES[kept_kind(field)]}{' NOT NULL' if field.name == 'time' else ''}"
        for field in codec.fields.values()
    ]
    name = table(codec.series)
    connection.execute(f"CREATE TABLE {name} ({', '.join(columns)}) STRICT")
    if codec.unique:
        connection.execute(f'CREATE UNIQUE INDEX "key_{codec.series}" ON {name} ({unique_index(codec)})')
    else:
        connection.execute(f'CREATE INDEX "time_{codec.series}" ON {name} ("time")')
    _index_tags(connection, codec)


def _index_tags(connection: sqlite3.Connection, codec: Codec[Any]) -> None:
    for tag in codec.tags:
        connection.execute(
            f'CREATE INDEX IF NOT EXISTS "tag_{codec.series}.{tag}" ON {table(codec.series)} ({quoted(tag)}, "time")'
        )


def _save(connection: sqlite3.Connection, codec: Codec[Any], fields: dict[str, tuple[str, bool]]) -> None:
    retention = None if codec.retention is None else codec.retention // timedelta(microseconds=1)
    connection.execute(
        "INSERT OR REPLACE INTO series VALUES (?, ?, ?, ?, ?)",
        (codec.series, json.dumps(fields), json.dumps(codec.tags), json.dumps(codec.unique), retention),
    )
