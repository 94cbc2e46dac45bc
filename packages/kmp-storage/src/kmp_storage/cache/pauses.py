"""How callers wait for each other over several processes: they ask again, later each time and never in step."""

from __future__ import annotations

import asyncio
import random

__all__ = ["Pauses"]

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1


class Pauses:
    """Short waits that grow and are spread, so that many who wait do not ask in step."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = _FIRST_PAUSE

    async def sleep(self) -> None:
        await asyncio.sleep(random.uniform(self._next / 2, self._next))  # noqa: S311 - spreads callers, no secret
        self._next = min(self._next * 1.5, _LONGEST_PAUSE)
