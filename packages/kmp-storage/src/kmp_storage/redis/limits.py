"""So many in such a time, over all processes: one counter with an end, in one round trip and without scripts."""

from __future__ import annotations

from dataclasses import dataclass

from kmp_core.errors import InvalidInput
from kmp_storage.redis.cluster import Servers
from kmp_storage.redis.entries import Keys

__all__ = ["Allowance", "Limits"]

_MOST = 1 << 53


@dataclass(frozen=True, slots=True)
class Allowance:
    """Whether a call may go on, how many may still follow in this window, and how many seconds the window has left."""

    allowed: bool
    left: int
    retry_after: float


class Limits:
    """Fixed windows. A window begins with its first call and ends by the server's clock.

    At most `rate` are allowed in a window, so at most twice as many in any stretch of its length, which spans two.
    """

    def __init__(self, connections: Servers, keys: Keys) -> None:
        self._connections = connections
        self._keys = keys

    async def take(self, name: str, *, rate: int, per: float, cost: int, seconds: float | None) -> Allowance:
        """Count this call. One that is refused counts too, which changes nothing: the window ends when it ends."""
        _check("rate", rate)
        _check("cost", cost)
        key = self._keys.limit(name)
        _, count, left = await self._connections.transact(
            ("SET", key, 0, "NX", "PX", max(1, int(per * 1000))),
            ("INCRBY", key, cost),
            ("PTTL", key),
            seconds=seconds,
            idempotent=False,
        )
        allowed = count <= rate
        return Allowance(allowed, max(0, rate - count), 0.0 if allowed else max(0, left) / 1000)


def _check(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise InvalidInput(field, "must be a whole number from 1 on", example="100")
