"""A relay before a server, for what no proxy does: count connections, lead new ones elsewhere, lose an answer of HTTP,
speak TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Self


class Relay:
    """Hands bytes on to the server and back, counts connections, and breaks one.

    `cut` names the request that never reaches the server, `lose` the one whose answer never comes back; `meanwhile` is
    done before whoever asked hears of it.
    """

    def __init__(self, server: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.server = server  # where new connections lead; those that there are stay where they are
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self.opened = self.spare = 0
        self.cut: bytes | None = None
        self.lose: bytes | None = None
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def __aenter__(self) -> Self:
        self._relaying = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._relaying.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._relaying.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self._tasks.add(asyncio.ensure_future(self._hand_on(reader, writer)))

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.server)
        asked = b""

        async def forth() -> None:
            nonlocal asked
            while data := await reader.read(1 << 16):
                asked = data if data.startswith((b"PUT /", b"POST /", b"GET /", b"HEAD /", b"DELETE /")) else asked
                if self.cut is not None and asked.startswith(self.cut):
                    self.cut = None
                    writer.close()
                    break
                back.write(data)
            back.close()

        async def answers() -> None:
            while data := await there.read(1 << 16):
                if self.lose is not None and asked.startswith(self.lose):
                    if self.spare == 0:
                        self.lose = None
                        if self.meanwhile is not None:
                            await self.meanwhile()
                        break
                    self.spare -= 1
                writer.write(data)
            writer.close()

        try:
            await asyncio.gather(forth(), answers())
        except ConnectionError:
            pass
        finally:
            back.close()
            writer.close()
