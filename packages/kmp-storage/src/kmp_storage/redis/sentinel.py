"""Where the primary is now, asked of the Sentinels that watch it, whenever a connection is made."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from kmp_core.errors import KmpError, Unavailable
from kmp_storage.redis.address import RedisAddress
from kmp_storage.redis.errors import ERRORS

__all__ = ["locate"]


async def locate(address: RedisAddress, *, seconds: float) -> RedisAddress:
    """The address itself, or that of the primary which its Sentinels name.

    They are asked in turn, each for at most its share of the time. Raises `Unavailable` where none knows.
    """
    if address.sentinel is None:
        return address
    causes = []
    for host, port in address.sentinel.nodes:
        try:
            async with asyncio.timeout(seconds / len(address.sentinel.nodes)):
                answer = await _ask(replace(address.sentinel.login, host=host, port=port), address.sentinel.service)
        except Exception as error:
            translated = ERRORS.translate(error)
            if translated is None:
                raise
            causes.append(translated)
            continue
        if answer is not None:
            return replace(address, host=answer[0].decode(), port=int(answer[1]), sentinel=None)
        causes.append(KmpError("it watches no such primary"))
    said = "; ".join(
        f"{host}:{port}: {cause}" for (host, port), cause in zip(address.sentinel.nodes, causes, strict=True)
    )
    raise Unavailable(f"no Sentinel names the primary {address.sentinel.service!r} ({said})", backend="redis")


async def _ask(node: RedisAddress, service: str) -> Any:
    connection: Any = node.connection(None)
    try:
        await connection.connect()
        await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service, check_health=False)
        return await connection.read_response(disconnect_on_error=False)
    finally:
        await connection.disconnect(nowait=True)
