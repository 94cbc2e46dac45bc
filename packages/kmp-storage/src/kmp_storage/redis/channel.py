"""One connection to a Redis server: each exchange ends in time, and no answer ever reaches the wrong caller.

An exchange that does not end as it should (cancelled, out of time, cut) takes its connection with it: whatever answer
is still on its way belongs to nobody any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kmp_core.errors import BackendError, DeadlineExceeded
from kmp_core.plugins import extra
from kmp_storage.redis.address import RedisAddress, unanswered
from kmp_storage.redis.errors import ERRORS
from kmp_storage.redis.sentinel import locate

with extra("redis", install="kmp-storage[redis]"):
    import hiredis
    from redis.exceptions import ReadOnlyError, ResponseError

__all__ = ["Channel", "Command", "pack_command"]

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
        if self._scope is not None and not self._scope.expired():  # one that just expired ends by itself
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
        if self._connection is None:
            return
        if self._transport is None and self._connection._writer is not None:
            # Given up while it logged in. Behind TLS, closing in peace would wait for the server to take leave.
            self._connection._writer.transport.abort()
        self._connection._close()

    def _expire(self) -> None:
        self._expired = True
        self.abort()


async def _as_it_is(message: Any) -> Any:
    return message
