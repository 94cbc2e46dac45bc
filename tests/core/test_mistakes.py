"""What people get wrong in their first ten minutes: one screen that says what and where, a code that is not 0."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from small_disks import mounted, remount

PREAMBLE = """\
import asyncio, sys
from datetime import UTC, datetime
from kmp_core import Service, run
from kmp_core.settings import Settings
from kmp_messaging import Event, EventBus
from kmp_storage import Bucket, Cache, Edge, GraphStore, Measurement, Node, TimeSeriesStore

class Departed(Event, topic="flights.departed", key="origin"):
    origin: str

class Delay(Measurement, series="delays", tags=("origin",)):
    origin: str

"""
SECRET = "hunter2"

Told = Callable[..., str]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """Run a program as a person would, and give back what it says; the last line of the preamble is line 13."""

    def run(program: str, code: int, **variables: str) -> str:
        file = tmp_path / "program.py"
        file.write_text(PREAMBLE + textwrap.dedent(program))
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}
        done = subprocess.run(
            [sys.executable, str(file)],
            cwd=tmp_path, env=surroundings | variables, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert 0 < len(done.stderr.splitlines()) <= 6, done.stderr
        assert SECRET not in done.stdout + done.stderr
        return done.stderr

    return run


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ('class Late(Event, tpoic="late"): ...', "Late: has no class keyword 'tpoic'; did you mean 'topic'? For exam"),
        ('class Late(Event, topic="Late!"): ...', "Late, topic: must have 1 to 200 of"),
        ('class Late(Event, topic="late", key="orign"):\n    origin: str', "'orign' is not a field; did you mean"),
        ('class Late(Measurement, sereis="late"): ...', "Late: has no class keyword 'sereis'; did you mean 'series'?"),
        ('class Late(Measurement, series="late", tags="origin"): ...', "Late, tags: must be a sequence of field names"),
        ('class Port(Node, lable="Port", key="code"):\n    code: str', "did you mean 'label'?"),
        ('class Way(Edge, type="WAY", source=str): ...', "Way, source: must be a Node class with a label"),
        (
            'class Own(Settings, prefixx="acme"): ...',
            'prefixx: is no keyword of a settings class; for example prefix="',
        ),
        ("class Own(Settings): ...", "prefix: is missing in class Own; for example"),
    ],
)
def test_a_class_that_is_declared_wrongly_is_told_with_its_line(told: Told, declaration: str, words: str) -> None:
    output = told(declaration, 65)
    assert words in output
    assert output.rstrip().endswith("program.py, line 14)")


@pytest.mark.parametrize(
    ("driver", "statement", "extra"),
    [
        ("asyncpg", "from kmp_storage.timescale import TimescaleStore", "kmp-storage[timescale]"),
        ("httpx", "from kmp_core.http import client", "kmp-core[http]"),
    ],
)
def test_a_driver_that_is_not_installed_is_told_with_what_to_install(
    told: Told, driver: str, statement: str, extra: str
) -> None:
    output = told(f"sys.modules[{driver!r}] = None\n{statement}", 78)
    assert f"{driver}: is not installed; for example pip install '{extra}'" in output
    assert "program.py, line 15)" in output


def test_any_other_error_is_shown_as_ever(tmp_path: Path) -> None:
    program = """
        sys.excepthook, shown = lambda kind, error, traceback: print("mine", kind.__name__), sys.excepthook
        try:
            class Late(Event, tpoic="late"): ...
        except Exception:
            pass
        raise LookupError
    """
    (tmp_path / "program.py").write_text(PREAMBLE + textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "mine LookupError\n", "")


FORGOTTEN = """
async def main():
    service = Service("x")
    await service.get(Cache)
run(main)
"""
CLOSED = """
async def main():
    async with Service("x") as service:
        cache = await service.get(Cache)
    await cache.get("key")
run(main)
"""
ALONE = """
from kmp_storage.embedded.cache import SqliteCache
async def main():
    await SqliteCache("memory:").get("key")
run(main)
"""
THREAD = """
async def main():
    async with Service("x") as service:
        cache = await service.get(Cache)
        await asyncio.to_thread(asyncio.run, cache.get("key"))
run(main)
"""
THREAD_SERVICE = """
async def main():
    async with Service("x") as service:
        await asyncio.to_thread(asyncio.run, service.get(Cache))
run(main)
"""
TWO_LOOPS = """
service = Service("x")
async def begin():
    global cache
    cache = await (await service.__aenter__()).get(Cache)
async def main():
    await cache.get("key")
asyncio.run(begin())
run(main)
"""
FORKED = """
import os, warnings
warnings.simplefilter("ignore")
async def main():
    async with Service("x") as service:
        bus = await service.get(EventBus)
        if os.fork():
            os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
        try:
            await bus.publish(Departed(origin="JFK"))
        except Exception as error:
            from kmp_core.service.program import told, exit_code
            print(told(error, placed=True), file=sys.stderr, flush=True)
            os._exit(exit_code(error))
