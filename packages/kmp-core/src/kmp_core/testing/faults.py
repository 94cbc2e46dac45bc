"""The fault stage: what every provider on a server promises while that server stalls, vanishes, dies and comes back.

Derive from your capability's class (`kmp_storage.testing.faults`) and define two fixtures: `server`, a handle to hurt
the server with, and `make`, a factory of your provider at an address. The stage puts a `Wire` between the two.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Literal, Protocol

import pytest

from kmp_core.deadlines import deadline
from kmp_core.errors import BackendError, KmpError, Overloaded, PoolExhausted
from kmp_core.testing.isolation import IsolatedEnvironment
from kmp_core.testing.wire import Heart, Wire

__all__ = ["Call", "FaultyServer", "MakeAt", "ProviderFaults"]

Call = Callable[[], Awaitable[object]]

SLACK_SECONDS = 0.1
"""What a call may take beyond its deadline, net of what the event loop itself stalled."""

BACK_SECONDS = 5.0
"""Within this time a server that is back is used again."""

_STORED = 40
_DEADLINE = 0.3


class FaultyServer(Protocol):
    """A server that may be hurt. The calls may block: the stage makes them in a thread."""

    @property
    def host(self) -> str:
        """Where it listens."""
        ...

    @property
    def port(self) -> int:
        """Where it listens; the same after a restart."""
        ...

    def pause(self) -> None:
        """Freeze every process of the server: connections stay open and nothing answers."""

    def resume(self) -> None:
        """Let it go on."""

    def kill(self) -> None:
        """End it with SIGKILL: nothing is flushed, nobody is told."""

    def restart(self) -> None:
        """Start what was killed, with the same data, and return when it answers."""


class MakeAt(Protocol):
    """What the fixture `make` returns: the provider at this address, not open, always on the same data."""

    def __call__(self, host: str, port: int) -> Any: ...


@pytest.mark.asyncio
class ProviderFaults:
    """What every provider on a server promises. A capability's class fills in `write`, `read` and `calls`.

    The connections are not compressed, and not encrypted unless `wire` can read them, so that the stage sees which of
    them carries what.
    """

    capability: ClassVar[Any]
    """The capability, as a service asks for it."""

    pool_size: ClassVar[int] = 10
    """The size of the pool of the providers that `make` returns."""

    most_connections: ClassVar[int | None] = 10
    """How many connections such a provider may have open; None where its technology does not bound them."""

    close_seconds: ClassVar[float] = 10.0
    """How long a close may take with the server gone."""

    cancellations: ClassVar[int] = 1000

    keeps_acknowledged: ClassVar[bool] = True
    """Whether the server promises that what it acknowledged survives its being killed; an emulator may not."""

    @pytest.fixture
    def server(self) -> FaultyServer:
        """The server; override this fixture."""
        raise NotImplementedError("define a fixture `server` that returns a handle of your server")

    @pytest.fixture
    def make(self) -> MakeAt:
        """The provider under test; override this fixture."""
        raise NotImplementedError("define a fixture `make` that returns a factory of your provider at (host, port)")

    def wire(self, server: FaultyServer) -> Wire:
        """The way to the server. Override it where that is more than one place, or encrypted."""
        return Wire(server.host, server.port)

    def line(self, number: int) -> object:
        """Who waits in one line: callers are served in order within it. Override it where there are several pools."""
        return None

    async def write(self, provider: Any, number: int) -> None:
        """Store the number under `mark(number)`; an error, or the server has acknowledged it."""
        raise NotImplementedError

    async def read(self, provider: Any, number: int) -> int | None:
        """Ask for what is stored under `mark(number)`, in an exchange that is this caller's alone."""
        raise NotImplementedError

    async def read_beside(self, provider: Any, number: int) -> int | None:
        """The same, in an exchange that several callers may share."""
        return await self.read(provider, number)

    def calls(self, provider: Any, seconds: float) -> Mapping[str, Call]:
        """Every call of the capability, with this time-out. They need not succeed."""
        raise NotImplementedError

    # Deadlines

    @pytest.mark.parametrize("swallowed", ["answers", "requests", "connections"])
    async def test_every_call_ends_in_time_behind_a_black_hole(
        self, server: FaultyServer, make: MakeAt, swallowed: Literal["answers", "requests", "connections"]
    ) -> None:
        async with self.wire(server) as wire, AsyncExitStack() as stack:

            async def opened() -> Any:
                return await stack.enter_async_context(make(wire.host, wire.port))

            first = await opened()
            await self.write(first, 0)
            # A provider for each, since one that failed may fail the next call before anything is sent.
            calls = {name: self.calls(await opened(), _DEADLINE)[name] for name in self.calls(first, _DEADLINE)}
            if swallowed == "connections":
                wire.drop()
            wire.black_hole("answers" if swallowed == "connections" else swallowed)
            late = await lateness(calls, _DEADLINE)
            await wire.heal()
            await self._used_again(first)
        assert {name: seconds for name, seconds in late.items() if seconds > SLACK_SECONDS} == {}, "ended too late"

    async def test_close_is_bounded_with_the_server_gone(self, server: FaultyServer, make: MakeAt) -> None:
        async with self.wire(server) as wire:
            provider = make(wire.host, wire.port)
            await provider.open()
            await self.write(provider, 0)
            wire.black_hole()
            calls = [asyncio.ensure_future(self.read(provider, number)) for number in range(3)]
            await asyncio.sleep(0.1)
            late = await lateness({"close": provider.close}, self.close_seconds)
            _, hanging = await asyncio.wait(calls, timeout=self.close_seconds)
            for call in calls:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert late["close"] <= SLACK_SECONDS, "close took too long"
        assert not hanging, "a call outlived the close"
        assert all(isinstance(outcome, KmpError) for outcome in outcomes), f"a call beside close ended with {outcomes}"

    # Cancellation

    async def test_no_answer_reaches_the_wrong_caller(self, server: FaultyServer, make: MakeAt) -> None:
        chance = random.Random(7)  # noqa: S311 - no secret
        cancelled = between = 0
        wrong: list[tuple[int, Any]] = []

        async def interrupted(number: int) -> None:
            nonlocal cancelled, between
            sent = wire.expect(number)
            call = asyncio.ensure_future(self.read(provider, number))
            if chance.random() < 0.05:
                await asyncio.sleep(chance.uniform(0, 0.02))  # wherever it is: in line, connecting, done
            else:
                await asyncio.wait((call, sent), return_when=asyncio.FIRST_COMPLETED, timeout=30)
                await asyncio.sleep(chance.uniform(0, 0.003))
            if not call.done():
                cancelled += 1
                between += wire.interrupt(number)
                call.cancel()
            (answer,) = await asyncio.gather(call, return_exceptions=True)
            if not isinstance(answer, asyncio.CancelledError) and answer != number:
                wrong.append((number, answer))

        async def served(number: int) -> None:
            (answer,) = await asyncio.gather(self.read_beside(provider, number), return_exceptions=True)
            if answer != number:
                wrong.append((number, answer))

        async with self.wire(server) as wire, make(wire.host, wire.port) as provider:
            for number in range(_STORED):
                await self.write(provider, number)
            wire.slow(0.005)
            while cancelled < self.cancellations and not wrong and not wire.handed_out_again:
                numbers = chance.sample(range(_STORED), self.pool_size)
                await asyncio.gather(*map(interrupted, numbers[2:]), *map(served, numbers[:2]))
                await asyncio.gather(*map(served, numbers[:4]))  # on what the interrupted ones left
            await wire.heal()
        assert not wrong, f"callers got what was not theirs: {wrong}"
        assert not wire.handed_out_again, "an interrupted connection was handed out again"
        assert between >= 0.9 * cancelled, f"{between} of {cancelled} were between send and reply: too few to show it"

    # The pool

    async def test_a_small_pool_serves_a_thousand_callers_in_order_or_refuses_them(
        self, server: FaultyServer, make: MakeAt
    ) -> None:
        served: list[int] = []
        async with self.wire(server) as wire, make(wire.host, wire.port) as provider:
            for number in range(_STORED):
                await self.write(provider, number)
            wire.slow(0.002)

            async def caller(place: int) -> None:
                number = place % (_STORED // 2) * 2  # a capability may read odd numbers by another kind of call
                try:
                    answer = await self.read(provider, number)
                except (PoolExhausted, Overloaded):
                    return  # refused, and told so
                assert answer == number
                served.append(place)

            outcomes = await asyncio.gather(*map(caller, range(1000)), return_exceptions=True)
            await wire.heal()
        failed = [outcome for outcome in outcomes if outcome is not None]
        assert not failed, f"{len(failed)} of 1000 were neither served nor refused: {failed[:3]!r}"
        assert wire.most_links <= (self.most_connections or wire.most_links), f"{wire.most_links} connections at once"
        assert served, "nobody was served"
        # Nobody is overtaken by more than those who are served beside them.
        lines: dict[object, list[int]] = {}
        for place in served:
            lines.setdefault(self.line(place % (_STORED // 2) * 2), []).append(place)
        overtaken = max(map(_most_overtaken, lines.values()))
        assert overtaken < 10 * self.pool_size, f"somebody was overtaken by {overtaken} callers"

    # The server's death

    @pytest.mark.parametrize("fault", ["cut", "paused"])
    async def test_readiness_follows_the_server_and_liveness_does_not(
        self, server: FaultyServer, make: MakeAt, kmp_environment: IsolatedEnvironment, fault: str
    ) -> None:
        from kmp_core.service import Service

        async with self.wire(server) as wire:
            service = Service("faults", project="acme")
            service.replace(self.capability).by(make(wire.host, wire.port))
            async with service.lifespan():
                provider = await service.get(self.capability)
                await self.write(provider, 1)
                assert (await service.health.readiness()).healthy
                await (wire.cut() if fault == "cut" else asyncio.to_thread(server.pause))
                try:
                    ready, alive = await service.health.readiness(), service.health.liveness()
                finally:
                    await (wire.heal() if fault == "cut" else asyncio.to_thread(server.resume))

                async def ready_again() -> bool:
                    return (await service.health.readiness()).healthy

                await _within(BACK_SECONDS, ready_again, "the service is not ready again")
                assert await self.read(provider, 1) == 1
        assert not ready.healthy, "the service stays ready without its server"
        assert alive.healthy, "the service would be restarted for its server"

    async def test_what_was_acknowledged_survives_a_killed_server_which_is_used_again(
        self, server: FaultyServer, make: MakeAt
    ) -> None:
        acknowledged: list[int] = []

        async def keep_writing(provider: Any, first: int) -> None:
            for number in range(first, 1_000_000, 4):
                async with deadline(5):
                    await self.write(provider, number)
                acknowledged.append(number)

        leaving = make(server.host, server.port)
        async with make(server.host, server.port) as provider:
            await leaving.open()
            writers = [asyncio.ensure_future(keep_writing(provider, first)) for first in range(4)]
            while len(acknowledged) < 80 and not any(writer.done() for writer in writers):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            await asyncio.to_thread(server.kill)
            try:
                outcomes = await asyncio.gather(*writers, return_exceptions=True)
                with pytest.raises(KmpError):
                    await provider.check()
                late = await lateness({"close": leaving.close}, self.close_seconds)
            finally:
                await asyncio.to_thread(server.restart)
            assert all(isinstance(outcome, BackendError) for outcome in outcomes), outcomes
            assert late["close"] <= SLACK_SECONDS, "close took too long with the server dead"
            await self._serves(server, make)
            await self._used_again(provider)
            asked = acknowledged if self.keeps_acknowledged else []
            lost = [number for number in asked if await self.read(provider, number) != number]
            assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged writes are gone"
            await provider.check()

    async def _serves(self, server: FaultyServer, make: MakeAt) -> None:
        """Wait until the server serves somebody who was never there before: from then on it counts as back."""
        async with asyncio.timeout(60):
            while True:
                try:
                    async with make(server.host, server.port) as newcomer:
                        return await self.write(newcomer, 0)
                except BackendError:
                    await asyncio.sleep(0.1)

    async def _used_again(self, provider: Any) -> None:
        async def used() -> bool:
            try:
                async with deadline(BACK_SECONDS):
                    await self.write(provider, 0)
                    return await self.read(provider, 0) == 0
            except BackendError:
                return False

        await _within(BACK_SECONDS, used, "the server is back and not used again")


async def lateness(calls: Mapping[str, Call], seconds: float) -> dict[str, float]:
    """Make all calls at once, and tell for each how much later than its deadline it ended, net of the loop's stalls."""
    clock = asyncio.get_running_loop().time
    spans: dict[str, tuple[float, float]] = {}

    async def timed(name: str, call: Call) -> None:
        began = clock()
        await asyncio.gather(call(), return_exceptions=True)
        spans[name] = began + seconds, clock()

    async with Heart() as heart:
        await asyncio.gather(*(timed(name, call) for name, call in calls.items()))
    return {name: ended - due - heart.stalled(due, ended) for name, (due, ended) in spans.items()}


def _most_overtaken(served: list[int]) -> int:
    """By how many places somebody was served later, or earlier, than those who came in this order."""
    ranks = {place: rank for rank, place in enumerate(sorted(served))}
    return max(abs(ranks[place] - position) for position, place in enumerate(served))


async def _within(seconds: float, condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    clock = asyncio.get_running_loop().time
    async with Heart() as heart:
        began = clock()
        while not await condition():
            assert clock() - began - heart.stalled(began, clock()) < seconds, otherwise
            await asyncio.sleep(0.05)
