"""The calls that are under way, so that a close can end them."""

from __future__ import annotations

import asyncio
import atexit
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from kmp_core.errors import LifecycleError

__all__ = ["Running"]

T = TypeVar("T")

_CLOSED = "the bucket was closed while the call was running"
_LET_GO_SECONDS = 0.2


class Running:
    """What a bucket is waiting for."""

    last = 0.0
    """When any bucket of the process was last done with a call."""

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
        finally:
            Running.last = time.monotonic()

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


@atexit.register
def _let_go() -> None:
    """Give obstore's threads the moment that they need after a call to let go of Python.

    One that still wants it while the interpreter ends is ended by the interpreter, which aborts the whole process.
    """
    time.sleep(max(0.0, Running.last + _LET_GO_SECONDS - time.monotonic()))
