"""Who of a group handles what, and how far it came: membership with leases, fenced positions, attempts.

A member lives as long as its lease, or its process where that can be seen. Every slot has at most one owner, and its
generation grows with each new one: a member that was stopped, lost its slots and goes on, commits nothing any more.
Every function here runs inside one transaction of its caller.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from kmp_messaging.embedded.log import Topic
from kmp_messaging.embedded.schema import LAST, SHIFT

__all__ = ["Claim", "Division", "Mark", "Row", "advance", "divide", "ensure_group", "fetch", "leave", "release"]

Row = tuple[int, int, float, bytes]
"""A row of the log: number, how many events, when published, content."""

Mark = tuple[int, int, int]
"""How far a member came: slot, generation, position."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot that a member owns from now on.

    Events up to `suspect` were with two owners in a row that did not let the slot go: that were killed, mostly.
    `deaths` counts for an event how many were killed while it was handled alone.
    """

    slot: int
    generation: int
    position: int
    suspect: int
    attempts: dict[int, int]
    deaths: dict[int, int]


@dataclass(frozen=True, slots=True)
class Division:
    """What a member has to do for its fair share: what it gained, what it holds, and what it should let go."""

    epoch: int
    claims: list[Claim]
    held: dict[int, int]
    surplus: set[int]
    complete: bool


def ensure_group(connection: sqlite3.Connection, name: str, topic: Topic) -> int:
    """The group of that name; a new one begins with the oldest event that is kept."""
    connection.execute(
        "INSERT INTO consumer_group (name, topic) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, topic.id)
    )
    select = "SELECT id FROM consumer_group WHERE name = ? AND topic = ?"
    number: int = connection.execute(select, (name, topic.id)).fetchone()[0]
    connection.execute(
        "INSERT INTO progress (consumer_group, slot, position, dispatched, inherited)"
        " SELECT ?, id, tail, tail, tail FROM slot WHERE topic = ? ON CONFLICT DO NOTHING",
        (number, topic.id),
    )
    return number


def divide(
    connection: sqlite3.Connection,
    group: int,
    member: str,
    *,
    active: Collection[int],
    process: str,
    alive: Callable[[str], bool],
    now: float,
    lease: float,
) -> Division:
    """Renew the member's lease, bury the dead, and take what is free of the member's share.

    `active` are the slots that the member knows to hold; what it gave up locally it may claim anew.
    """
    members = connection.execute(
        "SELECT id, process, expires FROM member WHERE consumer_group = ?", (group,)
    ).fetchall()
    # The clock counts from the machine's start: a lease that ends impossibly late was given before.
    dead = [m for m, p, end in members if m != member and (not now < end < now + 100 * lease or not alive(p))]
    changed = bool(dead) or all(m != member for m, _, _ in members)
    for gone in dead:
        _remove(connection, group, gone)
    connection.execute(
        "INSERT INTO member VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET expires = excluded.expires",
        (member, group, process, now + lease),
    )
    if changed:
        connection.execute("UPDATE consumer_group SET epoch = epoch + 1 WHERE id = ?", (group,))
    ranks = sorted({m for m, _, _ in members} - set(dead) | {member})
    slots = connection.execute(
        "SELECT slot, generation, owner FROM progress WHERE consumer_group = ? ORDER BY slot", (group,)
    ).fetchall()
    share = {row[0] for row in slots[ranks.index(member) :: len(ranks)]}
    free = [
        slot
        for slot, _, owner in slots
        if slot in share and (owner is None or (owner == member and slot not in active))
    ]
    held = {slot: generation for slot, generation, owner in slots if owner == member}
    claims = [_claim(connection, group, member, slot) for slot in free]
    epoch: int = connection.execute("SELECT epoch FROM consumer_group WHERE id = ?", (group,)).fetchone()[0]
    complete = share <= set(held) | set(free)
    return Division(epoch, claims, held, set(held) - share, complete)


def _claim(connection: sqlite3.Connection, group: int, member: str, slot: int) -> Claim:
    # What the last owner had in hand is noted here for the case that this one is killed too, so a first death costs
    # nothing: the same events are handled once more as if nothing had happened.
    suspect: int = connection.execute(
        "SELECT inherited FROM progress WHERE consumer_group = ? AND slot = ?", (group, slot)
    ).fetchone()[0]
    generation, position = connection.execute(
        "UPDATE progress SET owner = ?, generation = generation + 1, inherited = dispatched"
        " WHERE consumer_group = ? AND slot = ? RETURNING generation, position",
        (member, group, slot),
    ).fetchone()
    attempts, deaths = (
        dict(
            connection.execute(
                f"SELECT position, count FROM {table} WHERE consumer_group = ? AND slot = ? AND position > ?",  # noqa: S608
                (group, slot, position),
            ).fetchall()
        )
        for table in ("attempt", "death")
    )
    return Claim(slot, generation, position, suspect, attempts, deaths)


def _remove(connection: sqlite3.Connection, group: int, member: str) -> None:
    connection.execute("UPDATE progress SET owner = NULL WHERE consumer_group = ? AND owner = ?", (group, member))
    connection.execute("DELETE FROM member WHERE id = ?", (member,))


def fetch(
    connection: sqlite3.Connection, slots: Sequence[tuple[int, int]], *, events: int, size: int
) -> tuple[list[Row], bool]:
    """Rows behind the position fetched of each slot, in the order of the slots, and whether there may be more."""
    starts = json.dumps([slot << SHIFT | fetched for slot, fetched in slots])
    # CROSS JOIN keeps the order of the slots: the one named first is read first.
    cursor = connection.execute(
        "SELECT log.* FROM json_each(?) AS j CROSS JOIN log WHERE log.id > j.value AND log.id <= (j.value | ?)",
        (starts, LAST),
    )
    rows: list[Row] = []
    for row in cursor:
        rows.append(row)
        events -= row[1]
        size -= len(row[3])
        if events <= 0 or size <= 0:
            cursor.close()
            return rows, True
    return rows, False


def advance(
    connection: sqlite3.Connection, group: int, marks: Sequence[Mark], dispatched: dict[int, int], attempted: bool
) -> set[int]:
    """Commit positions and note what is about to be handled; returns the slots that the member has lost."""
    values = json.dumps([(*mark, dispatched.get(mark[0], 0)) for mark in marks])
    changed = connection.execute(
        "UPDATE progress SET position = max(position, j.value ->> 2),"
        " dispatched = max(dispatched, j.value ->> 2, j.value ->> 3)"
        " FROM json_each(?2) AS j WHERE consumer_group = ?1 AND slot = j.value ->> 0 AND generation = j.value ->> 1",
        (group, values),
    ).rowcount
    if attempted:
        for table in ("attempt", "death"):
            connection.executemany(
                f"DELETE FROM {table} WHERE consumer_group = ? AND slot = ? AND position <= ?",  # noqa: S608
                [(group, slot, position) for slot, _, position in marks],
            )
    if changed == len(marks):
        return set()
    owned = set(
        connection.execute("SELECT slot, generation FROM progress WHERE consumer_group = ?", (group,)).fetchall()
    )
    return {slot for slot, generation, _ in marks if (slot, generation) not in owned}


def release(connection: sqlite3.Connection, group: int, member: str, marks: Sequence[Mark]) -> None:
    """Commit for the last time and let the slots go; nothing of them is in a handler any more."""
    for slot, generation, position in marks:
        connection.execute(
            "UPDATE progress SET owner = NULL, position = max(position, ?1), dispatched = max(position, ?1),"
            " inherited = max(position, ?1) WHERE consumer_group = ?2 AND slot = ?3 AND generation = ?4 AND owner = ?5",
            (position, group, slot, generation, member),
        )
    connection.execute("UPDATE consumer_group SET epoch = epoch + 1 WHERE id = ?", (group,))


def leave(connection: sqlite3.Connection, group: int, member: str, marks: Collection[Mark]) -> None:
    """Release everything and be no member any more."""
    release(connection, group, member, list(marks))
    _remove(connection, group, member)
