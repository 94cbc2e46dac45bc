"""A service with a handler, as a process of its own: SIGTERM drains it, and it leaves with code 0."""

import asyncio
import os
import signal
import sys

from kmp_messaging import Event
from kmp_messaging.embedded import SqliteBus

PROGRAM = """
import asyncio, sys
from kmp_core import Service
from kmp_messaging import Event, EventBus

class Asked(Event, topic="test.asked", key="who"):
    who: str

async def main():
    async with Service("answers") as service:
        bus = await service.get(EventBus)

        async def answer(event: Asked) -> None:
            print("begun", event.who, flush=True)
            while service.health.phase != "draining":  # until the signal was heard
                await asyncio.sleep(0.01)
            print("done", event.who, flush=True)

        bus.subscribe(Asked, answer, group="answers", retries=5)
        await service.run()
    print("closed", flush=True)

asyncio.run(main())
"""


class Asked(Event, topic="test.asked", key="who"):
    who: str


async def test_sigterm_lets_the_handler_end_commits_and_leaves_with_zero(tmp_path):
    program = tmp_path / "answers.py"
    program.write_text(PROGRAM)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), stdout=asyncio.subprocess.PIPE, cwd=tmp_path, env=variables
    )
    assert process.stdout is not None
    try:
        async with SqliteBus(directory=tmp_path / ".kmp" / "local") as bus:
            await bus.publish(Asked(who="ann"), Asked(who="ann"), Asked(who="ann"))
            line = await asyncio.wait_for(process.stdout.readline(), 30)
            assert line == b"begun ann\n"
            process.send_signal(signal.SIGTERM)
            rest = await asyncio.wait_for(process.stdout.read(), 30)
            assert await process.wait() == 0
            assert rest == b"done ann\nclosed\n"
            assert (await bus.lag(Asked, group="answers")).events == 2
            letters = [letter async for letter in bus.dead_letters()]
            assert letters == []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_what_is_given_up_is_told_in_the_log_with_its_place_and_without_secrets(caplog):
    async def answer(event: Asked) -> None:
        raise LookupError(f"nobody knows {event.who}, password=hunter2")

    async with SqliteBus("memory:") as bus:
        bus.subscribe(Asked, answer, group="answers", retries=1)
        await bus.start()
        await bus.publish(Asked(who="ann"))
        async with asyncio.timeout(30):
            while not caplog.records:  # noqa: ASYNC110 - a log line is no event of ours
                await asyncio.sleep(0.01)
        (letter,) = [letter async for letter in bus.dead_letters()]
    (record,) = caplog.records
    said = record.getMessage()
    assert f"group answers of topic test.asked gave up event '{letter.id}' of type 'Asked' at attempt 2" in said
    assert "LookupError: nobody knows ann, password=***" in said
    assert f"({__file__}, line {answer.__code__.co_firstlineno + 1})" in said
    assert "hunter2" not in caplog.text
