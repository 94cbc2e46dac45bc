"""The life of a provider, written once."""

from __future__ import annotations

import asyncio
import gc

import pytest

from kmp_core.deadlines import deadline
from kmp_core.errors import DeadlineExceeded, LifecycleError, Unavailable
from kmp_core.resource import Provider


class Thing(Provider):
    def __init__(self, opening=None, closing=None, checking=None) -> None:
        self.opening, self.closing, self.checking = opening, closing, checking
        self.log: list[str] = []

    async def _open(self) -> None:
        self.log.append("open")
        if self.opening:
            await self.opening()

    async def _close(self) -> None:
        self.log.append("close")
        if self.closing:
            await self.closing()

    async def _check(self) -> None:
        if self.checking:
            await self.checking()


async def forever() -> None:
    await asyncio.sleep(3600)


def raising(error: BaseException):
    async def fail() -> None:
        raise error

    return fail


async def test_it_is_open_inside_the_block_and_closed_after_it():
    thing = Thing()
    assert thing.state == "new"
    async with thing as same:
        assert same is thing
        assert thing.state == "open"
        thing.ensure_open()
    assert thing.state == "closed"
    assert thing.log == ["open", "close"]


async def test_a_failed_open_lets_go_and_its_error_is_the_one_that_is_seen():
    thing = Thing(raising(Unavailable("the reason")), raising(RuntimeError("a second fault")))
    with pytest.raises(Unavailable, match="the reason") as raised:
        await thing.open()
    assert "RuntimeError: a second fault" in raised.value.__notes__[0]
    assert thing.log == ["open", "close"]
    assert thing.state == "closed"
    await thing.close()
    assert thing.log == ["open", "close"]


async def test_an_open_that_hangs_is_bounded_and_lets_go(monkeypatch):
    monkeypatch.setattr(Thing, "open_timeout", "10ms")
    thing = Thing(forever)
    with pytest.raises(DeadlineExceeded, match="opening Thing"):
        await thing.open()
    assert thing.log == ["open", "close"]


async def test_an_open_that_is_cancelled_lets_go():
    thing = Thing(forever)
    task = asyncio.create_task(thing.open())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (thing.log, thing.state) == (["open", "close"], "closed")


async def test_closing_while_it_opens_lets_go_and_open_tells():
    gate = asyncio.Event()
    thing = Thing(gate.wait)
    task = asyncio.create_task(thing.open())
    await asyncio.sleep(0)
    await thing.close()
    gate.set()
    with pytest.raises(LifecycleError, match="closed while it was opening"):
        await task
    assert (thing.log, thing.state) == (["open", "close"], "closed")


async def test_a_close_that_hangs_is_bounded_and_the_thing_is_closed(monkeypatch):
    monkeypatch.setattr(Thing, "close_timeout", "10ms")
    thing = Thing(closing=forever)
    await thing.open()
    with pytest.raises(DeadlineExceeded, match="closing Thing"):
        await thing.close()
    assert thing.state == "closed"


async def test_closing_has_its_own_time_when_the_tasks_time_is_over():
    closed = asyncio.Event()

    async def closing() -> None:
        await asyncio.sleep(0.01)
        closed.set()

    with pytest.raises(DeadlineExceeded):
        async with deadline("5ms"):
            async with Thing(closing=closing):
                await forever()
    assert closed.is_set()


async def test_a_check_is_bounded(monkeypatch):
    monkeypatch.setattr(Thing, "check_timeout", "10ms")
    async with Thing(checking=forever) as thing:
        with pytest.raises(DeadlineExceeded, match="checking Thing"):
            await thing.check()


@pytest.mark.parametrize(("state", "advice"), [("new", "async with"), ("closed", "make a new one")])
async def test_use_outside_its_life_is_refused_with_advice(state, advice):
    thing = Thing()
    if state == "closed":
        await thing.close()
    with pytest.raises(LifecycleError, match=advice):
        thing.ensure_open()
    with pytest.raises(LifecycleError, match=advice):
        await thing.check()


async def test_one_that_was_never_closed_warns_when_it_is_garbage():
    thing = Thing()
    await thing.open()
    with pytest.warns(ResourceWarning, match="Thing was never closed"):
        del thing
        gc.collect()


def test_a_provider_must_say_how_it_opens_closes_and_checks():
    class Half(Provider):
        async def _open(self) -> None: ...

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