run(main)
"""
FORKED_BETWEEN = """
import os
from kmp_core.resource import Provider
class Thing(Provider):
    async def _open(self): ...
    async def _close(self): ...
    async def _check(self): ...
thing = Thing()
with asyncio.Runner() as runner:
    runner.run(thing.open())
    if os.fork():
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
    try:
        runner.run(thing.check())
    except Exception as error:
        from kmp_core.service.program import told, exit_code
        print(told(error, placed=True), file=sys.stderr, flush=True)
        os._exit(exit_code(error))
"""
UNSUPPORTED = """
async def main():
    async with Service("x") as service:
        bucket = await service.get(Bucket)
        await bucket.put("key", b"x")
        await bucket.sign("key", expires="1h")
run(main)
"""


@pytest.mark.parametrize(
    ("program", "words", "line"),
    [
        (FORGOTTEN, "the service is not open: use 'async with Service(...) as service'", 17),
        (CLOSED, "SqliteCache is not open: it is closed; make a new one", 18),
        (ALONE, "SqliteCache is not open: use 'async with', or await open() first", 17),
        (THREAD, "SqliteCache was opened in another event loop: call it in that one", 18),
        (THREAD_SERVICE, "the service was opened in another event loop: use it in that one", 17),
        (TWO_LOOPS, "SqliteCache was opened in another event loop", 20),
        (FORKED, "open it after the fork", 23),
        (FORKED_BETWEEN, "open it after the fork", 27),
        (UNSUPPORTED, "FileBucket does not support", 19),
    ],
    ids=[
        "forgotten",
        "closed",
        "alone",
        "thread",
        "service in a thread",
        "two loops",
        "forked",
        "forked between",
        "unsupported",
    ],
)
def test_a_capability_that_is_used_wrongly_is_told_with_the_line(told: Told, program: str, words: str, line: int):
    output = told(program, 70)
    assert words in output
    assert f"program.py, line {line})" in output


USE = """
async def main():
    async with Service("x") as service:
        await (await service.get(Cache)).set("key", b"x" * 1000)
        await (await service.get(Bucket)).put("key", b"x" * 1000)
        await (await service.get(EventBus)).publish(Departed(origin="JFK"))
        await (await service.get(TimeSeriesStore)).append(Delay(time=datetime.now(UTC), origin="JFK"))
        await (await service.get(GraphStore)).merge()
run(main)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "size=64k") as place:
        yield place


def test_a_disk_without_room_is_named(told: Told, disk: Path) -> None:
    (disk / "ballast").write_bytes(b"x" * 65536)
    output = told(USE, 75, KMP_DIRECTORY=str(disk))
    assert f"{disk}/local/cache.db: the disk is full; nothing was written" in output


def test_a_disk_that_may_not_be_written_is_named(told: Told, disk: Path) -> None:
    remount(disk, "ro")
    output = told(USE, 78, KMP_DIRECTORY=str(disk / "kmp"))
    assert f"{disk / 'kmp'}" in output
    assert "for example a directory that this user may write" in output


@pytest.mark.parametrize("name", ["cache.db", "bus.db", "timeseries.db", "graph.db"])
def test_a_damaged_file_is_named_and_left(told: Told, tmp_path: Path, name: str) -> None:
    file = tmp_path / ".kmp" / "local" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no database, whatever its name says " * 50)
    output = told(USE, 65)
    assert f"{name} is damaged or no SQLite file; it was left as it is" in output
    assert file.read_bytes() == b"no database, whatever its name says " * 50


def test_another_programs_file_is_named_and_left(told: Told, tmp_path: Path) -> None:
    file = tmp_path / "mine.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE precious (x)")
    connection.close()
    before = file.read_bytes()
    assert "belongs to another application" in told(USE, 78, KMP_STORAGE_CACHE_URL="sqlite:mine.db")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlit:", "no installed provider answers to the scheme 'sqlit'"),
        ("sqlite://data/x.db", "names a host before its path"),
        ("sqlite", "must begin with a scheme and a colon"),
        (f"redsi://app:{SECRET}@cache", "did you mean 'redis'?"),
        (f"redis://app:{SECRET}@cache", "KMP_PROJECT: must be set"),
        (f"http://app:{SECRET}@cache", "no installed provider answers to the scheme 'http'"),
    ],
)
def test_a_wrong_url_is_named_by_its_variable(told: Told, url: str, words: str) -> None:
    output = told(USE, 78, KMP_STORAGE_CACHE_URL=url)
    assert words in output
    assert "for example" in output.lower()


def test_a_port_in_use_is_told(told: Told) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        program = f"""
        async def main():
            async with Service("x"):
                await asyncio.start_server(print, "127.0.0.1", {taken.getsockname()[1]})
        run(main)
        """
        assert "in use; for example another port" in told(program, 78)
