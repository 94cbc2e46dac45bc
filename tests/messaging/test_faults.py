"""A full disk, a locked file, a stopped or hanging handler: typed errors, and nothing is lost."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from kmp_core.deadlines import deadline
from kmp_core.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from kmp_messaging import BusSettings, Event, metadata_of
from kmp_messaging.embedded import SqliteBus
from kmp_messaging.embedded.failures import jitter
from kmp_messaging.embedded.log import append
from kmp_messaging.testing.samples import until
from small_disks import mounted, remount

QUICK = {"retry_delay": 0.005, "retry_delay_limit": 0.02, "lease": 1.0, "drain_timeout": 5.0}


class Told(Event, topic="test.told", key="who"):
    who: str
    number: int = 0
    text: str = ""


def bus_in(directory: Path, **settings) -> SqliteBus:
    return SqliteBus(project="acme", directory=directory, settings=BusSettings(**{**QUICK, **settings}))


async def count(bus: SqliteBus) -> int:
    return (await bus.lag(Told, group="nobody")).events


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "disk", "size=2m,mode=0700") as place:
        yield place


def fill(place: Path) -> Path:
    """Leave no room for anything."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return filler


async def test_publishing_to_a_full_disk_fails_and_what_was_published_stays(small_disk):
    seen = []
    async with bus_in(small_disk / "acme") as bus:
        published = 0
        with pytest.raises(Unavailable) as caught:
            while True:
                await bus.publish(*(Told(who=f"k{n}", number=published, text="x" * 1000) for n in range(20)))
                published += 1
        assert not caught.value.outcome_unknown
        assert await count(bus) == 20 * published

        async def handle(event: Told) -> None:
            seen.append((event.who, event.number))

        remount(small_disk, "size=8m")
        bus.subscribe(Told, handle, group="g")
        await bus.start()
        await until(lambda: len(seen) == 20 * published)
    assert len(set(seen)) == 20 * published


async def test_a_dead_letter_that_cannot_be_stored_keeps_its_event(small_disk):
    tries, later = [], []
    async with bus_in(small_disk / "acme") as bus:

        async def handle(event: Told) -> None:
            if event.number == 1:
                tries.append(metadata_of(event).attempt)
                if len(tries) == 1:
                    fill(small_disk)
                raise ValueError("bad")
            later.append(event.number)

        bus.subscribe(Told, handle, group="g", retries=1)
        await bus.start()
        # Its letter needs more room than the file has left of its own.
        await bus.publish(Told(who="ann", number=1, text="x" * 200_000), Told(who="ann", number=2))
        await until(lambda: len(tries) == 2)
        with pytest.raises(Unavailable):
            while True:
                await bus.check()
                await asyncio.sleep(0.01)
        assert [letter async for letter in bus.dead_letters()] == []
        assert (await bus.lag(Told, group="g")).events == 2
        assert later == []
        (small_disk / "filler").unlink()
        await until(lambda: later == [2])
        (letter,) = [letter async for letter in bus.dead_letters()]
        assert letter.attempts == 2
        assert len(letter.content) > 200_000


async def test_a_locked_file_ends_publishing_in_time_with_nothing_written(tmp_path):
    async with bus_in(tmp_path) as bus:
        await bus.publish(Told(who="ann", number=0))
        other = sqlite3.connect(tmp_path / "bus.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        alone = await asyncio.gather(bus.publish(Told(who="ann"), timeout=0.1), return_exceptions=True)
        calls = [bus.publish(Told(who=f"k{n}"), timeout=0.1 + n / 20) for n in range(6)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, DeadlineExceeded) for outcome in (*alone, *outcomes))
        assert not alone[0].outcome_unknown
        assert not outcomes[0].outcome_unknown
        assert any(outcome.outcome_unknown for outcome in outcomes[1:])
        other.execute("ROLLBACK")
        other.close()
        await bus.publish(Told(who="ann", number=1))
        # Nobody who was told that nothing is known may be wrong, and nobody who was told that nothing was written.
        unknown = sum(outcome.outcome_unknown for outcome in outcomes)
        assert 2 <= await count(bus) <= 2 + unknown


