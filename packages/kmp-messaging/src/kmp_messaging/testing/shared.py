"""What a bus promises that several processes share, shown with processes that are killed and stopped."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from kmp_core.testing import Make
from kmp_messaging.testing.contract import EventBusContract
from kmp_messaging.testing.processes import Effect, Remote, Worker
from kmp_messaging.testing.samples import Noted, caught_up, letters_of, until
from kmp_messaging.values import DeadLetter

__all__ = ["SharedEventBusContract"]


class SharedEventBusContract(EventBusContract):
    """Needs a fixture `remote` beside `make`: how another process makes the same bus, with a lease of a second."""

    @pytest.fixture
    def remote(self) -> Remote:
        """The bus of project `acme` for another process; override this fixture."""
        raise NotImplementedError("define a fixture `remote` that returns a Remote")

    @pytest.fixture
    def effects(self, tmp_path: Path) -> Path:
        """The file in which the processes note what they did."""
        return tmp_path / "effects.jsonl"

    async def test_another_process_gets_what_this_one_published(
        self, make: Make, remote: Remote, effects: Path
    ) -> None:
        async with make() as bus, Worker(remote, effects):
            for number in range(5):  # each finds the other process idle
                await bus.publish(Noted(who="first", number=number))
                await until(lambda number=number: len(_done(effects)) == number + 1)  # type: ignore[misc]
            await bus.publish(*(Noted(who=f"k{n % 3}", number=n) for n in range(5, 30)))
            await until(lambda: len(_done(effects)) == 30)
        by_key: dict[str | None, list[int]] = defaultdict(list)
        for effect in _done(effects):
            by_key[effect.who].append(effect.number)
        assert all(numbers == sorted(numbers) for numbers in by_key.values())

    async def test_a_group_divides_the_work_and_goes_on_when_a_member_leaves(
        self, make: Make, remote: Remote, effects: Path
    ) -> None:
        slow = [Worker(remote, effects, mode="slow") for _ in range(2)]
        async with make() as bus, slow[0] as first, slow[1] as second:
            number = 0
            while len({effect.process for effect in _done(effects)}) < 2:
                await bus.publish(*(Noted(who=f"k{n}", number=n) for n in range(number, number + 50)))
                number += 50
                assert number < 20_000, "one of the two members never got anything"
                await asyncio.sleep(0.02)
            await until(lambda: len(_done(effects)) == number)
            assert Counter(effect.number for effect in _done(effects)).most_common(1)[0][1] == 1
            first.send(signal.SIGTERM)
            assert await first.wait() == 0
            await bus.publish(*(Noted(who=f"k{n}", number=n) for n in range(number, number + 100)))
            await until(lambda: len({effect.number for effect in _done(effects)}) == number + 100)
            late = {effect.process for effect in _done(effects) if effect.number >= number}
            assert late == {second.pid}

    async def test_a_killed_handler_loses_nothing(self, make: Make, remote: Remote, effects: Path) -> None:
        async with make() as bus:
            await bus.publish(*(Noted(who=f"k{n % 5}", number=n) for n in range(200)))
            async with Worker(remote, effects, mode="hang") as victim:
                # The effect is done; the commit is not.
                await until(lambda: len(_begun(effects)) >= 3)
                victim.send(signal.SIGKILL)
                await victim.wait()
            begun = {effect.number for effect in _begun(effects)}
            async with Worker(remote, effects):
                await until(lambda: len({effect.number for effect in _done(effects)}) == 200)
            assert begun <= {effect.number for effect in _done(effects)}
            assert await letters_of(bus) == []

    async def test_a_process_killed_again_and_again_loses_nothing(
        self, make: Make, remote: Remote, effects: Path
    ) -> None:
        async with make() as bus:
            await bus.publish(*(Noted(who=f"k{n % 5}", number=n) for n in range(300)))
            for goal in (50, 120, 200):
                async with Worker(remote, effects, mode="slow", retries=50) as victim:
                    await until(lambda goal=goal: len({e.number for e in _done(effects)}) >= goal)  # type: ignore[misc]
                    victim.send(signal.SIGKILL)
                    await victim.wait()
            async with Worker(remote, effects, retries=50):
                await until(lambda: len({effect.number for effect in _done(effects)}) == 300)
                await caught_up(bus, "g")
        _assert_order(_done(effects))

    async def test_attempts_outlive_the_process(self, make: Make, remote: Remote, effects: Path) -> None:
        async with make() as bus:
            await bus.publish(Noted(who="ann", number=1))
            async with Worker(remote, effects, mode="fail", retries=5) as victim:
                await until(lambda: len(_begun(effects)) >= 3)
                victim.send(signal.SIGKILL)
                await victim.wait()
            async with Worker(remote, effects, mode="fail", retries=5):
                letters: list[DeadLetter] = []
                while not letters:
                    letters = await letters_of(bus, "g")
                    await asyncio.sleep(0.01)
        attempts = [effect.attempt for effect in _begun(effects)]
        # At the moment of the kill one attempt may have been begun and not counted.
        assert 6 <= len(attempts) <= 7
        assert attempts == sorted(attempts)
        assert letters[0].attempts == 6
        assert letters[0].cause == "ValueError"

    async def test_an_event_that_kills_its_process_is_given_up_alone(
        self, make: Make, remote: Remote, effects: Path
    ) -> None:
        async with make() as bus:
            await bus.publish(*(Noted(who=f"k{n % 5}", number=n) for n in range(40)))
            deaths = 0
            letters: list[DeadLetter] = []
            while not letters:
                async with Worker(remote, effects, mode="die", retries=2) as worker:
                    ended = asyncio.ensure_future(worker.wait(60))
                    while not ended.done() and not letters:
                        letters = await letters_of(bus, "g")
                        await asyncio.sleep(0.01)
                    if letters:
                        await until(lambda: len({effect.number for effect in _done(effects)}) == 39)
                        worker.send(signal.SIGTERM)
                    code = await ended
                    deaths += code == -signal.SIGKILL
                assert deaths <= 5, "the event goes on killing"
        (letter,) = letters
        assert letter.cause.endswith("HandlerKilled")
        assert b'"number":13' in letter.content
        assert deaths == 4  # the first life is not counted: nobody knew yet that it would end so

    async def test_a_member_stopped_beyond_its_lease_commits_nothing_over_its_successor(
        self, make: Make, remote: Remote, effects: Path
    ) -> None:
        async with make() as bus, Worker(remote, effects, mode="slow") as stalled:
            await bus.publish(*(Noted(who=f"k{n % 8}", number=n) for n in range(400)))
            await until(lambda: len(_done(effects)) >= 20)
            stalled.send(signal.SIGSTOP)
            async with Worker(remote, effects) as successor:
                await until(lambda: len({effect.number for effect in _done(effects)}) == 400, within=40)
                await caught_up(bus, "g")
                before = len(_begun(effects))
                stalled.send(signal.SIGCONT)
                await bus.publish(*(Noted(who=f"k{n % 8}", number=n) for n in range(400, 800)))
                await until(lambda: len({effect.number for effect in _done(effects)}) == 800, within=40)
                assert successor.pid in {effect.process for effect in _done(effects)}
                await caught_up(bus, "g")
            again = [e for e in _begun(effects)[before:] if e.number < 400]
            assert again == [], "the stalled member began events that its successor had handled"
            assert await letters_of(bus) == []


def _begun(path: Path) -> list[Effect]:
    return [effect for effect in Worker.effects(path) if effect.what == "begun"]


def _done(path: Path) -> list[Effect]:
    return [effect for effect in Worker.effects(path) if effect.what == "done"]


def _assert_order(effects: list[Effect]) -> None:
    """Within a key, what is done for the first time comes in the order of publication."""
    seen: dict[str | None, list[int]] = defaultdict(list)
    for effect in effects:
        if effect.number not in seen[effect.who]:
            seen[effect.who].append(effect.number)
    assert all(numbers == sorted(numbers) for numbers in seen.values())
