"""What a killed process leaves behind costs its successor little, and an event that kills is given up alone."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from kmp_messaging import BusSettings, metadata_of
from kmp_messaging.embedded import SqliteBus
from kmp_messaging.testing import Remote
from kmp_messaging.testing.processes import Worker
from kmp_messaging.testing.samples import Noted, until

QUICK = {"lease": 1.0, "retry_delay": 0.005, "retry_delay_limit": 0.04, "drain_timeout": 5.0}


def bus_in(directory: Path) -> SqliteBus:
    return SqliteBus(project="acme", directory=directory, settings=BusSettings(**QUICK))


@pytest.fixture
def remote(tmp_path):
    environment = {f"KMP_MESSAGING_BUS_{name.upper()}": f"{value}s" for name, value in QUICK.items()}
    return Remote("kmp_messaging.embedded:SqliteBus", {"project": "acme", "directory": str(tmp_path)}, environment)


async def kill_in_the_middle(remote: Remote, effects: Path, **options) -> None:
    """Kill a process that has a window full of events and handles one of them."""
    before = len(Worker.effects(effects))
    async with Worker(remote, effects, mode="hang", **options) as victim:
        await until(lambda: len(Worker.effects(effects)) > before)
        victim.send(signal.SIGKILL)
        await victim.wait()


async def test_after_one_kill_the_window_comes_in_batches_as_always(tmp_path, remote):
    batches = []
    async with bus_in(tmp_path) as bus:
        await bus.publish(*(Noted(who=f"k{n % 40}", number=n) for n in range(1000)))
        await kill_in_the_middle(remote, tmp_path / "effects", size=500)

        async def handle(events) -> None:
            batches.append([metadata_of(event).attempt for event in events])

        statements = []
        bus._store._database._writer.set_trace_callback(statements.append)
        bus.subscribe_batch(Noted, handle, group="g", size=500)
        await bus.start()
        await until(lambda: sum(map(len, batches)) == 1000)
        await bus.drain()
        bus._store._database._writer.set_trace_callback(None)
    assert len(batches) <= 10
    assert not any("INSERT INTO death" in each or "INSERT INTO attempt" in each for each in statements)
    assert sum("COMMIT" in each for each in statements) < 100


async def test_after_two_kills_in_a_row_the_events_of_both_are_handled_alone_and_noted_before(tmp_path, remote):
    batches, noted = [], []
    async with bus_in(tmp_path) as bus:
        await bus.publish(*(Noted(who=f"k{n % 5}", number=n) for n in range(60)))
        for _ in range(2):
            await kill_in_the_middle(remote, tmp_path / "effects", size=20)
        await bus.publish(*(Noted(who=f"k{n % 5}", number=n) for n in range(60, 120)))

        async def handle(events) -> None:
            batches.append([event.number for event in events])
            noted.append(await bus._store.read(lambda c: c.execute("SELECT count(*) FROM death").fetchone()[0]))

        bus.subscribe_batch(Noted, handle, group="g", size=20)
        await bus.start()
        await until(lambda: sum(map(len, batches)) == 120)
        left = await bus._store.read(lambda c: c.execute("SELECT count(*) FROM death").fetchone()[0])
        assert [letter async for letter in bus.dead_letters()] == []
    alone = {batch[0]: count for batch, count in zip(batches, noted, strict=True) if len(batch) == 1}
    assert all(alone[number] == 1 for number in range(60)), "each was noted before its handler, and no other was"
    assert left == 0
    assert any(len(batch) > 1 for batch in batches), "what no killed process ever had comes in batches"


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize("size", [None, 50])
async def test_an_event_that_kills_is_given_up_alone_whatever_the_retries(tmp_path, remote, retries, size):
    effects, deaths = tmp_path / "effects", 0
    async with bus_in(tmp_path) as bus:
        await bus.publish(*(Noted(who=f"k{n % 5}", number=n) for n in range(40)))
        letters = []
        while not letters:
            async with Worker(remote, effects, mode="die", retries=retries, size=size) as worker:
                ended = asyncio.ensure_future(worker.wait(60))
                while not ended.done() and not letters:
                    letters = [letter async for letter in bus.dead_letters(group="g")]
                    await asyncio.sleep(0.005)
                if letters:
                    await until(lambda: len({e.number for e in Worker.effects(effects) if e.what == "done"}) == 39)
                    worker.send(signal.SIGTERM)
                deaths += await ended == -signal.SIGKILL
        (letter,) = letters
        assert letter.cause.endswith("HandlerKilled")
        assert b'"number":13' in letter.content
    assert deaths == 2 + max(1, retries)
    begun = Counter(e.number for e in Worker.effects(effects) if e.what == "begun")
    assert begun[13] == deaths


async def test_kills_from_outside_never_give_an_innocent_event_up(tmp_path, remote):
    effects = tmp_path / "effects"
    async with bus_in(tmp_path) as bus:
        await bus.publish(*(Noted(who=f"k{n % 3}", number=n) for n in range(200)))
        for goal in range(20, 160, 20):
            async with Worker(remote, effects, mode="slow", retries=2) as victim:
                await until(lambda goal=goal: len({e.number for e in Worker.effects(effects)}) >= goal)
                victim.send(signal.SIGKILL)
                await victim.wait()
        async with Worker(remote, effects, retries=2):
            await until(lambda: len({e.number for e in Worker.effects(effects) if e.what == "done"}) == 200)
        assert [letter async for letter in bus.dead_letters()] == []
