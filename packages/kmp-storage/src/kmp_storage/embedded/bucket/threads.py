"""Blocking file work off the event loop, in which nothing is lost when the caller is cancelled half-way."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from kmp_core.errors import LifecycleError

__all__ = ["Threads"]

T = TypeVar("T")


class Threads:
    """A few threads of one bucket."""

    def __init__(self, count: int) -> None:
        self._executor: ThreadPoolExecutor | None = ThreadPoolExecutor(count, thread_name_prefix="kmp-bucket")
        self._cleaning: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Run and return; a cancelled caller leaves at once, and work that has begun goes on to its end."""
        return await asyncio.get_running_loop().run_in_executor(self._running(), lambda: work(*arguments))

    async def obtain(self, make: Callable[[], T], undo: Callable[[T], None]) -> T:
        """Make something that must be given back: where the caller is gone by then, `undo` gives it back."""
        lock, made, gone = threading.Lock(), list[T](), threading.Event()

        def work() -> None:
            thing = make()
            with lock:
                made.append(thing)
                if not gone.is_set():
                    return
            undo(thing)

        try:
            await self.run(work)
        except asyncio.CancelledError:
            with lock:
                gone.set()
            if made:
                self.later(undo, made[0])
            raise
        return made[0]

    def later(self, work: Callable[..., object], *arguments: object) -> None:
        """Have it done without waiting for it."""
        if self._executor is None:
            work(*arguments)
        else:
            self._executor.submit(work, *arguments)

    async def regardless(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish it even where the caller is being cancelled or its time is over."""
        task = asyncio.create_task(work, context=contextvars.Context())
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what is being finished, then end the threads."""
        if self._cleaning:
            await asyncio.wait(self._cleaning, timeout=5)
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.get_running_loop().run_in_executor(None, executor.shutdown)

    def _running(self) -> ThreadPoolExecutor:
        if self._executor is None:
            raise LifecycleError("the bucket was closed while the call was running")
        return self._executor
