"""What one member of a group holds: its lease, its slots, and the last word about how far it came in each.

A member that was stopped beyond its lease finds its slots gone when it goes on: it hands out nothing any more, and its
commits are refused.
"""

from __future__ import annotations

import sqlite3
import time

from kmp_core.deadlines import Timeout
from kmp_messaging.embedded import groups
from kmp_messaging.embedded.groups import Division
from kmp_messaging.embedded.log import Topic
from kmp_messaging.embedded.partition import Partition
from kmp_messaging.embedded.process import alive, this_process
from kmp_messaging.embedded.store import Store
from kmp_messaging.identifiers import new_id

__all__ = ["Membership"]

_BEATS = 3


class Membership:
    """A member of one group in one topic, from joining to leaving. `size` is the bytes of the events it holds."""

    def __init__(self, store: Store, topic: Topic, group: int, lease: float) -> None:
        self.topic = topic
        self.group = group
        self.partitions: dict[int, Partition] = {}
        self.size = 0
        self.lease_ends = 0.0
        self.next_beat = 0.0
        self._store = store
        self._lease = lease
        self._member = new_id()
        self._leaving: dict[int, Partition] = {}
        self._epoch = -1

    @classmethod
    async def join(cls, store: Store, topic: str, group: str, lease: float) -> Membership:
        """Become a member; what it holds is decided by the first `renew`."""
        found = await store.topic(topic)
        number = await store.write(lambda c: groups.ensure_group(c, group, found))
        return cls(store, found, number, lease)

    async def look(self) -> bool:
        """See what others did: whether the members changed, and whether there are events that were not fetched."""

        def work(connection: sqlite3.Connection) -> tuple[int, dict[int, int]]:
            epoch = connection.execute("SELECT epoch FROM consumer_group WHERE id = ?", (self.group,)).fetchone()
            heads = connection.execute("SELECT id, head FROM slot WHERE topic = ?", (self.topic.id,)).fetchall()
            return epoch[0], dict(heads)

        epoch, heads = await self._store.read(work)
        if epoch != self._epoch:
            self.next_beat = 0.0
        return any(heads[partition.slot] > partition.fetched for partition in self.partitions.values())

    def renewal_due(self, now: float) -> bool:
        """Whether the lease wants a sign of life."""
        return now >= self.next_beat or now >= self.lease_ends

    async def renew(self) -> bool:
        """Give a sign of life and take the fair share of the slots; whether there are new ones."""
        now = time.monotonic()
        active = {slot for slot, partition in self.partitions.items() if partition.active} | set(self._leaving)

        def work(connection: sqlite3.Connection) -> Division:
            return groups.divide(
                connection,
                self.group,
                self._member,
                active=active,
                process=this_process(),
                alive=alive,
                now=now,
                lease=self._lease,
            )

        division = await self._store.write(work)
        for slot, partition in tuple(self.partitions.items()):
            if not partition.active or division.held.get(slot) != partition.generation:
                self.lose(slot)
            elif slot in division.surplus:
                self._leaving[slot] = self.partitions.pop(slot)
                self.size -= partition.discard()
        for claim in division.claims:
            self.partitions[claim.slot] = Partition(claim)
        self._epoch = division.epoch
        self.next_beat = now + self._lease / _BEATS
        # The lease is over for us before it is for others.
        self.lease_ends = now + self._lease * 0.9
        return bool(division.claims)

    def lose(self, slot: int) -> None:
        """Somebody else owns the slot now."""
        partition = self.partitions.pop(slot, None)
        if partition is not None:
            self.size -= partition.discard()
            self.next_beat = 0.0

    async def release(self) -> None:
        """Let go of what others are to have, as soon as no handler has anything of it."""
        free = [partition for partition in self._leaving.values() if not partition.running]
        if not free:
            return
        marks = [partition.mark for partition in free]
        await self._store.write(lambda c: groups.release(c, self.group, self._member, marks))
        for partition in free:
            del self._leaving[partition.slot]
        self.next_beat = 0.0

    async def leave(self, timeout: Timeout) -> None:
        """Commit for the last time, and let everything go; no handler may be at work any more."""
        marks = [partition.mark for partition in (*self.partitions.values(), *self._leaving.values())]
        for partition in self.partitions.values():
            partition.discard()
        await self._store.write(lambda c: groups.leave(c, self.group, self._member, marks), timeout=timeout)
