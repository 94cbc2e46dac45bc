"""One transaction that commits what was handled and fetches what comes next, as often as there is either."""

from __future__ import annotations

import sqlite3
import time
from itertools import repeat

from kmp_core.telemetry import Telemetry
from kmp_messaging.embedded import groups
from kmp_messaging.embedded.groups import Mark, Row
from kmp_messaging.embedded.membership import Membership
from kmp_messaging.embedded.schema import LAST, SHIFT
from kmp_messaging.embedded.store import Store
from kmp_messaging.embedded.workers import Workers
from kmp_messaging.settings import BusSettings

__all__ = ["Fetching"]


class Fetching:
    """What a member takes in, within its bounds, and hands to its workers. `behind`: there may be more to fetch."""

    def __init__(
        self, store: Store, settings: BusSettings, telemetry: Telemetry, membership: Membership, workers: Workers
    ) -> None:
        self.behind = True
        self._store = store
        self._telemetry = telemetry
        self._membership = membership
        self._workers = workers
        self._most_events = settings.in_flight_events
        self._most_bytes = int(settings.in_flight_size)
        self._interval = settings.commit_interval.total_seconds()
        self._committed_at = 0.0
        self._turn = 0

    def due(self, now: float) -> bool:
        """Whether there is something to fetch with room for it, or something to commit that has waited long enough."""
        for partition in self._membership.partitions.values():
            self._membership.size -= partition.freed()
        return self._may_fetch() or (now >= self._committed_at + self._interval and self._uncommitted())

    def next_commit(self) -> float | None:
        """When the next commit is due; None where there is nothing to commit."""
        return self._committed_at + self._interval if self._uncommitted() else None

    def _uncommitted(self) -> bool:
        return any(partition.done > partition.committed for partition in self._membership.partitions.values())

    def _may_fetch(self) -> bool:
        return (
            self.behind
            and len(self._workers.ready) <= self._most_events // 4
            and self._room() > 0
            and self._membership.size < self._most_bytes
        )

    def _room(self) -> int:
        return self._most_events - sum(partition.held for partition in self._membership.partitions.values())

    def _wanted(self) -> list[tuple[int, int]]:
        # One key that is being retried holds up its slot, so no slot may fill all of the room.
        most = self._most_events // 2
        slots = [(p.slot, p.fetched) for p in self._membership.partitions.values() if p.active and p.held < most]
        self._turn += 1
        first = self._turn % len(slots) if slots else 0
        return slots[first:] + slots[:first]

    async def run(self) -> None:
        """Commit, and fetch where there is room."""
        partitions = self._membership.partitions
        marks = {slot: p.mark for slot, p in partitions.items() if p.active}
        handled = {slot for slot, p in partitions.items() if p.active and p.done > p.committed}
        wanted = self._wanted() if self._may_fetch() else []
        attempted = any(partitions[slot].attempts or partitions[slot].deaths for slot in handled)
        room, size = self._room(), self._most_bytes - self._membership.size

        def work(connection: sqlite3.Connection) -> tuple[list[Row], bool, set[int]]:
            rows, more = groups.fetch(connection, wanted, events=room, size=size) if wanted else ([], False)
            dispatched = {row[0] >> SHIFT: row[0] & LAST for row in rows}
            changed = [marks[slot] for slot in handled | dispatched.keys()]
            group = self._membership.group
            lost = groups.advance(connection, group, changed, dispatched, attempted) if changed else set()
            return rows, more, lost

        if not wanted:
            _, _, lost = await self._store.write(work)
            self._committed(handled, marks, lost)
            return
        self.behind = False  # before the look: whoever publishes meanwhile sets it again
        try:
            with self._telemetry.call("receive") as call:
                rows, more, lost = await self._store.write(work)
                if call is not None:
                    call.has_count(sum(row[1] for row in rows))
        except BaseException:
            self.behind = True
            raise
        self._committed(handled, marks, lost)
        self.behind = self.behind or more
        self._hand_out(rows)

    def _committed(self, handled: set[int], marks: dict[int, Mark], lost: set[int]) -> None:
        self._committed_at = time.monotonic()
        for slot in handled & self._membership.partitions.keys():
            self._membership.partitions[slot].commit(marks[slot][2])
        for slot in lost:
            self._membership.lose(slot)

    def _hand_out(self, rows: list[Row]) -> None:
        ready = self._workers.ready
        for number, count, _, content in rows:
            partition, last = self._membership.partitions.get(number >> SHIFT), number & LAST
            if partition is None:
                continue
            contents = [content] if count == 1 else content.split(b"\n")
            if len(contents) != count:
                # Damaged: each of its positions becomes a dead letter, the first with the bytes as they are.
                contents = [content, *repeat(b"", count - 1)]
            first = last - count + 1
            skipped = max(0, partition.fetched + 1 - first)
            positions = range(first + skipped, last + 1)
            ready.extend(zip(repeat(partition), positions, contents[skipped:], strict=False))
            partition.took(last, len(content))
            self._membership.size += len(content)
        if rows:
            self._workers.wake()
