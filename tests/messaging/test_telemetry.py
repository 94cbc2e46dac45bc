"""What a bus tells of its work: how long handlers took, and how many events came with a look into the log."""

import asyncio

from kmp_core.testing import Recorder
from kmp_messaging import BusSettings, Event
from kmp_messaging.embedded import SqliteBus
from kmp_messaging.testing.samples import until


class Timed(Event, topic="test.timed", key="who"):
    who: str
    number: int = 0


def bus_in_memory() -> SqliteBus:
    return SqliteBus("memory:", project="acme", settings=BusSettings(retry_delay=0.001, retry_delay_limit=0.002))


def processing(recorder):
    return [point for point in recorder.points if point.name == "messaging.process.duration"]


async def test_each_batch_is_one_point_with_its_topic_group_and_error():
    seen = []
    with Recorder() as recorder:
        async with bus_in_memory() as bus:

            async def handle(events) -> None:
                await asyncio.sleep(0.02)
                seen.append(len(events))
                if len(seen) == 1:
                    raise ValueError("once")

            await bus.publish(*(Timed(who=f"k{n}", number=n) for n in range(100)))
            bus.subscribe_batch(Timed, handle, group="g", size=50)
            await bus.start()
            await until(lambda: sum(seen) == 150)
            await bus.drain()
    points = processing(recorder)
    assert len(points) == len(seen)
    assert all(0.02 <= point.value < 10 for point in points)
    assert [point.attributes.get("error.type") for point in points].count("ValueError") == 1
    assert points[-1].attributes["messaging.destination.name"] == "test.timed"
    assert points[-1].attributes["messaging.consumer.group.name"] == "g"
    assert points[-1].attributes["messaging.operation.name"] == "process"
    assert points[-1].attributes["kmp.project"] == "acme"


async def test_single_events_are_measured_by_the_run():
    seen = []
    with Recorder() as recorder:
        async with bus_in_memory() as bus:

            async def handle(event: Timed) -> None:
                seen.append(event.number)

            await bus.publish(*(Timed(who=f"k{n}", number=n) for n in range(640)))
            bus.subscribe(Timed, handle, group="g")
            await bus.start()
            await until(lambda: len(seen) == 640)
            await bus.drain()
    assert 1 <= len(processing(recorder)) <= 200


async def test_a_look_into_the_log_says_how_many_events_came():
    seen = []
    with Recorder() as recorder:
        async with bus_in_memory() as bus:

            async def handle(event: Timed) -> None:
                seen.append(event.number)

            await bus.publish(*(Timed(who=f"k{n}", number=n) for n in range(300)))
            bus.subscribe(Timed, handle, group="g")
            await bus.start()
            await until(lambda: len(seen) == 300)
            await bus.drain()
    looks = [span for span in recorder.spans if span.name.startswith("receive")]
    assert sum(span.attributes["messaging.batch.message_count"] for span in looks) == 300
    assert all(span.ended for span in looks)
