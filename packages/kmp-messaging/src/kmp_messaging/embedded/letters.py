"""What is stored about failures: attempts, which outlive the process, and dead letters.

Every function here runs inside one transaction of its caller, and writes only for who still owns the slot.
"""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kmp_messaging.values import DeadLetter

__all__ = ["Attempt", "Burial", "bury", "count_attempts", "forget_death", "note_death", "read_letters"]

_OWNED = "WHERE EXISTS (SELECT 1 FROM progress AS p WHERE p.consumer_group = ? AND p.slot = ? AND p.generation = ?)"


@dataclass(frozen=True, slots=True)
class Attempt:
    """How often an event was tried so far."""

    slot: int
    generation: int
    position: int
    count: int


@dataclass(frozen=True, slots=True)
class Burial:
    """A dead letter that is to be stored."""

    slot: int
    generation: int
    position: int
    event: str
    topic: str
    group: str
    type: str
    key: str | None
    content: bytes
    cause: str
    detail: str
    attempts: int
    source: str | None
    traceparent: str | None


def count_attempts(connection: sqlite3.Connection, group: int, attempts: list[Attempt]) -> bool:
    """Remember attempts; False where a slot belongs to somebody else now."""
    return _remember(connection, "attempt", group, attempts)


def note_death(connection: sqlite3.Connection, group: int, attempt: Attempt) -> bool:
    """Count a death that has not come yet; whoever survives takes it back. False where the slot is lost."""
    return _remember(connection, "death", group, [attempt])


def _remember(connection: sqlite3.Connection, table: str, group: int, attempts: list[Attempt]) -> bool:
    # One statement for a whole batch: five hundred would cost milliseconds.
    rows = json.dumps([(a.slot, a.position, a.count, a.generation) for a in attempts])
    statement = (
        f"INSERT INTO {table} SELECT ?1, j.value ->> 0, j.value ->> 1, j.value ->> 2"  # noqa: S608 - one of ours
        " FROM json_each(?2) AS j CROSS JOIN progress AS p ON p.consumer_group = ?1 AND p.slot = j.value ->> 0"
        " AND p.generation = j.value ->> 3 WHERE true ON CONFLICT DO UPDATE SET count = excluded.count"
    )
    return connection.execute(statement, (group, rows)).rowcount == len(attempts)


def forget_death(connection: sqlite3.Connection, group: int, slot: int, position: int) -> bool:
    """The process has survived the event."""
    statement = "DELETE FROM death WHERE consumer_group = ? AND slot = ? AND position = ?"
    return connection.execute(statement, (group, slot, position)).rowcount == 1


def bury(connection: sqlite3.Connection, group: int, letter: Burial) -> bool:
    """Store a dead letter, once; False where the slot belongs to somebody else now."""
    partition: int
    (partition,) = connection.execute("SELECT partition FROM slot WHERE id = ?", (letter.slot,)).fetchone()
    origin = f"{letter.topic}/{partition}/{letter.position}"
    if letter.source:
        origin += f" from {letter.source}"
    owner = (group, letter.slot, letter.generation)
    if connection.execute(f"SELECT 1 {_OWNED}", owner).fetchone() is None:
        return False
    connection.execute(
        "INSERT INTO dead_letter (event, topic, consumer_group, type, key, content, cause, detail, attempts, origin,"
        " traceparent, time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            letter.event,
            letter.topic,
            letter.group,
            letter.type,
            letter.key,
            letter.content,
            letter.cause,
            letter.detail,
            letter.attempts,
            origin,
            letter.traceparent,
            time.time(),
        ),
    )
    for table in ("attempt", "death"):
        connection.execute(
            f"DELETE FROM {table} WHERE consumer_group = ? AND slot = ? AND position = ?",  # noqa: S608
            (group, letter.slot, letter.position),
        )
    return True


def read_letters(
    connection: sqlite3.Connection, after: int, *, topic: str | None, group: str | None, limit: int
) -> tuple[int, list[DeadLetter]]:
    """Dead letters behind a number, oldest first, with the number of the last."""
    rows = connection.execute(
        "SELECT id, event, topic, consumer_group, type, key, content, cause, detail, attempts, origin, traceparent,"
        " time FROM dead_letter WHERE id > ?1 AND (?2 IS NULL OR topic = ?2) AND (?3 IS NULL OR consumer_group = ?3)"
        " ORDER BY id LIMIT ?4",
        (after, topic, group, limit),
    ).fetchall()
    letters = [_letter(row) for row in rows]
    return (rows[-1][0] if rows else after), letters


def _letter(row: tuple[Any, ...]) -> DeadLetter:
    return DeadLetter(
        id=row[1],
        topic=row[2],
        group=row[3],
        type=row[4],
        key=row[5],
        content=row[6],
        cause=row[7],
        detail=row[8],
        attempts=row[9],
        origin=row[10],
        traceparent=row[11],
        time=datetime.fromtimestamp(row[12], UTC),
    )
