"""Batches that fail: the one bad event is found by halves, in few calls, and keys keep their order meanwhile."""

import asyncio
from collections import defaultdict

from kmp_messaging import BusSettings, Event, metadata_of
from kmp_messaging.embedded import SqliteBus
from kmp_messaging.testing.samples import until

QUICK = {"retry_delay": 0.002, "retry_delay_limit": 0.01, "lease": 5.0, "drain_timeout": 5.0}


class Heard(Event, topic="test.heard", key="who"):
    who: str | None
    number: int


def bus_in_memory() -> SqliteBus:
    return SqliteBus("memory:", project="acme", settings=BusSettings(**QUICK))


async def letters_of(bus: SqliteBus, count: int) -> list[int]:
    found = []
    while len(found) < count:
        found = [letter async for letter in bus.dead_letters(group="g")]
        await asyncio.sleep(0.005)
    return numbers(found)


def numbers(letters) -> list[int]:
    return sorted(int(letter.content.rpartition(b'"number":')[2].rstrip(b"}")) for letter in letters)


async def handle_with(bad: set[int], *, keys: int, count: int = 512, retries: int = 2):
    """Everything handled and everything tried, in order."""
    calls, done = [], []
    async with bus_in_memory() as bus:

        async def handle(events) -> None:
            calls.append([event.number for event in events])
            if bad & {event.number for event in events}:
                raise ValueError("bad")
            done.extend((event.who, event.number) for event in events)

        events = [Heard(who=f"k{n % keys}" if keys else None, number=n) for n in range(count)]
        await bus.publish(*events)
        bus.subscribe_batch(Heard, handle, group="g", retries=retries, size=count)
        await bus.start()
        await until(lambda: len(done) == count - len(bad))
        assert await letters_of(bus, len(bad)) == sorted(bad)
        await bus.drain()
        assert (await bus.lag(Heard, group="g")).events == 0
    assert sorted(number for _, number in done) == [n for n in range(count) if n not in bad]
    order = defaultdict(list)
    for who, number in done:
        order[who].append(number)
    if keys:
        assert all(found == sorted(found) for found in order.values())
    return calls


async def test_one_bad_event_is_found_in_few_calls():
    for bad in (0, 37, 300, 511):
        calls = await handle_with({bad}, keys=40)
        # Two tries together, nine halvings with a call for the better half or two, and what the bad one's key held up.
        assert len(calls) <= 26, f"{len(calls)} calls for event {bad}"
        assert sum(map(len, calls)) < 4 * 512


async def test_events_of_one_key_behind_a_bad_one_come_together_once_it_is_given_up():
    calls = await handle_with({5}, keys=1)
    assert len(calls) <= 26
    assert max(map(len, calls[-3:])) > 400


async def test_several_bad_events_are_each_found():
    await handle_with({3, 4, 200, 201, 450}, keys=7)


async def test_events_without_a_key_are_halved_too():
    calls = await handle_with({99}, keys=0)
    assert len(calls) <= 26


async def test_a_batch_that_is_bad_throughout_ends_with_a_letter_for_each():
    await handle_with(set(range(60)), keys=7, count=60)


async def test_without_retries_each_event_still_gets_a_try_of_its_own():
    await handle_with({10, 11}, keys=3, count=64, retries=0)


async def test_an_event_of_a_batch_knows_its_attempt():
    seen = []
    async with bus_in_memory() as bus:

        async def handle(events) -> None:
            seen.append([metadata_of(event).attempt for event in events])
            if len(seen) == 1:
                raise ValueError("not yet")

        await bus.publish(Heard(who="ann", number=1), Heard(who="ann", number=2))
        bus.subscribe_batch(Heard, handle, group="g")
        await bus.start()
        await until(lambda: len(seen) == 2)
    assert seen == [[1, 1], [2, 2]]


async def test_a_batch_is_counted_in_one_statement():
    statements = []
    async with bus_in_memory() as bus:
        failed = asyncio.Event()

        async def handle(events) -> None:
            if not failed.is_set():
                failed.set()
                bus._store._database._writer.set_trace_callback(statements.append)
                raise ValueError("once")

        await bus.publish(*(Heard(who=f"k{n}", number=n) for n in range(300)))
        bus.subscribe_batch(Heard, handle, group="g")
        await bus.start()
        await failed.wait()
        await until(lambda: any("INSERT INTO attempt" in statement for statement in statements))
        bus._store._database._writer.set_trace_callback(None)
    assert sum("INSERT INTO attempt" in statement for statement in statements) == 1
