"""The connections to one Redis server: handed out in order, and never for longer than a caller has time."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from kmp_core.breaker import Breaker
from kmp_core.errors import DeadlineExceeded, KmpError, PoolExhausted, Unavailable
from kmp_core.plugins import extra
from kmp_core.pool_metrics import PoolMetrics
from kmp_storage.redis.address import RedisAddress, unanswered
from kmp_storage.redis.channel import Channel, Command, pack_command
from kmp_storage.redis.errors import ERRORS, Elsewhere

with extra("redis", install="kmp-storage[redis]"):
    from redis.exceptions import ResponseError

__all__ = ["Connections", "Value", "due_in", "left_until"]

Value = tuple[bytes | None, int]
"""What stands under a name, and the milliseconds that it has left (-1: no end, or not asked for)."""

_ASKING: Command = ("ASKING",)


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

    async def ask(
        self, *commands: Command, seconds: float | None, idempotent: bool = True, asking: bool = False
    ) -> list[Any]:
        """Send commands in one go, and return their replies; the first that is an error is raised.

        What is idempotent is tried once more where an idle connection turns out to be dead. `asking` is for a node of
        a cluster that another one pointed to for this once.
        """
        if asking:
            commands = tuple(itertools.chain.from_iterable((_ASKING, command) for command in commands))
        packed = [pack_command(command) for command in commands]
        due = due_in(seconds)
        with self.breaker.guard():
            answers = await self._exchange(packed, due, again=idempotent)
            error = _error(answers)
            if error is not None and not isinstance(error, Elsewhere):
                raise error from error.__cause__
        if error is not None:  # the answer of a server that is well
            raise error from error.__cause__
        return answers[1::2] if asking else answers

    async def transact(
        self, *commands: Command, seconds: float | None, idempotent: bool = True, asking: bool = False
    ) -> list[Any]:
        """Send commands that take effect together or not at all, and return their replies."""
        whole = (*((_ASKING,) if asking else ()), ("MULTI",), *commands, ("EXEC",))
        answers = await self.ask(*whole, seconds=seconds, idempotent=idempotent)
        return _checked(answers[-1])

    async def if_equal(
        self, name: bytes, value: bytes, *commands: Command, seconds: float | None, asking: bool = False
    ) -> bool:
        """Run the commands as one transaction while this value stands there; False, and nothing done, where not.

        However it ends, nothing stays watched.
        """
        due = due_in(seconds)
        elsewhere: Elsewhere | None = None
        with self.breaker.guard():
            channel = await self._acquire(due)
            session = Session(channel, due, asking=asking)
            try:
                if await session.watch(name) == value:
                    return await session.commit(*commands)
                await session.unwatch()
            except Elsewhere as error:
                elsewhere = error
            finally:
                if session.watching:  # rather than a watch that spoils the next one's transaction
                    channel.discard()
                self._release(channel)
        if elsewhere is not None:
            raise elsewhere
        return False

    async def values(self, names: Sequence[bytes], *, times: bool, seconds: float | None) -> dict[bytes, Value]:
        """What stands under these names, in one go."""
        lefts: list[Command] = [("PTTL", name) for name in names] if times else []
        contents, *left = await self.ask(("MGET", *names), *lefts, seconds=seconds)
        return dict(zip(names, zip(contents, left if times else [-1] * len(names), strict=True), strict=True))

    async def check(self, name: bytes, seconds: float | None) -> None:
        """Raise what is wrong with the server."""
        await self.ask(("PING",), seconds=seconds)

    def home(self, name: bytes) -> object:
        """Who keeps this name: what cannot be reached together has different homes."""
        return self

    @property
    def moves(self) -> int:
        """Another number whenever the home of a name may have changed."""
        return 0

    def hears(self, name: bytes) -> bool:
        """Whether the `speakers` tell when this name is changed."""
        return True

    def together(self, names: Sequence[bytes]) -> list[list[int]]:
        """The positions of those names that one transaction may change together."""
        return [list(range(len(names)))] if names else []

    async def speakers(self, *, every: bool) -> list[Connections]:
        """Who has to be listened to, to hear of all changes; `every` where each server speaks of its own alone."""
        return [self]

    async def moved(self) -> None:
        """Return when others have to be listened to."""
        await asyncio.get_running_loop().create_future()

    async def listen(self, command: Command, *, seconds: float) -> Channel:
        """A connection of its own on which this command has the server push messages; its user discards it."""
        due = due_in(seconds)
        channel = Channel()
        await channel.connect(due, self.address)
        try:
            await channel.say(command)
            if await channel.heard(max(0.0, left_until(due))) is None:
                raise unanswered(self.address)
        except BaseException:
            channel.discard()
            raise
        return channel

    def retire(self) -> None:
        """Take no more calls, and let those under way come to their end."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._drop_idle()

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

    def __init__(self, channel: Channel, due: float, *, asking: bool) -> None:
        self._channel = channel
        self._due = due
        self._lead: tuple[Command, ...] = (_ASKING,) if asking else ()
        self.watching = False

    async def watch(self, name: bytes) -> Any:
        """Watch a name, and return what stands there after that."""
        self.watching = True
        return (await self._ask(*self._lead, ("WATCH", name), *self._lead, ("GET", name)))[-1]

    async def commit(self, *commands: Command) -> bool:
        """Run the commands as one transaction; False where a watched name was changed meanwhile."""
        answers = await self._ask(*self._lead, ("MULTI",), *commands, ("EXEC",))
        self.watching = False
        return answers[-1] is not None and bool(_checked(answers[-1]))

    async def unwatch(self) -> None:
        """Give up without a transaction."""
        await self._ask(("UNWATCH",))
        self.watching = False

    async def _ask(self, *commands: Command) -> list[Any]:
        packed = [pack_command(command) for command in commands]
        return _checked(await self._channel.ask(packed, len(packed), self._due))


def due_in(seconds: float | None) -> float:
    """The time of the event loop's clock by which a call must have ended."""
    if seconds is not None and seconds <= 0:
        raise DeadlineExceeded("no time was left to ask Redis", backend="redis")
    return asyncio.get_running_loop().time() + (86_400.0 if seconds is None else seconds)


def left_until(due: float) -> float:
    """The seconds until that time; none, or fewer, where it is over."""
    return due - asyncio.get_running_loop().time()


def _error(answers: list[Any]) -> KmpError | None:
    for answer in answers:
        if isinstance(answer, ResponseError):
            error = ERRORS.translate(answer)
            assert error is not None  # the table has their root
            error.__cause__ = answer
            return error
    return None


def _checked(answers: list[Any]) -> list[Any]:
    error = _error(answers)
    if error is not None:
        raise error from error.__cause__
    return answers
