"""The embedded bus keeps the contract, in a file and in memory."""

import sqlite3
from typing import Any

import pytest

from kmp_core.deadlines import duration
from kmp_core.errors import Unsupported
from kmp_core.testing import Make
from kmp_messaging import BusSettings
from kmp_messaging.embedded import SqliteBus
from kmp_messaging.embedded.log import append
from kmp_messaging.testing import EventBusContract, Remote, SharedEventBusContract

FAST = {"lease": "1s", "retry_delay": "5ms", "retry_delay_limit": "40ms", "drain_timeout": "5s"}


async def inject(bus: SqliteBus, topic: str, content: bytes) -> None:
    store = bus._store
    found = await store.topic(topic)

    def work(connection: sqlite3.Connection) -> None:
        append(connection, {found.slots[3]: [content]})

    await store.write(work)


def settings() -> BusSettings:
    return BusSettings(**{name: duration(value) for name, value in FAST.items()})


class Plain(SqliteBus):
    """A bus that can only do what every bus must."""

    abilities = frozenset({"groups", "lag"})

    def subscribe_batch(self, *_: Any, **__: Any) -> Any:
        raise Unsupported("batches", provider="Plain")

    async def dead_letters(self, *_: Any, **__: Any) -> Any:
        raise Unsupported("dead letters", provider="Plain")
        yield


class TestPlain(EventBusContract):
    """The suite asks a provider for what it declares, and for a refusal of all else."""

    @pytest.fixture
    def make(self) -> Make:
        def make(project: str = "acme") -> SqliteBus:
            return Plain("memory:", project=project, settings=settings())

        return make

    async def inject(self, bus, topic, content):
        await inject(bus, topic, content)


class TestSqliteBusInMemory(EventBusContract):
    @pytest.fixture
    def make(self) -> Make:
        def make(project: str = "acme") -> SqliteBus:
            return SqliteBus("memory:", project=project, settings=settings())

        return make

    async def inject(self, bus, topic, content):
        await inject(bus, topic, content)


class TestSqliteBusInAFile(SharedEventBusContract):
    @pytest.fixture
    def make(self, tmp_path) -> Make:
        def make(project: str = "acme") -> SqliteBus:
            return SqliteBus(project=project, directory=tmp_path / project, settings=settings())

        return make

    @pytest.fixture
    def remote(self, tmp_path) -> Remote:
        return Remote(
            "kmp_messaging.embedded:SqliteBus",
            {"project": "acme", "directory": str(tmp_path / "acme")},
            {f"KMP_MESSAGING_BUS_{name.upper()}": value for name, value in FAST.items()},
        )

    async def inject(self, bus, topic, content):
        await inject(bus, topic, content)
