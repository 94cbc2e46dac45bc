"""Questions about a group that change nothing. Every function here runs on one snapshot."""

from __future__ import annotations

import sqlite3
import time

from kmp_messaging.embedded.schema import LAST, SHIFT
from kmp_messaging.values import Lag

__all__ = ["read_lag"]


def read_lag(connection: sqlite3.Connection, topic: str, group: str) -> Lag:
    """How far a group is behind; a group that nobody has met is behind by all that is kept."""
    rows = connection.execute(
        "SELECT s.id, s.head, max(s.tail, coalesce(p.position, s.tail))"
        " FROM topic AS t JOIN slot AS s ON s.topic = t.id"
        " LEFT JOIN consumer_group AS g ON g.topic = t.id AND g.name = ?"
        " LEFT JOIN progress AS p ON p.consumer_group = g.id AND p.slot = s.id WHERE t.name = ?",
        (group, topic),
    ).fetchall()
    events, oldest = 0, None
    for slot, head, position in rows:
        if head <= position:
            continue
        events += head - position
        found = connection.execute(
            "SELECT published FROM log WHERE id > ? AND id <= ? ORDER BY id LIMIT 1",
            (slot << SHIFT | position, slot << SHIFT | LAST),
        ).fetchone()
        if found is not None and (oldest is None or found[0] < oldest):
            oldest = found[0]
    return Lag(events, 0.0 if oldest is None else max(0.0, time.time() - oldest))