async def test_a_call_whose_turn_never_came_wrote_nothing_and_says_so(tmp_path):
    async with bus_in(tmp_path) as bus:
        await bus.publish(Told(who="ann"))
        with contextlib.closing(sqlite3.connect(tmp_path / "bus.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            first = asyncio.create_task(bus.publish(Told(who="ann"), timeout="60s"))
            await until(lambda: bus._publisher._busy)
            with pytest.raises(DeadlineExceeded, match="nothing was written") as late:
                await bus.publish(Told(who="bob"), timeout=0.1)
            assert not late.value.outcome_unknown
            assert not first.done()
        await first
        assert await count(bus) == 2


async def test_the_deadline_of_who_came_first_does_not_bound_those_who_waited_behind(tmp_path):
    async with bus_in(tmp_path) as bus:
        await bus.publish(Told(who="ann"))
        with contextlib.closing(sqlite3.connect(tmp_path / "bus.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")

            async def impatient() -> None:
                async with deadline("300ms"):
                    await bus.publish(Told(who="ann"))

            first = asyncio.create_task(impatient())
            await until(lambda: bus._publisher._busy)
            second = asyncio.create_task(bus.publish(Told(who="bob"), timeout="60s"))
            with pytest.raises(DeadlineExceeded):
                await first
        await second
        assert await count(bus) == 2


async def test_a_topic_that_was_full_hides_no_outcome_that_is_unknown(tmp_path, monkeypatch):
    async with bus_in(tmp_path) as bus:
        outcomes = [Overloaded("full", retry_after=0), DeadlineExceeded("sent", outcome_unknown=True)]

        async def submit(*arguments):
            raise outcomes.pop(0)

        monkeypatch.setattr(bus._publisher, "_submit", submit)
        with pytest.raises(DeadlineExceeded) as late:
            await bus.publish(Told(who="ann"), timeout="60s")
        assert late.value.outcome_unknown
        assert outcomes == []


def test_the_wait_before_a_retry_is_bounded_however_often_it_failed():
    for failures in (1, 2, 40, 5000):
        assert all(0 <= jitter(failures, 0.1, 30.0) <= min(30.0, 0.1 * 2.0 ** min(failures, 20)) for _ in range(20))


async def test_calls_that_share_a_transaction_are_no_more_than_it_may_hold(tmp_path, monkeypatch):
    async with bus_in(tmp_path) as bus:
        sizes, append = [], bus._publisher._append

        def watched(connection, batch):
            sizes.append(batch.size)
            append(connection, batch)

        monkeypatch.setattr(bus._publisher, "_append", watched)
        await bus.publish(Told(who="ann"))
        with contextlib.closing(sqlite3.connect(tmp_path / "bus.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            large = [Told(who="ann", text="x" * 900_000) for _ in range(3)]
            calls = [asyncio.create_task(bus.publish(*large, timeout="60s")) for _ in range(10)]
            await until(lambda: len(bus._publisher._queue) == 9)
        await asyncio.gather(*calls)
        assert await count(bus) == 31
    assert max(sizes) < 11 * 1024**2
    assert 4 <= len(sizes) < 10, "each call had a transaction of its own, or all had one"


async def test_cancelled_publishing_is_all_or_nothing(tmp_path):
    async with bus_in(tmp_path) as bus:
        for turns in range(30):
            call = asyncio.ensure_future(bus.publish(*(Told(who=f"k{n}") for n in range(10))))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await bus.publish(*(Told(who=f"k{n}") for n in range(10)))
        assert await count(bus) % 10 == 0


async def test_a_wrong_event_among_good_ones_writes_none(tmp_path):
    async with bus_in(tmp_path) as bus:
        with pytest.raises(InvalidInput):
            await bus.publish(Told(who="ann"), Told(who="\ud800"))
        assert await count(bus) == 0


async def test_a_handler_that_hangs_counts_as_failed(tmp_path):
    entered = []
    async with bus_in(tmp_path, handler_timeout=0.1) as bus:

        async def handle(event: Told) -> None:
            entered.append(event.number)
            await asyncio.Event().wait()

        bus.subscribe(Told, handle, group="g", retries=1)
        await bus.start()
        await bus.publish(Told(who="ann", number=1), Told(who="ann", number=2))
        await until(lambda: entered == [1, 1, 2, 2])
        letters = []
        while len(letters) < 2:
            letters = [letter async for letter in bus.dead_letters()]
            await asyncio.sleep(0.01)
        assert {letter.cause for letter in letters} == {"kmp_core.errors.DeadlineExceeded"}


async def test_a_handler_that_awaits_a_cancelled_task_counts_as_failed(tmp_path):
    async with bus_in(tmp_path) as bus:

        async def handle(event: Told) -> None:
            task = asyncio.ensure_future(asyncio.sleep(10))
            task.cancel()
            await task

        bus.subscribe(Told, handle, group="g", retries=0)
        await bus.start()
        await bus.publish(Told(who="ann"))
        letters = []
        while not letters:
            letters = [letter async for letter in bus.dead_letters()]
            await asyncio.sleep(0.01)
        assert letters[0].cause == "RuntimeError"


async def test_a_topic_that_is_full_makes_publishers_wait_for_handlers(tmp_path):
    async with bus_in(tmp_path, backlog_size=70_000, retention_size=4096) as bus:
        with pytest.raises(Overloaded, match="nothing was written"):
            while True:
                await bus.publish(*(Told(who=f"k{n}", text="x" * 1000) for n in range(10)), timeout=1.0)
        kept = await count(bus)
        assert 40 <= kept <= 70
        # A group that knows nothing yet begins with what is kept, and makes room.
        seen = []

        async def handle(event: Told) -> None:
            seen.append(event.number)

        bus.subscribe(Told, handle, group="g")
        await bus.start()
        for _ in range(20):
            await bus.publish(*(Told(who=f"k{n}", text="x" * 1000) for n in range(10)), timeout="10s")
        await until(lambda: len(seen) >= kept + 200)


async def test_a_full_topic_is_told_also_where_the_time_ends_while_it_is_looked_at_again(tmp_path, monkeypatch):
    async with bus_in(tmp_path, backlog_size=70_000, retention_size=4096) as bus:
        with pytest.raises(Overloaded):
            while True:
                await bus.publish(*(Told(who=f"k{n}", text="x" * 1000) for n in range(10)), timeout="1s")
        refused, submit = asyncio.Event(), bus._publisher._submit

        async def watched(*arguments):
            try:
                await submit(*arguments)
            except Overloaded:
                refused.set()
                raise

        monkeypatch.setattr(bus._publisher, "_submit", watched)
        call = asyncio.create_task(bus.publish(Told(who="k", text="x" * 9000), timeout="2s"))
        await refused.wait()
        with contextlib.closing(sqlite3.connect(tmp_path / "bus.db", isolation_level=None)) as neighbour:
            neighbour.execute("BEGIN IMMEDIATE")  # whose transaction outlasts the call
            with pytest.raises(Overloaded, match="nothing was written") as full:
                await call
        assert isinstance(full.value.__cause__, DeadlineExceeded)


async def test_old_events_go_once_every_group_has_handled_them(tmp_path):
    async with bus_in(tmp_path, retention_size=64_000, partitions=2) as bus:
        seen = {"fast": 0, "slow": 0}
        hold = asyncio.Event()

        async def fast(event: Told) -> None:
            seen["fast"] += 1

        async def slow(event: Told) -> None:
            await hold.wait()
            seen["slow"] += 1

        bus.subscribe(Told, fast, group="fast")
        bus.subscribe(Told, slow, group="slow")
        await bus.start()
        await bus.publish(Told(who="k0"))
        await until(lambda: all(consumer._membership is not None for consumer in bus._consumers.values()))
        await until(lambda: seen["fast"] == 1)
        for number in range(60):
            await bus.publish(*(Told(who=f"k{n}", number=number, text="x" * 500) for n in range(20)))
        await until(lambda: seen["fast"] == 1201)
        # One group still needs them all, so all are there.
        assert await count(bus) == 1201
        hold.set()
        await until(lambda: seen["slow"] == 1201)
        for number in range(200):
            await bus.publish(*(Told(who=f"k{n}", number=number, text="x" * 500) for n in range(20)))
        await until(lambda: seen["slow"] == 5201)
        await bus.drain()
        await bus.publish(*(Told(who=f"k{n}") for n in range(20)))
        assert await count(bus) < 1000


async def test_the_memory_that_a_slow_group_needs_is_bounded(tmp_path):
    hold = asyncio.Event()
    async with bus_in(tmp_path, in_flight_events=100) as bus:
        seen = []

        async def handle(event: Told) -> None:
            await hold.wait()
            seen.append(event.number)

        for start in range(0, 3000, 100):
            await bus.publish(*(Told(who=f"k{n}", number=start + n) for n in range(100)))
        bus.subscribe(Told, handle, group="g", concurrency=4)
        await bus.start()
        (consumer,) = bus._consumers.values()
        await until(lambda: consumer._membership is not None and bool(consumer._membership.size))
        held = sum(partition.held for partition in consumer._membership.partitions.values())
        # A row is taken whole, so the last one may exceed the bound by what it holds.
        assert held <= 100 + 20
        hold.set()
        await until(lambda: len(seen) == 3000)
        assert sorted(seen) == list(range(3000))


def levels(statements: list[str], what: str) -> set[str]:
    """How durable the transactions were in which a statement with these words ran."""
    found, level = set(), "full"
    for statement in statements:
        if statement.startswith("PRAGMA synchronous"):
            level = statement.rpartition(" ")[2]
        if what in statement:
            found.add(level)
    return found


@pytest.mark.parametrize(("choice", "published"), [(None, {"full"}), ("unsafe_at_power_cut", {"normal"})])
async def test_what_is_published_waits_for_the_disk_unless_told_otherwise(tmp_path, choice, published):
    statements, seen = [], []
    async with bus_in(tmp_path, **({} if choice is None else {"synchronous": choice})) as bus:

        async def handle(event: Told) -> None:
            seen.append(event.number)

        bus.subscribe(Told, handle, group="g")
        await bus.start()
        (level,) = await bus._store._database.write(lambda c: c.execute("PRAGMA synchronous").fetchone())
        assert {level} == ({2} if choice is None else {1})
        bus._store._database._writer.set_trace_callback(statements.append)
        for number in range(30):
            await bus.publish(Told(who="ann", number=number))
        await until(lambda: len(seen) == 30)
        await bus.drain()
        bus._store._database._writer.set_trace_callback(None)
    if choice is not None:
        statements.insert(0, "PRAGMA synchronous = normal")
    assert levels(statements, "INSERT INTO log") == published
    # A position that is lost costs a second handling and nothing else, so nobody waits for it.
    assert levels(statements, "UPDATE progress") == {"normal"}


async def test_settings_are_checked_with_their_units():
    settings = BusSettings(lease="1500ms", event_size="2MiB")
    assert settings.lease.total_seconds() == 1.5
    assert settings.event_size == 2 * 1024**2


async def test_a_stranger_s_type_takes_no_more_of_a_letter_than_a_type_may_have(tmp_path):
    content = b'{"specversion":"1.0","id":"1","source":"/x","type":"' + b"T" * 5000 + b'","data":{}}'

    async def handle(event: Told) -> None:
        raise AssertionError

    async with bus_in(tmp_path) as bus:
        topic = await bus._store.topic("test.told")
        await bus._store.write(lambda c: append(c, {topic.slots[0]: [content]}))
        bus.subscribe(Told, handle, group="g", retries=0)
        await bus.start()
        letters = []
        async with asyncio.timeout(30):
            while not letters:
                letters = [letter async for letter in bus.dead_letters()]
                await asyncio.sleep(0.01)
    assert (letters[0].type, letters[0].content) == ("T" * 200, content)
