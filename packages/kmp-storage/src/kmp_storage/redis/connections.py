"""The connections to one Redis server: each exchange ends in time, and no answer ever reaches the wrong caller.

An exchange that does not end as it should (cancelled, out of time, cut) takes its connection with it: whatever answer
is still on its way belongs to nobody any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from kmp_core.breaker import Breaker
from kmp_core.errors import BackendError, DeadlineExceeded, PoolExhausted, Unavailable
from kmp_core.plugins import extra
from kmp_core.pool_metrics import PoolMetrics
from kmp_storage.redis.address import RedisAddress, unanswered
from kmp_storage.redis.errors import ERRORS
from kmp_storage.redis.sentinel import locate

with extra("redis", install="kmp-storage[redis]"):
    import hiredis
    from redis.exceptions import ReadOnlyError, ResponseError

__all__ = ["Channel", "Command", "Connections"]

Command = tuple[str | bytes | int, ...]
"""A command and its arguments: `("SET", key, value, "PX", 1000)`."""

_driver: Any = hiredis
pack_command: Callable[[Command], bytes] = _driver.pack_command  # its stub takes tuples of one element


class Channel:
    """One connection. `ask` sends commands in one go and reads their replies, by a time of the event loop's clock."""

    __slots__ = ("_connection", "_expired", "_scope", "_transport", "broken", "reused")

    def __init__(self) -> None:
        self._connection: Any = None
        self._transport: Any = None
        self._scope: asyncio.Timeout | None = None
        self._expired = False
        self.broken = False
        self.reused = False

    async def connect(self, due: float, address: RedisAddress) -> None:
        """Connect and log in. On an exception nothing stays open."""
        self._scope = asyncio.timeout_at(due)
        try:
            async with self._scope:
                left = due - asyncio.get_running_loop().time()
                self._connection = (await locate(address, seconds=left)).connection(None)
                await self._connection.connect()
        except TimeoutError as error:
            self.discard()
            raise unanswered(address) from error
        except BaseException as error:
            self.discard()
            translated = ERRORS.translate(error)
            if translated is None:
                raise
            raise translated from error
        self._connection._parser.set_invalidation_push_handler(_as_it_is)  # or the driver would swallow it
        self._transport = self._connection._writer.transport  # no public way: disconnect() waits to flush

    def give_up(self) -> None:
        """End a `connect` that is under way."""
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())

    @property
    def usable(self) -> bool:
        """Whether nothing is known that would spoil the next exchange: a closed end, bytes that nobody asked for."""
        parser = self._connection._parser
        return not (self.broken or self._transport.is_closing() or parser._stream.at_eof() or parser._reader.has_data())

    async def ask(self, packed: list[bytes], replies: int, due: float) -> list[Any]:
        """Send, and return the replies in order; a reply that is an error stands in the list as an exception."""
        timer = asyncio.get_running_loop().call_at(due, self._expire)
        connection, answers = self._connection, []
        try:
            await connection.send_packed_command(packed, check_health=False)
            for _ in range(replies):
                try:
                    answers.append(await connection.read_response(disconnect_on_error=False))
                except ResponseError as error:
                    answers.append(error)
        except BaseException as error:
            self.discard()
            if self._expired and isinstance(error, Exception):
                message = "Redis did not answer within the time allowed"
                raise DeadlineExceeded(message, backend="redis", outcome_unknown=True) from error
            translated = ERRORS.translate(error)
            if translated is None:
                raise
            if isinstance(translated, BackendError):
                translated.outcome_unknown = True
            raise translated from error
        finally:
            timer.cancel()
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            self.broken = True  # a primary that became a replica: the next connection finds the new one
        return answers

    async def say(self, command: Command) -> None:
        """Send a command and leave its answer to `heard`."""
        with ERRORS.translating():
            await self._connection.send_packed_command([pack_command(command)], check_health=False)

    async def heard(self, seconds: float) -> Any:
        """What the server pushes next, or None where it said nothing for so long."""
        try:
            return await self._connection.read_response(timeout=seconds, disconnect_on_error=False, push_request=True)
        except Exception as error:
            translated = ERRORS.translate(error)
            if translated is None:
                raise
            raise translated from error

    def abort(self) -> None:
        """Cut the connection now, without waiting for anything."""
        self.broken = True
        if self._transport is not None:
            self._transport.abort()

    def discard(self) -> None:
        """Cut the connection and let go of it."""
        self.abort()
        if self._connection is not None:
            self._connection._close()

    def _expire(self) -> None:
        self._expired = True
        self.abort()


