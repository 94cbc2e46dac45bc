"""The tables of the embedded bus, and the names of the places in them.

A topic is divided into slots, one for each partition. Positions in a slot count events from 1 without gaps, in the
order of commit. A row of the log holds a batch of events of one slot, one to a line, and its number is the slot's with
the position of its last event, so that reading a slot from a position is one range of the primary key.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LAST", "MIGRATIONS", "SHIFT", "rows_of"]

SHIFT = 40
LAST = (1 << SHIFT) - 1

_LARGEST_ROW = 256 * 1024
_LONGEST_ROW = 500

MIGRATIONS = (
    """
    CREATE TABLE topic (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE slot (
        id INTEGER PRIMARY KEY,
        topic INTEGER NOT NULL REFERENCES topic,
        partition INTEGER NOT NULL,
        head INTEGER NOT NULL DEFAULT 0,
        tail INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        UNIQUE (topic, partition)
    ) STRICT;
    CREATE TABLE log (
        id INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,
        published REAL NOT NULL,
        content BLOB NOT NULL
    ) STRICT;
    CREATE TABLE consumer_group (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        topic INTEGER NOT NULL REFERENCES topic,
        epoch INTEGER NOT NULL DEFAULT 0,
        UNIQUE (name, topic)
    ) STRICT;
    CREATE TABLE member (
        id TEXT PRIMARY KEY,
        consumer_group INTEGER NOT NULL REFERENCES consumer_group,
        process TEXT NOT NULL,
        expires REAL NOT NULL
    ) STRICT;
    CREATE TABLE progress (
        consumer_group INTEGER NOT NULL REFERENCES consumer_group,
        slot INTEGER NOT NULL REFERENCES slot,
        position INTEGER NOT NULL,
        dispatched INTEGER NOT NULL,
        generation INTEGER NOT NULL DEFAULT 0,
        owner TEXT,
        PRIMARY KEY (consumer_group, slot)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE attempt (
        consumer_group INTEGER NOT NULL,
        slot INTEGER NOT NULL,
        position INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (consumer_group, slot, position)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE dead_letter (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        event TEXT NOT NULL,
        topic TEXT NOT NULL,
        consumer_group TEXT NOT NULL,
        type TEXT NOT NULL,
        key TEXT,
        content BLOB NOT NULL,
        cause TEXT NOT NULL,
        detail TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        origin TEXT NOT NULL,
        traceparent TEXT,
        time REAL NOT NULL,
        UNIQUE (consumer_group, origin)
    ) STRICT;
    """,
    """
    ALTER TABLE progress ADD COLUMN inherited INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE death (
        consumer_group INTEGER NOT NULL,
        slot INTEGER NOT NULL,
        position INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (consumer_group, slot, position)
    ) STRICT, WITHOUT ROWID;
    """,
)


def rows_of(contents: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Pack the events of one slot into rows of bounded size, each with the number of its events."""
    if len(contents) <= _LONGEST_ROW:
        joined = b"\n".join(contents)
        if len(joined) <= _LARGEST_ROW and joined.count(b"\n") == len(contents) - 1:
            return [(len(contents), joined)]
    return _split_rows(contents)


def _split_rows(contents: Sequence[bytes]) -> list[tuple[int, bytes]]:
    rows: list[tuple[int, bytes]] = []
    pending: list[bytes] = []
    size = 0
    for content in contents:
        # A line break would end the event early; JSON has none outside of text, where it is escaped.
        alone = b"\n" in content
        if pending and (alone or size + len(content) > _LARGEST_ROW or len(pending) >= _LONGEST_ROW):
            rows.append((len(pending), b"\n".join(pending)))
            pending, size = [], 0
        if alone:
            rows.append((1, content))
        else:
            pending.append(content)
            size += len(content)
    if pending:
        rows.append((len(pending), b"\n".join(pending)))
    return rows
