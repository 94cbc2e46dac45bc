"""Values that this process keeps beside Redis, bounded by bytes, and only for as long as it hears of changes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Coroutine
from typing import Any

from kmp_core.errors import KmpError
from kmp_storage.redis.channel import Channel
from kmp_storage.redis.cluster import Servers
from kmp_storage.redis.entries import Found, Keys

__all__ = ["Near", "Reservation"]

_OVERHEAD_BYTES = 250
"""What an entry costs beside its key and its value: a tuple, a number, places in a dictionary."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Reservation:
    """A read that is under way: what it brings is not kept where its key was changed meanwhile."""

    __slots__ = ("settled", "spoilt")

    def __init__(self) -> None:
        self.settled = False
        self.spoilt = False


class Near:
    """Two generations of entries: when the young one is full it becomes the old one, and the old one goes.

    Nothing is kept or served while `live` is False, which is whenever the project's channel is not heard.
    """

    def __init__(self, *, max_bytes: int, ttl: float) -> None:
        self.young: dict[str, tuple[float, bytes]] = {}
        self._old: dict[str, tuple[float, bytes]] = {}
        self._limit = max_bytes // 2
        self._ttl = ttl
        self._young_bytes = self._old_bytes = 0
        self._reserved: dict[str, list[Reservation]] = {}
        self.live = False

    @property
    def bytes_used(self) -> int:
        """What is kept takes at most this much."""
        return self._young_bytes + self._old_bytes

    def find(self, key: str) -> bytes | None:
        """The value, where it is kept and its time is not over."""
        entry = self.young.get(key)
        if entry is None:
            entry = self._old.get(key)
            if entry is None:
                return None
            self._put(key, entry)
        return entry[1] if entry[0] > time.monotonic() else None

    def reserve(self, key: str) -> Reservation:
        """Announce a read before it is sent; `settle` must follow."""
        reservation = Reservation()
        if not self.live:
            reservation.spoilt = True  # what it brings may be older than the first change that is heard
            return reservation
        self._reserved.setdefault(key, []).append(reservation)
        return reservation

    def settle(self, key: str, reservation: Reservation, found: Found | None) -> None:
        """Keep what the read brought until it is due for its refresh, unless the key was changed meanwhile."""
        reservation.settled = True
        others = self._reserved.get(key)
        if others is not None and not reservation.spoilt:
            others.remove(reservation)
            if not others:
                del self._reserved[key]
        if found is None or found.is_due or reservation.spoilt or not self.live:
            return
        left = self._ttl if found.left is None else min(self._ttl, found.left - (found.due or 0.0))
        self._put(key, (time.monotonic() + left, found.value))

    def drop(self, *keys: str) -> None:
        """Forget what was changed, and what reads under way may still bring of it."""
        for key in keys:
            self._forget(key)
            for reservation in self._reserved.pop(key, ()):
                reservation.spoilt = True

    def clear(self) -> None:
        """Forget everything."""
        self.young.clear()
        self._old.clear()
        self._young_bytes = self._old_bytes = 0
        for reservation in (one for reservations in self._reserved.values() for one in reservations):
            reservation.spoilt = True
        self._reserved.clear()

    async def listen(self, servers: Servers, keys: Keys, *, tracking: bool, connect_timeout: float) -> None:
        """Hear of changes for ever: live while they are heard, empty from the moment in which they are not."""
        command = keys.tracked if tracking else ("SUBSCRIBE", keys.channel)
        pause = _FIRST_PAUSE
        while True:
            heard: list[Channel] = []
            with contextlib.suppress(KmpError):
                try:
                    for server in await servers.speakers(every=tracking):
                        heard.append(await server.listen(command, seconds=connect_timeout))
                    self.live, pause = True, _FIRST_PAUSE
                    await _first(servers.moved(), *(self._hear(channel, keys) for channel in heard))
                finally:
                    self.live = False
                    self.clear()
                    for channel in heard:
                        channel.discard()
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreads processes, no secret
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _hear(self, channel: Channel, keys: Keys) -> None:
        while True:
            said = await channel.heard(self._ttl)
            if said is None:
                # Silence is suspicious: a peer that is gone says nothing either. What is kept ends by itself meanwhile.
                await channel.say(("PING",))
                if await channel.heard(self._ttl) is None:
                    return
            elif isinstance(said, list) and len(said) == 3 and said[0] == b"message":
                self.drop(*said[2].decode(errors="replace").split("\n"))
            elif isinstance(said, list) and len(said) == 2 and said[0] == b"invalidate":
                self._changed(said[1], keys)

    def _changed(self, names: list[bytes] | None, keys: Keys) -> None:
        if names is None:  # the whole database was flushed
            self.clear()
        else:
            self.drop(*(key for name in names if (key := keys.key_of(name)) is not None))

    def _put(self, key: str, entry: tuple[float, bytes]) -> None:
        self._forget(key)
        size = _size(key, entry)
        if size > self._limit:
            return
        if self._young_bytes + size > self._limit:
            self._old, self._old_bytes = self.young, self._young_bytes
            self.young, self._young_bytes = {}, 0
        self.young[key] = entry
        self._young_bytes += size

    def _forget(self, key: str) -> None:
        entry = self.young.pop(key, None)
        if entry is not None:
            self._young_bytes -= _size(key, entry)
        entry = self._old.pop(key, None)
        if entry is not None:
            self._old_bytes -= _size(key, entry)


async def _first(*works: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, and end the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()


def _size(key: str, entry: tuple[float, bytes]) -> int:
    return len(key) * 4 + len(entry[1]) + _OVERHEAD_BYTES
