"""The calls that are under way, so that a close can end them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from kmp_core.errors import LifecycleError

__all__ = ["Running"]

T = TypeVar("T")

_CLOSED = "the bucket was closed while the call was running"


class Running:
    """What a bucket is waiting for."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def until_closed(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something that `close` ends. Raises `LifecycleError` then."""
        self._ensure_open()

        async def working() -> T:
            return await work()

        task = asyncio.create_task(working())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._closed and (current is None or not current.cancelling()):
                raise LifecycleError(_CLOSED) from None
            raise

    async def close(self) -> None:
        """End what is under way."""
        self._closed = True
        running = tuple(self._tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ensure_open(self) -> None:
        if self._closed:
            raise LifecycleError(_CLOSED)
