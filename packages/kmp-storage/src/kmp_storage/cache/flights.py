"""One load per key in this process: those who come while it runs get its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kmp_core.errors import DeadlineExceeded

__all__ = ["Flights", "Landed"]


@dataclass(frozen=True, slots=True)
class Landed:
    """What a load brought; `shared` is False where only its own caller may have it, and the others try again."""

    value: bytes | None
    shared: bool = True


class Flights:
    """The loads under way, by key.

    A loader's error reaches all who waited for that load. A caller that was cancelled or ran out of time takes nobody
    with it: the next one in line loads.
    """

    def __init__(self) -> None:
        self._flights: dict[str, asyncio.Future[Landed | None]] = {}

    async def join(self, key: str) -> Landed | None:
        """Wait for the load of another caller; None where there is none, or where it brought nothing to share."""
        flight = self._flights.get(key)
        if flight is None:
            return None
        landed = await asyncio.shield(flight)
        return landed if landed is not None and landed.shared else None

    def flying(self, key: str) -> bool:
        """Whether somebody in this process loads this key."""
        return key in self._flights

    def forget(self, key: str) -> None:
        """Let nobody else join the load that runs: what it brings may be older than what was just written."""
        self._flights.pop(key, None)

    async def lead(self, key: str, load: Callable[[], Awaitable[Landed]]) -> Landed:
        """Load, and hand the outcome to all who join meanwhile."""
        flight: asyncio.Future[Landed | None] = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        try:
            landed = await load()
        except DeadlineExceeded:
            raise  # this caller's time is over, not that of the others
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # retrieved: there may be nobody else
            raise
        else:
            flight.set_result(landed)
            return landed
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
            if not flight.done():
                flight.set_result(None)
