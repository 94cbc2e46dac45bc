"""Gets that travel together: those of one turn of the event loop become one MGET, and a lonely one does not wait."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Mapping
from typing import Any

from kmp_core.errors import BackendError, DeadlineExceeded
from kmp_storage.redis.channel import Command
from kmp_storage.redis.cluster import Servers
from kmp_storage.redis.connections import Value

__all__ = ["Reads"]

_MOST = 512


class Reads:
    """Asks for values by their names in Redis.

    With `times`, each comes with the milliseconds that it has left (-1: no end), without it with -1. A caller that is
    cancelled leaves its fellow travellers alone.
    """

    def __init__(self, connections: Servers, *, timeout: float, times: bool) -> None:
        self._connections = connections
        self._timeout = timeout
        self._times = times
        self._busy = 0
        self._batch: list[tuple[bytes, asyncio.Future[Value]]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def get(self, name: bytes, seconds: float | None) -> Value:
        """The content under this name, or None, and what it has left."""
        if self._busy == 0:
            self._busy += 1
            try:
                answers = await self._connections.ask(*self._single(name), seconds=seconds)
            finally:
                self._busy -= 1
            return answers[0], answers[1] if self._times else -1
        return await self._travel(name, seconds)

    async def close(self) -> None:
        """Wait for the batches under way; their connections were cut."""
        if self._running:
            await asyncio.wait(self._running)

    def _single(self, name: bytes) -> tuple[Command, ...]:
        return (("GET", name), ("PTTL", name)) if self._times else (("GET", name),)

    async def _travel(self, name: bytes, seconds: float | None) -> Value:
        if seconds is not None and seconds <= 0:
            raise DeadlineExceeded("no time was left to ask Redis", backend="redis")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Value] = loop.create_future()
        if not self._batch:
            loop.call_soon(self._depart)
        self._batch.append((name, future))
        if len(self._batch) >= _MOST:
            self._depart()
        if seconds is None or seconds >= self._timeout:
            return await future  # the batch has a deadline of its own
        timer = loop.call_later(seconds, _expire, future)
        try:
            return await future
        finally:
            timer.cancel()

    def _depart(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        # An empty context: the deadline of whoever came first is not that of the others.
        task = asyncio.create_task(self._run(batch), context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, batch: list[tuple[bytes, asyncio.Future[Value]]]) -> None:
        self._busy += 1
        try:
            names = [name for name, future in batch if not future.done()]
            if not names:
                return
            found = await self._connections.values(names, times=self._times, seconds=self._timeout)
            _deliver(batch, found)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._busy -= 1


def _deliver(batch: list[tuple[bytes, asyncio.Future[Value]]], found: Mapping[bytes, Value | BackendError]) -> None:
    for name, future in batch:
        if not future.done():
            value = found[name]
            if isinstance(value, tuple):
                future.set_result(value)
            else:
                future.set_exception(value)  # of its own server: others may have answered


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("Redis did not answer within the time allowed", backend="redis"))
