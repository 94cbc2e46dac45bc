"""The SQL of writing: rows that count once, a conflict that is told, and rows whose time is over."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from operator import length_hint
from typing import Any

from kmp_core.errors import Conflict
from kmp_storage.columns import from_microseconds
from kmp_storage.embedded.timeseries.schema import table, unique_index
from kmp_storage.series.codec import Codec
from kmp_storage.series.shape import quoted

__all__ = ["delete_older", "insert", "insert_statement"]

_DELETED_AT_ONCE = 20_000


def insert_statement(codec: Codec[Any]) -> str:
    """An insert that ignores the same row again, and fails where the key has other values.

    The failure is an update that sets the time to NULL, which the table refuses; that needs no look-up per row.
    """
    columns = ", ".join(map(quoted, codec.columns))
    marks = ", ".join("?" * len(codec.columns))
    sql = f"INSERT INTO {table(codec.series)} ({columns}) VALUES ({marks})"  # noqa: S608 - names are allow-listed
    if not codec.unique:
        return sql
    others = [name for name in codec.columns if name != "time" and name not in codec.unique]
    differs = " OR ".join(f"{quoted(name)} IS NOT excluded.{quoted(name)}" for name in others) or "FALSE"
    return f'{sql} ON CONFLICT ({unique_index(codec)}) DO UPDATE SET "time" = NULL WHERE {differs}'


def insert(
    connection: sqlite3.Connection, codec: Codec[Any], statement: str, rows: list[tuple[Any, ...]], first_row: int = 0
) -> int:
    """Store rows and return how many were new. Raises `Conflict` naming the row."""
    before = connection.total_changes
    pending = iter(rows)
    try:
        connection.executemany(statement, pending)
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_NOTNULL:
            raise
        position = len(rows) - length_hint(pending) - 1
        raise _conflict(codec, rows[position], first_row + position) from None
    return connection.total_changes - before


def delete_older(connection: sqlite3.Connection, series: str, before: int) -> bool:
    """Delete a bounded number of rows older than `before`; True where more may be left."""
    name = table(series)
    cursor = connection.execute(
        f"DELETE FROM {name} WHERE _rowid_ IN "  # noqa: S608 - the name is from the catalogue
        f'(SELECT _rowid_ FROM {name} WHERE "time" < ? ORDER BY "time" LIMIT {_DELETED_AT_ONCE})',
        (before,),
    )
    return cursor.rowcount == _DELETED_AT_ONCE


def _conflict(codec: Codec[Any], row: Sequence[Any], position: int) -> Conflict:
    values = dict(zip(codec.columns, row, strict=True))
    key = ", ".join(f"{name}={values[name]!r}" for name in codec.unique)
    time = from_microseconds(values["time"]).isoformat()
    return Conflict(
        f"row {position}: series {codec.series!r} has a row for {time}, {key} already, with other values; "
        "nothing was written",
        key=f"{time}, {key}",
    )
