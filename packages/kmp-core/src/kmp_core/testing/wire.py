"""A way to a server on which a test does what networks do: delay, swallow, cut. And a heart that knows stalls.

    async with Wire(host, port) as wire:
        provider = MyStore(f"my://{wire.host}:{wire.port}")
        wire.black_hole()       # connections stay open, new ones are accepted, nothing comes back
        wire.heal()

It runs in the test's own process, so that it needs nothing installed and can tell at which moment a question had been
sent and not been answered yet.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Literal, Self

__all__ = ["Heart", "Translate", "Wire", "WireTls", "mark"]

Translate = Callable[[bytes, Mapping[int, int]], bytes]
"""What a server says, with the wire's ports in place of those that it says are its own."""

_MARK = re.compile(rb"ask(\d{6})")
_MARK_BYTES = 9
_HELD_SECONDS = 1.0


def mark(number: int) -> str:
    """The name under which a question travels, so that a `Wire` recognises it on its way."""
    return f"ask{number:06d}"


@dataclass(frozen=True)
class WireTls:
    """How a wire reads what is encrypted: it is the server to the provider, and the provider to the server."""

    shown: ssl.SSLContext
    """With the certificate that the provider gets to see."""
    trusted: ssl.SSLContext
    """With which the wire connects to the server."""


class _Link:
    """One connection through the wire, and which question was the last that it carried."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.asked: int | None = None
        self.answered = True
        self.interrupted = False
        self._tail = b""

    def marks_in(self, data: bytes) -> list[int]:
        """The questions in what was sent, also one that came in two pieces."""
        whole = self._tail + data
        self._tail = whole[-(_MARK_BYTES - 1) :]
        return [int(found) for found in _MARK.findall(whole)]

    def abort(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                writer.transport.abort()


class Wire:
    """A proxy on 127.0.0.1 before one server, or before `others` too, which are reached where the first one says.

    `translate` has them say the wire's own ports then. With `tls` the server speaks it, and so does the wire.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        host: str,
        port: int,
        *others: tuple[str, int],
        tls: WireTls | None = None,
        translate: Translate | None = None,
    ) -> None:
        self._upstreams = dict.fromkeys(((host, port), *others), 0)
        self._tls = tls
        self._translate = translate
        self._ports: dict[int, int] = {}
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.Server] = []
        self._delay = 0.0
        self._passes = {"requests": asyncio.Event(), "answers": asyncio.Event()}
        self._expected: dict[int, asyncio.Future[None]] = {}
        self.port = 0
        self.most_links = 0
        """How many connections were open at once, at most."""
        self.handed_out_again: list[int] = []
        """The questions that were sent on a connection whose caller had been interrupted."""

    async def __aenter__(self) -> Self:
        for event in self._passes.values():
            event.set()
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # a turn of the event loop, in which the sockets are closed

    # What networks do

    def slow(self, seconds: float) -> None:
        """Deliver every answer so much later."""
        self._delay = seconds

    def black_hole(self, swallow: Literal["answers", "requests"] = "answers") -> None:
        """Deliver nothing in this direction until `heal`. Connections stay open, and new ones are accepted."""
        self._passes[swallow].clear()

    def drop(self) -> None:
        """Cut every connection; new ones are as good as before."""
        for link in self._links:
            link.abort()

    async def cut(self) -> None:
        """Cut every connection and refuse new ones, until `heal`."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        self.drop()
        while self._links:  # noqa: ASYNC110 - they end within a turn or two
            await asyncio.sleep(0)

    async def heal(self) -> None:
        """Be a plain way again. What was held back is delivered now, to whomever it may concern."""
        self._delay = 0.0
        for event in self._passes.values():
            event.set()
        if not self._listeners:
            await self._listen()

    # What travels

    def expect(self, number: int) -> asyncio.Future[None]:
        """Done as soon as this question is sent the next time."""
        self._expected[number] = asyncio.get_running_loop().create_future()
        return self._expected[number]

    def interrupt(self, number: int) -> bool:
        """The caller of this question is cancelled now: whether that is between its sending and its answer."""
        met = [link for link in self._links if link.asked == number and not link.answered]
        for link in met:
            link.interrupted = True
        return bool(met)

    async def _listen(self) -> None:
        for upstream, port in self._upstreams.items():
            listener = await asyncio.start_server(partial(self._carry, upstream), self.host, port)
            self._listeners.append(listener)
            self._upstreams[upstream] = self._ports[upstream[1]] = listener.sockets[0].getsockname()[1]
        self.port = next(iter(self._upstreams.values()))

    async def _carry(
        self, upstream: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        link = _Link(writer)
        self._links.add(link)
        self.most_links = max(self.most_links, len(self._links))
        try:
            with suppress(OSError):
                trusted = await self._shake_hands(writer)
                answers, link.server = await asyncio.open_connection(*upstream, ssl=trusted)
                for end in (writer, link.server):
                    end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._both_ways(link, reader, answers)
        finally:
            link.abort()
            self._links.discard(link)

    async def _shake_hands(self, writer: asyncio.StreamWriter) -> ssl.SSLContext | None:
        if self._tls is None:
            return None
        transport = writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()  # before the first word, which is not for the stream
        while not all(passes.is_set() for passes in self._passes.values()):
            await asyncio.sleep(0.005)
            if transport.is_closing():
                raise ConnectionAbortedError
        await writer.start_tls(self._tls.shown)
        return self._tls.trusted

    async def _both_ways(self, link: _Link, requests: asyncio.StreamReader, answers: asyncio.StreamReader) -> None:
        ways = {asyncio.create_task(self._forward(link, requests)), asyncio.create_task(self._back(link, answers))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(self, link: _Link, reader: asyncio.StreamReader) -> None:
        assert link.server is not None
        while data := await reader.read(1 << 16):
            for number in link.marks_in(data):
                self._sent(link, number)
            await self._passes["requests"].wait()
            link.server.write(data)
            await link.server.drain()

    async def _back(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(1 << 16):
            if self._delay:
                await asyncio.sleep(self._delay)
            if link.interrupted:
                # A client whose threads hear of the cancellation late shall not have read its own answer before.
                await asyncio.sleep(_HELD_SECONDS)
            await self._passes["answers"].wait()
            link.answered = True
            link.client.write(data if self._translate is None else self._translate(data, self._ports))
            await link.client.drain()

    def _sent(self, link: _Link, number: int) -> None:
        if link.interrupted:
            self.handed_out_again.append(number)
        link.asked, link.answered = number, False
        expected = self._expected.pop(number, None)
        if expected is not None and not expected.done():
            expected.set_result(None)


class Heart:
    """Beats on the event loop, and knows for how long it could not: `async with Heart() as heart`."""

    beat = 0.005

    def __init__(self) -> None:
        self._stalls: list[tuple[float, float]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        await asyncio.sleep(2 * self.beat)  # a stall that lasts is known with its end only
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def stalled(self, begin: float, end: float) -> float:
        """For how many seconds between two moments of the loop's clock the loop had no turn for anybody."""
        return sum(max(0.0, min(end, until) - max(begin, since)) for since, until in self._stalls)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + self.beat
            await asyncio.sleep(self.beat)
            self._stalls.append((due, clock()))
