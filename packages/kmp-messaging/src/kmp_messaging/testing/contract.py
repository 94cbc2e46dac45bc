"""What every bus promises within one process."""

from __future__ import annotations

import asyncio
import functools
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import trace

from kmp_core.errors import DeadlineExceeded, InvalidInput, Unsupported
from kmp_core.testing import Make, ProviderContract
from kmp_messaging.envelope import metadata_of
from kmp_messaging.models import Event
from kmp_messaging.testing.samples import Noted, caught_up, letters_of, until
from kmp_messaging.values import DeadLetter

__all__ = ["EventBusContract"]

_TRACE, _SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


class EventBusContract(ProviderContract):
    """Derive from this, with a fixture `make` and a method `inject`; see `kmp_messaging.testing`."""

    async def inject(self, bus: Any, topic: str, content: bytes) -> None:
        """Put these bytes into the topic as they are, as another program might; override this."""
        raise NotImplementedError("put raw bytes into the topic")

    async def write(self, provider: Any) -> None:
        await provider.publish(Noted(who="ann", number=1))

    async def wrote(self, provider: Any) -> bool:
        lag = await provider.lag(Noted, group="nobody")
        return bool(lag.events)

    # -- delivery

    async def test_an_event_arrives_as_it_was_published(self, make: Make) -> None:
        seen: list[Noted] = []
        async with make() as bus:

            async def handle(event: Noted) -> None:
                seen.append(event)

            bus.subscribe(Noted, handle, group="g")
            await bus.start()
            sent = Noted(who='Zoë \u2028 \n "quoted"', number=7)
            await bus.publish(sent)
            await until(lambda: len(seen) == 1)
        assert seen == [sent]
        assert seen[0].time == sent.time
        assert metadata_of(seen[0]).id == metadata_of(sent).id
        assert metadata_of(seen[0]).key == sent.who
        assert metadata_of(seen[0]).attempt == 1

    async def test_each_group_gets_every_event_once_and_a_new_one_begins_with_the_oldest(self, make: Make) -> None:
        seen: dict[str, list[int]] = {"early": [], "late": []}
        async with make() as bus:

            async def early(event: Noted) -> None:
                seen["early"].append(event.number)

            async def late(event: Noted) -> None:
                seen["late"].append(event.number)

            bus.subscribe(Noted, group="early")(early)
            await bus.start()
            await bus.publish(*(Noted(who="ann", number=n) for n in range(20)))
            await until(lambda: len(seen["early"]) == 20)

            bus.subscribe(Noted, late, group="late")
            await until(lambda: len(seen["late"]) == 20)
            await bus.publish(Noted(who="ann", number=20))
            await until(lambda: len(seen["late"]) == len(seen["early"]) == 21)
        assert seen["early"] == seen["late"] == list(range(21))

    async def test_publish_all_takes_long_iterables_of_both_kinds(self, make: Make) -> None:
        async def later() -> Any:
            for number in range(700):
                yield Noted(who=f"k{number % 9}", number=number)

        async with make() as bus:
            assert await bus.publish_all(Noted(who="ann", number=n) for n in range(1200)) == 1200
            assert await bus.publish_all(later()) == 700
            assert (await bus.lag(Noted, group="nobody")).events == 1900

    async def test_events_without_a_key_arrive_too(self, make: Make) -> None:
        seen: set[int] = set()
        async with make() as bus:

            async def handle(event: Noted) -> None:
                seen.add(event.number)

            bus.subscribe(Noted, handle, group="g")
            await bus.start()
            await bus.publish(*(Noted(who=None, number=n) for n in range(200)))
            await until(lambda: len(seen) == 200)

    async def test_publishers_at_once_lose_nothing_and_keep_their_order(self, make: Make) -> None:
        seen: dict[str, list[int]] = defaultdict(list)
        async with make() as bus:

            async def publish(who: str) -> None:
                for number in range(50):
                    await bus.publish(Noted(who=who, number=number))

            async def handle(event: Noted) -> None:
                seen[str(event.who)].append(event.number)

            bus.subscribe(Noted, handle, group="g")
            await bus.start()
            await asyncio.gather(*(publish(f"k{n}") for n in range(12)))
            await until(lambda: sum(map(len, seen.values())) == 600)
        assert all(numbers == list(range(50)) for numbers in seen.values())

    # -- order and concurrency

    async def test_keys_keep_their_order_under_random_sleeps_and_errors(self, make: Make) -> None:
        dice = random.Random(7)  # noqa: S311 - repeatable, no secret
        done: dict[str, list[int]] = defaultdict(list)
        busy: set[str] = set()
        overlaps: list[str] = []
        async with make() as bus:

            async def handle(event: Noted) -> None:
                who = str(event.who)
                if who in busy:
                    overlaps.append(who)
                busy.add(who)
                try:
                    if dice.random() < 0.3:
                        await asyncio.sleep(dice.random() * 0.002)
                    if dice.random() < 0.01:
                        raise ValueError("try again")
                    done[who].append(event.number)
                finally:
                    busy.discard(who)

            bus.subscribe(Noted, handle, group="g", retries=50, concurrency=16)
            await bus.start()
            for start in range(0, 4000, 400):
                await bus.publish(*(Noted(who=f"k{n % 40}", number=n) for n in range(start, start + 400)))
            await until(lambda: sum(map(len, done.values())) >= 4000, within=60)
        assert not overlaps
        assert all(numbers == sorted(numbers) for numbers in done.values())

    async def test_different_keys_are_handled_at_the_same_time(self, make: Make) -> None:
        async with make() as bus:
            together = asyncio.Barrier(8)
            passed: list[int] = []

            async def handle(event: Noted) -> None:
                await together.wait()
                passed.append(event.number)

            bus.subscribe(Noted, handle, group="g", concurrency=8)
            await bus.start()
            await bus.publish(*(Noted(who=f"k{n}", number=n) for n in range(8)))
            await until(lambda: len(passed) == 8)

    # -- failures

    async def test_a_failing_event_is_retried_and_then_a_dead_letter_with_its_cause(self, make: Make) -> None:
        tries: list[int] = []
        after: list[int] = []
        async with make() as bus:

            async def handle(event: Noted) -> None:
                if event.number == 1:
                    tries.append(metadata_of(event).attempt)
                    raise ValueError("password=hunter2 was wrong")
                after.append(event.number)

            bus.subscribe(Noted, handle, group="g", retries=2)
            await bus.start()
            sent = Noted(who="ann", number=1)
            await bus.publish(sent, Noted(who="ann", number=2))
            await until(lambda: after == [2])
            (letter,) = await letters_of(bus, "g")
            assert await letters_of(bus, "another") == []
        assert tries == [1, 2, 3]
        assert (letter.cause, letter.attempts, letter.key) == ("ValueError", 3, "ann")
        assert letter.id == metadata_of(sent).id
        assert letter.topic == "contract.noted"
        assert letter.topic in letter.origin
        assert "hunter2" not in letter.detail
        assert json.loads(letter.content)["data"]["number"] == 1

    async def test_dead_letters_that_are_not_declared_are_refused(self, make: Make) -> None:
        async with make() as bus:
            if "dead_letters" in bus.abilities:
                assert await letters_of(bus) == []
                return
            with pytest.raises(Unsupported):
                async for _ in bus.dead_letters():
                    raise AssertionError

    async def test_a_key_that_is_retried_holds_up_no_other(self, make: Make) -> None:
        seen: list[str] = []
        async with make() as bus:

            async def handle(event: Noted) -> None:
                if event.who == "bad":
                    raise ValueError("never")
                seen.append(str(event.who))

            bus.subscribe(Noted, handle, group="g", retries=1_000_000, concurrency=1)
            await bus.start()
            await bus.publish(Noted(who="bad"), *(Noted(who=f"k{n}") for n in range(100)))
            await until(lambda: len(seen) == 100)
            # The later successes may not be committed past the event that is still to be handled.
            lag = await bus.lag(Noted, group="g")
            assert lag.events >= 1

    async def test_what_was_not_handled_is_handled_after_a_new_start(self, make: Make) -> None:
        fail = True
        seen: list[int] = []
        async with make() as bus:

            async def handle(event: Noted) -> None:
                if fail and event.number == 3:
                    raise ValueError("not now")
                seen.append(event.number)

            bus.subscribe(Noted, handle, group="g", retries=1_000_000)
            await bus.start()
            # So many keys that others share whatever part of the topic the failing one is in.
            await bus.publish(*(Noted(who=f"k{n}", number=n) for n in range(300)))
            await until(lambda: len(seen) == 299)
            await bus.drain()
            assert (await bus.lag(Noted, group="g")).events >= 1
            fail = False
            await bus.start()
            await until(lambda: 3 in seen)
            await bus.drain()
            assert (await bus.lag(Noted, group="g")).events == 0

    @pytest.mark.parametrize(
        ("content", "cause"),
        [
            (b"\x00\xff not json \n at all", "MalformedEvent"),
            (b"{}", "MalformedEvent"),
            (b'{"specversion":"1.0","id":"1","source":"/x","type":"Noted","data":' + b"[" * 100_000, "MalformedEvent"),
            (b'{"specversion":"1.0","id":"\\ud800","source":"/x","type":"Noted","data":{"who":"a"}}', "MalformedEvent"),
            (
                b'{"specversion":"1.0","id":"a\\u0000","source":"/x","type":"No\\u0000ted","data":{}}',
                "UnknownEventType",
            ),
            (
                b'{"specversion":"1.0","id":"1","source":"/x","type":"Noted","data":{"who":"ann","number":1e400}}',
                "InvalidEvent",
            ),
            (
                b'{"specversion":"1.0","id":"1","source":"/x","type":"Stranger","data":{}}',
                "UnknownEventType",
            ),
            (
                b'{"specversion":"1.0","id":"1","source":"/x","type":"Noted","data":{"who":"ann","number":"s3cret"}}',
                "InvalidEvent",
            ),
            (
                b'{"specversion":"9.0","id":"1","source":"/x","type":"Noted","data":{"who":"ann"}}',
                "MalformedEvent",
            ),
        ],
    )
    async def test_poison_becomes_a_dead_letter_as_it_came(self, make: Make, content: bytes, cause: str) -> None:
        seen: list[int] = []
        async with make() as bus:

            async def handle(event: Noted) -> None:
                seen.append(event.number)

            await bus.publish(Noted(who="ann", number=1))
            await self.inject(bus, "contract.noted", content)
            await bus.publish(Noted(who="ann", number=2))
            bus.subscribe(Noted, handle, group="g")
            await bus.start()
            await until(lambda: seen == [1, 2])
            letters: list[DeadLetter] = []
            while not letters:
                letters = await letters_of(bus, "g")
            await bus.drain()
            assert (await bus.lag(Noted, group="g")).events == 0
        assert [letter.content for letter in letters] == [content]
        assert letters[0].cause.endswith(cause)
        assert "s3cret" not in letters[0].detail

    async def test_unknown_attributes_and_fields_are_ignored(self, make: Make) -> None:
        seen: list[Noted] = []
        async with make() as bus:

            async def handle(event: Noted) -> None:
                seen.append(event)

            await self.inject(
                bus,
                "contract.noted",
                b'{"specversion":"1.7","id":"later","source":"/x","type":"Noted","time":"2031-05-01T10:00:00Z",'
                b'"novelty":{"a":1},"data":{"who":"ann","number":5,"fresh":[1]}}',
            )
            bus.subscribe(Noted, handle, group="g")
            await bus.start()
            await until(lambda: len(seen) == 1)
        assert seen[0].number == 5
        assert seen[0].time.isoformat() == "2031-05-01T10:00:00+00:00"

    async def test_a_handler_finds_its_remote_parent(self, make: Make) -> None:
        found: list[trace.SpanContext] = []
        async with make() as bus:

            async def handle(event: Noted) -> None:
                found.append(trace.get_current_span().get_span_context())

            bus.subscribe(Noted, handle, group="g")
            await bus.start()
            context = trace.SpanContext(_TRACE, _SPAN, is_remote=False, trace_flags=trace.TraceFlags(1))
            with trace.use_span(trace.NonRecordingSpan(context)):
                await bus.publish(Noted(who="ann"))
            await bus.publish(Noted(who="ann"))
            await until(lambda: len(found) == 2)
        assert (found[0].trace_id, found[0].span_id, found[0].is_remote) == (_TRACE, _SPAN, True)
        assert found[0].trace_flags.sampled
        assert not found[1].is_valid

    # -- batches

    async def test_batches_come_in_order_and_bounded(self, make: Make) -> None:
        batches: list[list[Noted]] = []
        async with make() as bus:

            async def handle(events: Sequence[Noted]) -> None:
                batches.append(list(events))

            if "batches" not in bus.abilities:
                with pytest.raises(Unsupported):
                    bus.subscribe_batch(Noted, handle, group="g")
                return
            await bus.publish(*(Noted(who=f"k{n % 5}", number=n) for n in range(1000)))
            bus.subscribe_batch(Noted, handle, group="g", size=64)
            await bus.start()
            await until(lambda: sum(map(len, batches)) == 1000)
        assert max(map(len, batches)) <= 64
        assert len(batches) < 100
        numbers: dict[str | None, list[int]] = defaultdict(list)
        for event in (event for batch in batches for event in batch):
            numbers[event.who].append(event.number)
        assert all(found == sorted(found) for found in numbers.values())

    async def test_one_bad_event_of_a_batch_becomes_a_dead_letter_and_the_others_do_not(self, make: Make) -> None:
        done: list[int] = []
        async with make() as bus:
            if "batches" not in bus.abilities:
                pytest.skip("the provider declares no batches")

            async def handle(events: Sequence[Noted]) -> None:
                if any(event.number == 37 for event in events):
                    raise ValueError("thirty-seven")
                done.extend(event.number for event in events)

            await bus.publish(*(Noted(who=f"k{n % 7}", number=n) for n in range(100)))
            bus.subscribe_batch(Noted, handle, group="g", retries=2, size=50)
            await bus.start()
            await until(lambda: len(done) == 99)
            letters: list[DeadLetter] = []
            while not letters:
                letters = await letters_of(bus, "g")
            await bus.drain()
            assert (await bus.lag(Noted, group="g")).events == 0
        assert sorted(done) == [n for n in range(100) if n != 37]
        assert [json.loads(letter.content)["data"]["number"] for letter in letters] == [37]
        for key in range(7):
            assert [n for n in done if n % 7 == key] == [n for n in range(100) if n % 7 == key and n != 37]

    # -- the end

    async def test_drain_lets_handlers_end_and_begins_nothing_new(self, make: Make) -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        done: list[int] = []
        async with make() as bus:

            async def handle(event: Noted) -> None:
                entered.set()
                await leave.wait()
                done.append(event.number)

            bus.subscribe(Noted, handle, group="g", concurrency=1)
            await bus.start()
            await bus.publish(*(Noted(who=f"k{n}", number=n) for n in range(5)))
            await entered.wait()
            draining = asyncio.ensure_future(bus.drain(timeout="10s"))
            await asyncio.sleep(0.02)
            assert not draining.done()
            leave.set()
            await draining
            assert len(done) == 1
            assert (await bus.lag(Noted, group="g")).events == 4

    async def test_drain_ends_in_time_when_a_handler_hangs_and_its_event_is_not_lost(self, make: Make) -> None:
        entered, hang = asyncio.Event(), True
        done: list[int] = []
        async with make() as bus:

            async def handle(event: Noted) -> None:
                entered.set()
                if hang:
                    await asyncio.Event().wait()
                done.append(event.number)

            bus.subscribe(Noted, handle, group="g")
            await bus.start()
            await bus.publish(Noted(who="ann", number=1))
            await entered.wait()
            await asyncio.wait_for(bus.drain(timeout=0.2), 15)
            assert (await bus.lag(Noted, group="g")).events == 1
            hang = False
            await bus.start()
            await until(lambda: done == [1])

    async def test_a_cancelled_subscription_ends_alone(self, make: Make) -> None:
        seen: dict[str, list[int]] = {"a": [], "b": []}
        async with make() as bus:

            async def a(event: Noted) -> None:
                seen["a"].append(event.number)

            async def b(event: Noted) -> None:
                seen["b"].append(event.number)

            first = bus.subscribe(Noted, a, group="a")
            bus.subscribe(Noted, b, group="b")
            await bus.start()
            await bus.publish(Noted(who="ann", number=1))
            await until(lambda: seen == {"a": [1], "b": [1]})
            await first.cancel()
            await first.cancel()
            await bus.publish(Noted(who="ann", number=2))
            await until(lambda: seen["b"] == [1, 2])
            assert seen["a"] == [1]
            assert (await bus.lag(Noted, group="a")).events == 1

    async def test_publish_out_of_time_writes_nothing_and_says_so(self, make: Make) -> None:
        async with make() as bus:
            with pytest.raises(DeadlineExceeded) as caught:
                await bus.publish(Noted(who="ann"), timeout=0)
            assert not caught.value.outcome_unknown
            assert not await self.wrote(bus)

    async def test_misuse_is_refused_in_words(self, make: Make) -> None:
        class Vague(Event):
            name: str

        async def handle(event: Any) -> None:
            raise AssertionError

        async with make() as bus:
            with pytest.raises(InvalidInput, match="has no topic"):
                await bus.publish(Vague(name="x"))
            with pytest.raises(InvalidInput, match="not an event"):
                await bus.publish("departed")
            with pytest.raises(InvalidInput, match="has no topic"):
                bus.subscribe(Vague, handle, group="g")
            with pytest.raises(InvalidInput, match="group"):
                bus.subscribe(Noted, handle, group="a b")
            with pytest.raises(InvalidInput, match="retries"):
                bus.subscribe(Noted, handle, group="g", retries=-1)
            bus.subscribe(Noted, handle, group="g")
            with pytest.raises(InvalidInput, match="already"):
                bus.subscribe(Noted, handle, group="g")

    async def test_a_handler_that_is_no_coroutine_function_is_refused(self, make: Make) -> None:
        def blocks(event: Noted) -> None:
            raise AssertionError

        def decorated(handler: Any) -> Any:
            @functools.wraps(handler)
            def call(*arguments: Any) -> Any:
                return handler(*arguments)

            return call

        seen: set[str] = set()

        async def note(name: str, event: Noted) -> None:
            seen.add(name)

        class Keeper:
            async def method(self, event: Noted) -> None:
                seen.add("method")

            async def __call__(self, event: Noted) -> None:
                seen.add("object")

        refused: list[Any] = [blocks, functools.partial(blocks), decorated(blocks), print, Keeper, 7]
        async with make() as bus:
            for wrong in refused:
                with pytest.raises(InvalidInput, match=r"^handler: .*; for example async def"):
                    bus.subscribe(Noted, wrong, group="g")
                with pytest.raises(InvalidInput, match=r"^handler: "):
                    bus.subscribe(Noted, group="g")(wrong)
                if "batches" in bus.abilities:
                    with pytest.raises(InvalidInput, match=r"^handler: "):
                        bus.subscribe_batch(Noted, wrong, group="g")
            await bus.publish(Noted(who="ann"))
            bus.subscribe(Noted, functools.partial(note, "partial"), group="a")
            bus.subscribe(Noted, decorated(functools.partial(note, "decorated")), group="b")
            bus.subscribe(Noted, Keeper().method, group="c")
            bus.subscribe(Noted, Keeper(), group="d")
            await bus.start()
            await until(lambda: seen == {"partial", "decorated", "method", "object"})

    async def test_lag_counts_what_is_not_committed_and_its_age(self, make: Make) -> None:
        async with make() as bus:
            if "lag" not in bus.abilities:
                with pytest.raises(Unsupported):
                    await bus.lag(Noted, group="g")
                return
            await bus.publish(*(Noted(who=f"k{n}") for n in range(10)))
            lag = await bus.lag(Noted, group="g")
            assert lag.events == 10
            assert 0 <= lag.seconds < 60

            async def handle(event: Noted) -> None:
                await asyncio.sleep(0)

            bus.subscribe(Noted, handle, group="g")
            await bus.start()
            await caught_up(bus, "g")
            assert (await bus.lag(Noted, group="g")).seconds == 0
