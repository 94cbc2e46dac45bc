"""How far one member came in one slot: what may be committed is the prefix without gaps of what was handled."""

from __future__ import annotations

from collections import deque

from kmp_messaging.embedded.groups import Claim, Mark

__all__ = ["Partition"]


class Partition:
    """A slot while this member owns it. `active` turns false, for good, when the slot is let go or lost."""

    __slots__ = (
        "_ahead",
        "_sizes",
        "active",
        "attempts",
        "committed",
        "deaths",
        "done",
        "fetched",
        "generation",
        "running",
        "slot",
        "suspect",
    )

    def __init__(self, claim: Claim) -> None:
        self.slot = claim.slot
        self.generation = claim.generation
        self.committed = self.done = self.fetched = claim.position
        # Two processes in a row were killed while they had these: one of them may have been the reason.
        self.suspect = claim.suspect
        self.attempts = claim.attempts
        self.deaths = claim.deaths
        self.active = True
        self.running = 0
        self._ahead: set[int] = set()
        self._sizes: deque[tuple[int, int]] = deque()

    @property
    def mark(self) -> Mark:
        """What can be committed now."""
        return (self.slot, self.generation, self.done)

    @property
    def held(self) -> int:
        """Events fetched and not yet part of the handled prefix."""
        return self.fetched - self.done

    def finish(self, position: int) -> None:
        """An event was handled, or its dead letter stored."""
        if position != self.done + 1:
            self._ahead.add(position)
            return
        self.done = position
        if self._ahead:
            while self.done + 1 in self._ahead:
                self.done += 1
                self._ahead.discard(self.done)

    def commit(self, position: int) -> None:
        """This much is committed, and what was counted about it is no longer needed."""
        self.committed = position
        for counts in (self.attempts, self.deaths):
            for old in [counted for counted in counts if counted <= position]:
                del counts[old]

    def gone(self) -> bool:
        """Whether the slot is given up and no handler has anything of it any more."""
        return not self.active and not self.running

    def took(self, last: int, size: int) -> None:
        """A row was fetched that ends at this position."""
        self.fetched = last
        self._sizes.append((last, size))

    def freed(self) -> int:
        """Bytes of rows that were handled wholly since this was last asked."""
        size = 0
        while self._sizes and self._sizes[0][0] <= self.done:
            size += self._sizes.popleft()[1]
        return size

    def discard(self) -> int:
        """Give up what was not handled; returns its bytes."""
        self.active = False
        size = sum(size for _, size in self._sizes)
        self._sizes.clear()
        return size
