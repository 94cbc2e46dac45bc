"""What is written when events are published, and deleted when nobody needs them: the durable log itself.

Every function here runs inside one transaction of its caller.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kmp_core.errors import Overloaded
from kmp_messaging.embedded.schema import LAST, SHIFT, rows_of

__all__ = ["Topic", "append", "backlog", "ensure_topic", "trim"]

_CACHED_KEYS = 10_000
_UNKEYED_RUN = 64
_TRIM_ROWS = 256


@dataclass(slots=True)
class Topic:
    """A topic as it is stored: its slots in the order of their partitions, and which of them a key belongs to."""

    id: int
    name: str
    slots: tuple[int, ...]
    keys: dict[str, int]
    turn: int = 0

    def next_turn(self) -> None:
        """Have the next events without a key begin a new run, in another slot."""
        self.turn = (self.turn // _UNKEYED_RUN + 1) * _UNKEYED_RUN

    def slot_of(self, key: str | None) -> int:
        """The slot of a key: the same in every process. Events without a key take turns."""
        if key is None:
            self.turn += 1
            return self.slots[self.turn // _UNKEYED_RUN % len(self.slots)]
        slot = self.keys.get(key)
        if slot is None:
            if len(self.keys) >= _CACHED_KEYS:
                self.keys.clear()
            slot = self.keys[key] = self.slots[zlib.crc32(key.encode()) % len(self.slots)]
        return slot


def ensure_topic(connection: sqlite3.Connection, name: str, partitions: int) -> Topic:
    """The topic of that name, created with so many partitions if it is new."""
    connection.execute("INSERT INTO topic (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
    number: int = connection.execute("SELECT id FROM topic WHERE name = ?", (name,)).fetchone()[0]
    select = "SELECT id FROM slot WHERE topic = ? ORDER BY partition"
    slots = tuple(row[0] for row in connection.execute(select, (number,)))
    if not slots:
        rows = [(number, partition) for partition in range(partitions)]
        connection.executemany("INSERT INTO slot (topic, partition) VALUES (?, ?)", rows)
        slots = tuple(row[0] for row in connection.execute(select, (number,)))
    return Topic(number, name, slots, {})


def append(connection: sqlite3.Connection, batches: Mapping[int, Sequence[bytes]]) -> None:
    """Write events to the end of their slots, in the given order."""
    packed = {slot: rows_of(contents) for slot, contents in batches.items()}
    sizes = {slot: sum(len(content) for _, content in rows) for slot, rows in packed.items()}
    counts = json.dumps([(slot, len(contents), sizes[slot]) for slot, contents in batches.items()])
    heads = connection.execute(
        "UPDATE slot SET head = head + j.value ->> 1, bytes = bytes + j.value ->> 2 FROM json_each(?) AS j"
        " WHERE slot.id = j.value ->> 0 RETURNING slot.id, head",
        (counts,),
    ).fetchall()
    now = time.time()
    rows = []
    for slot, head in heads:
        last = head - len(batches[slot])
        for count, content in packed[slot]:
            last += count
            rows.append((slot << SHIFT | last, count, now, content))
    connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", rows)


def backlog(connection: sqlite3.Connection, topics: Sequence[int], limit: int) -> None:
    """Raise `Overloaded` where a topic holds more bytes than allowed."""
    for topic in topics:
        size = connection.execute("SELECT sum(bytes) FROM slot WHERE topic = ?", (topic,)).fetchone()[0]
        if size > limit:
            name = connection.execute("SELECT name FROM topic WHERE id = ?", (topic,)).fetchone()[0]
            problem = f"The topic {name} holds {size} bytes of events that are not handled yet, {limit} are allowed"
            raise Overloaded(f"{problem}; nothing was written", retry_after=1.0, backend="sqlite")


def trim(connection: sqlite3.Connection, slot: int, *, older_than: float, size: int) -> bool:
    """Delete the oldest events of a slot that every known group has handled, and that are too old or too many.

    What no group has asked for yet is deleted by age alone: whoever reads it may only start later than who wrote it.
    A bounded number at a time; tells whether there is more to delete.
    """
    handled, head, tail, kept = connection.execute(
        "SELECT (SELECT min(position) FROM progress WHERE slot = s.id), s.head, s.tail, s.bytes"
        " FROM slot AS s WHERE s.id = ?",
        (slot,),
    ).fetchone()
    if handled is None:
        handled, size = head, kept
    rows = connection.execute(
        "SELECT id, published, length(content) FROM log WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",
        (slot << SHIFT | tail, slot << SHIFT | handled, _TRIM_ROWS),
    ).fetchall()
    last, freed = 0, 0
    for number, published, length in rows:
        if published >= older_than and kept - freed <= size:
            break
        last, freed = number, freed + length
    if not last:
        return False
    connection.execute("DELETE FROM log WHERE id > ? AND id <= ?", (slot << SHIFT | tail, last))
    connection.execute("UPDATE slot SET tail = ?, bytes = bytes - ? WHERE id = ?", (last & LAST, freed, slot))
    return last == rows[-1][0] and len(rows) == _TRIM_ROWS
