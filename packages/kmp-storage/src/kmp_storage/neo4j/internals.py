"""All that is read of what the driver keeps to itself. Where a new version of it has that elsewhere, nothing is found:
the store works and closes without, and `test_neo4j_driver.py` says what has to be mended here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from traceback import walk_tb
from typing import Any

__all__ = ["close_forgotten_sockets", "pooled", "writers"]


def pooled(driver: Any) -> list[Any]:
    """The connections of a driver, used and idle."""
    try:
        return [one for some in driver._pool.connections.values() for one in some]
    except (AttributeError, TypeError):
        return []


def writers(driver: Any) -> list[asyncio.StreamWriter]:
    """The sockets of a driver, as asyncio has them: it closes them, and there is no public way to wait for that."""
    found = (getattr(getattr(one, "socket", None), "_writer", None) for one in pooled(driver))
    return [one for one in found if isinstance(one, asyncio.StreamWriter)]


def close_forgotten_sockets(error: BaseException) -> None:
    """Close what a cancelled call was about to connect: the driver closes a socket after an `Exception` only."""
    for one in _sockets(error):
        one.close()


def _sockets(error: BaseException) -> Iterator[socket.socket]:
    for frame, _ in walk_tb(error.__traceback__):
        yield from (value for value in frame.f_locals.values() if isinstance(value, socket.socket))
