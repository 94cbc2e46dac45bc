"""User code passes the strict checkers without a cast; a handler of the wrong event is refused in readable words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from collections.abc import Sequence

from kmp_core import Service
from kmp_messaging import DeadLetter, Event, EventBus, metadata_of
from kmp_messaging.embedded import SqliteBus


class Departed(Event, topic="flights.departed", key="origin"):
    flight: str
    origin: str
    delay_minutes: float | None


async def main() -> None:
    async with Service("delays") as service:
        bus = await service.get(EventBus)

        async def record(event: Departed) -> None:
            print(event.time.isoformat(), event.flight.upper(), metadata_of(event).id)

        async def record_many(events: Sequence[Departed]) -> None:
            print(len(events), events[0].origin)

        @bus.subscribe(Departed, group="decorated")
        async def decorated(event: Departed) -> None:
            print(event.flight)

        bus.subscribe(Departed, record, group="delays", retries=5)
        bus.subscribe_batch(Departed, record_many, group="many")
        await bus.publish(Departed(flight="UA1545", origin="EWR", delay_minutes=2.0))
        letters: list[DeadLetter] = [letter async for letter in bus.dead_letters(Departed)]
        print(letters, decorated)
        await service.run()


async def alone() -> None:
    async with SqliteBus("memory:") as bus:
        used: EventBus = bus
        print(await used.publish_all(Departed(flight=str(n), origin="EWR", delay_minutes=None) for n in range(3)))
"""

BAD = """
from kmp_messaging import Event, EventBus


class Departed(Event, topic="flights.departed"):
    flight: str


class Arrived(Event, topic="flights.arrived"):
    flight: str


async def record(event: Arrived) -> None:
    print(event)


def wire(bus: EventBus) -> None:
    bus.subscribe(Departed, record, group="delays")
"""


def mypy(program: Path) -> subprocess.CompletedProcess[str]:
    config = program.with_name("mypy.ini")
    config.write_text("[mypy]\nstrict = True\nplugins = pydantic.mypy\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--no-incremental", str(program)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=program.parent)


def pyright(program: Path) -> list[str]:
    config = program.with_name("pyrightconfig.json")
    config.write_text(json.dumps({"typeCheckingMode": "strict", "include": [program.name]}))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=program.parent)
    return [found["message"] for found in json.loads(done.stdout)["generalDiagnostics"]]


@pytest.mark.timeout(300)
def test_user_code_passes_strict_mypy(tmp_path):
    program = tmp_path / "good.py"
    program.write_text(GOOD)
    done = mypy(program)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(300)
def test_user_code_passes_strict_pyright(tmp_path):
    program = tmp_path / "good.py"
    program.write_text(GOOD)
    found = [message for message in pyright(program) if '"decorated" is not accessed' not in message]
    assert found == []


@pytest.mark.timeout(300)
def test_a_handler_of_another_event_is_refused_by_both_in_readable_words(tmp_path):
    program = tmp_path / "bad.py"
    program.write_text(BAD)
    done = mypy(program)
    assert done.returncode == 1
    (fault,) = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert "Arrived" in done.stdout
    assert "subscribe" in fault or "Handler" in fault or "Callable" in fault
    messages = pyright(program)
    assert any("Departed" in message and "Arrived" in message for message in messages)
