"""A service opens what it needs on demand and leaves in order."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from pathlib import Path
from typing import Protocol, Self

import pytest

from kmp_core import Context, Provider, Resource, Service, capability
from kmp_core import plugins
from kmp_core.errors import ConfigurationError, DeadlineExceeded, LifecycleError, Unavailable

LOG: list[str] = []


@capability("test.store", default="note:")
class Store(Resource, Protocol):
    @abstractmethod
    async def put(self, value: str) -> None: ...


class Note(Provider):
    def __init__(self, url: str, context: Context) -> None:
        self.url, self.context = url, context

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        return cls(url, context)

    async def put(self, value: str) -> None:
        self.ensure_open()
        LOG.append(value)

    async def _open(self) -> None:
        LOG.append("open")

    async def _close(self) -> None:
        LOG.append("close")

    async def _check(self) -> None: ...


async def test_smoke(tmp_path):
    plugins.register(Store, "note", Note)
    async with Service("a", directory=tmp_path) as service:
        store, again = await asyncio.gather(service.get(Store), service.get(Store))
        assert store is again
        await store.put("x")
        asyncio.get_running_loop().call_later(0.05, service.stop)
        await service.run()
    assert LOG == ["open", "x", "close"]