async def _as_it_is(message: Any) -> Any:
    return message


class Connections:
    """At most `size` connections; who finds none free waits in line until its time is over."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        size: int,
        connect_timeout: float,
        breaker: Breaker,
        metrics: PoolMetrics | None = None,
    ) -> None:
        self.address = address
        self.breaker = breaker
        self._metrics = metrics
        self._limit = size
        self._connect_timeout = connect_timeout
        self._idle: list[Channel] = []
        self._busy: set[Channel] = set()
        self._waiters: deque[asyncio.Future[Channel | None]] = deque()
        self._connecting: set[Channel] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection."""
        return len(self._waiters)

    @property
    def in_use(self) -> int:
        """How many connections carry a call now."""
        return len(self._busy)

    @property
    def idle(self) -> int:
        """How many connections lie ready."""
        return len(self._idle)

    @property
    def _has_room(self) -> bool:
        return not self._closed and self.in_use + self.idle + len(self._connecting) < self._limit

    async def ask(self, *commands: Command, seconds: float | None, idempotent: bool = True) -> list[Any]:
        """Send commands in one go, and return their replies; the first that is an error is raised.

        What is idempotent is tried once more where an idle connection turns out to be dead.
        """
        packed = [pack_command(command) for command in commands]
        due = self._due(seconds)
        with self.breaker.guard():
            return _checked(await self._exchange(packed, due, again=idempotent))

    async def transact(self, *commands: Command, seconds: float | None, idempotent: bool = True) -> list[Any]:
        """Send commands that take effect together or not at all, and return their replies."""
        answers = await self.ask(("MULTI",), *commands, ("EXEC",), seconds=seconds, idempotent=idempotent)
        return _checked(answers[-1])

    @asynccontextmanager
    async def session(self, seconds: float | None) -> AsyncIterator[Session]:
        """One connection for several exchanges, for WATCH. However it ends, nothing stays watched."""
        due = self._due(seconds)
        with self.breaker.guard():
            channel = await self._acquire(due)
            session = Session(channel, due)
            try:
                yield session
            except BaseException:
                if session.watching:  # rather than a watch that spoils the next one's transaction
                    channel.discard()
                raise
            finally:
                self._release(channel)

    async def listen(self, command: Command, *, seconds: float) -> Channel:
        """A connection of its own on which this command has the server push messages; its user discards it."""
        due = self._due(seconds)
        channel = Channel()
        await channel.connect(due, self.address)
        try:
            await channel.say(command)
            if await channel.heard(max(0.0, due - asyncio.get_running_loop().time())) is None:
                raise unanswered(self.address)
        except BaseException:
            channel.discard()
            raise
        return channel

    def close(self) -> None:
        """Cut everything. Calls under way end with `Unavailable`."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        for channel in self._connecting:
            channel.give_up()
        for channel in (*self._idle, *self._busy):
            channel.discard()
        self._idle.clear()

    async def _exchange(self, packed: list[bytes], due: float, *, again: bool) -> list[Any]:
        channel = await self._acquire(due)
        reused = channel.reused
        try:
            return await channel.ask(packed, len(packed), due)
        except Unavailable:
            if not (reused and again):
                raise
            self._drop_idle()  # the others were made before the same restart
        finally:
            self._release(channel)
        return await self._exchange(packed, due, again=False)

    def _due(self, seconds: float | None) -> float:
        if seconds is not None and seconds <= 0:
            raise DeadlineExceeded("no time was left to ask Redis", backend="redis")
        return asyncio.get_running_loop().time() + (86_400.0 if seconds is None else seconds)

    async def _acquire(self, due: float) -> Channel:
        while True:
            if self._closed:
                raise Unavailable("the connections to Redis are closed", backend="redis")
            if not self._waiters:
                channel = self._take_idle()
                if channel is not None:
                    return channel
                if self._has_room:
                    return await self._connect(due)
            channel = await self._wait(due)
            if channel is not None:
                return channel
            if self._has_room:
                return await self._connect(due)

    def _take_idle(self) -> Channel | None:
        while self._idle:
            channel = self._idle.pop()
            if channel.usable:
                channel.reused = True
                self._busy.add(channel)
                return channel
            channel.discard()
        return None

    async def _connect(self, due: float) -> Channel:
        channel = Channel()
        self._connecting.add(channel)
        try:
            loop = asyncio.get_running_loop()
            await channel.connect(min(due, loop.time() + self._connect_timeout), self.address)
        except BaseException:
            self._connecting.discard(channel)
            self._wake(None)
            raise
        self._connecting.discard(channel)
        self._busy.add(channel)
        if self._closed:
            self._release(channel)
            raise Unavailable("the connections to Redis are closed", backend="redis")
        return channel

    async def _wait(self, due: float) -> Channel | None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Channel | None] = loop.create_future()
        timer = loop.call_at(due, self._give_up, waiter)
        self._waiters.append(waiter)
        try:
            with nullcontext() if self._metrics is None else self._metrics.waiting():
                return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was given one in the very moment in which it was cancelled.
                given = waiter.result()
                if given is None:
                    self._wake(None)
                else:
                    self._release(given)
            raise
        finally:
            timer.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _give_up(self, waiter: asyncio.Future[Channel | None]) -> None:
        if not waiter.done():
            message = f"all {self._limit} connections to Redis stayed busy; raise KMP_STORAGE_REDIS_POOL_SIZE"
            waiter.set_exception(PoolExhausted(message, backend="redis"))

    def _release(self, channel: Channel) -> None:
        if channel.broken or self._closed or not channel.usable:
            self._busy.discard(channel)
            channel.discard()
            self._wake(None)
        elif not self._wake(channel):
            self._busy.discard(channel)
            self._idle.append(channel)

    def _wake(self, channel: Channel | None) -> bool:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                if channel is not None:
                    channel.reused = True
                waiter.set_result(channel)
                return True
        return False

    def _drop_idle(self) -> None:
        for channel in self._idle:
            channel.discard()
        self._idle.clear()


class Session:
    """Exchanges on one connection, for as long as WATCH must hold."""

    def __init__(self, channel: Channel, due: float) -> None:
        self._channel = channel
        self._due = due
        self.watching = False

    async def watch(self, key: bytes, *reads: Command) -> list[Any]:
        """Watch a key, and return what the reads find after that."""
        self.watching = True
        answers = await self._ask(("WATCH", key), *reads)
        return answers[1:]

    async def commit(self, *commands: Command) -> list[Any] | None:
        """Run the commands as one transaction; None where a watched key was changed meanwhile."""
        answers = await self._ask(("MULTI",), *commands, ("EXEC",))
        self.watching = False
        return None if answers[-1] is None else _checked(answers[-1])

    async def unwatch(self) -> None:
        """Give up without a transaction."""
        await self._ask(("UNWATCH",))
        self.watching = False

    async def _ask(self, *commands: Command) -> list[Any]:
        packed = [pack_command(command) for command in commands]
        return _checked(await self._channel.ask(packed, len(packed), self._due))


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, ResponseError):
            raise ERRORS.translate(answer) or answer from answer
    return answers
