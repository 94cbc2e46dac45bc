"""A service as an operating-system process: signals, exit codes, forks, workers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

PREAMBLE = """
import asyncio, os, signal, sys, threading, time
from abc import abstractmethod
from typing import Protocol
import kmp_core
from kmp_core import Provider, Resource, Service, capability, plugins
from kmp_core.errors import *

# A shell ignores SIGINT for what it runs in the background, the tests and their children included.
signal.signal(signal.SIGINT, signal.default_int_handler)

def say(text):
    os.write(1, f"{text}\\n".encode())   # one call, so that the lines of two processes do not mix

@capability("test.store", default="fake:")
class Store(Resource, Protocol):
    @abstractmethod
    async def use(self) -> None: ...

class Fake(Provider):
    @classmethod
    def from_url(cls, url, *, context):
        return cls()
    async def use(self):
        self.ensure_open()
    async def _open(self): ...
    async def _close(self):
        say("closed")
    async def _check(self): ...
    async def start(self):
        say("ready")
    async def drain(self, *, timeout=None):
        say("drained")

plugins.register(Store, "fake", Fake)
"""

SERVE = """
async def main():
    async with Service("delays") as service:
        await service.get(Store)
        await service.run()
        say("left")

kmp_core.run(main)
"""


@pytest.fixture
def start(tmp_path):
    """Start a program of its own; whatever still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, **variables: str) -> subprocess.Popen[str]:
        program = tmp_path / f"program{len(started)}.py"
        program.write_text(textwrap.dedent(PREAMBLE) + textwrap.dedent(source))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KMP_")}
        environment |= {"KMP_DIRECTORY": str(tmp_path), "KMP_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1"} | variables
        process = subprocess.Popen(
            [sys.executable, str(program)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        # The children that it forked hold its output open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for read in process.stdout:
        if read.strip() == line:
            return
    pytest.fail(f"the process ended without saying {line!r}: {process.stderr.read()}")  # type: ignore[union-attr]


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_closes_and_the_exit_code_is_zero(start, number):
    process = start(SERVE)
    wait_for(process, "ready")
    process.send_signal(number)
    code, out, err = end(process)
    assert (code, out.split(), err) == (0, ["drained", "left", "closed"], "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_even_while_the_loop_is_busy(start, number):
    process = start(
        """
        class Busy(Fake):
            async def drain(self, *, timeout=None):
                say("draining")
                while True:          # never gives the loop a turn
                    time.sleep(0.01)
        plugins.register(Store, "fake", Busy)
        """
        + textwrap.indent(SERVE, " " * 8)
    )
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "draining")
    process.send_signal(number)
    code, _, err = end(process)
    assert code == 128 + number
    assert "ending at once" in err
    assert "Traceback" not in err


def test_a_loop_that_is_blocked_does_not_keep_a_service_that_was_told_to_leave(start):
    process = start(
        """
        async def main():
            async with Service("delays", shutdown_grace="200ms") as service:
                async def block():
                    say("blocking")
                    while True:
                        time.sleep(0.01)
                service.start_task(block(), name="block")
                await service.run()
        kmp_core.run(main)
        """
    )
    wait_for(process, "blocking")
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process)
    assert code == 75
    assert "leaving took longer" in err


@pytest.mark.parametrize("runner", ["kmp_core.run(main)", "asyncio.run(main())"])
def test_a_close_that_nobody_can_cancel_does_not_keep_the_process(start, runner):
    process = start(
        f"""
        class Deaf(Fake):
            async def _close(self):
                while True:
                    try:
                        await asyncio.sleep(3600)
                    except asyncio.CancelledError:
                        pass
        plugins.register(Store, "fake", Deaf)

        async def main():
            async with Service("delays", shutdown_grace="300ms") as service:
                await service.get(Store)
                await service.run()
        {runner}
        """
    )
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    code, _, _ = end(process)
    assert code == 75


def test_a_task_that_hears_no_cancellation_does_not_keep_a_program_that_is_done(start):
    process = start(
        """
        import kmp_core.service.program
        kmp_core.service.program._LAST_SECONDS = 0.3
        async def deaf():
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass
        async def main():
            main.task = asyncio.create_task(deaf())
            await asyncio.sleep(0)
        kmp_core.run(main)
        """
    )
    code, _, err = end(process)
    assert code == 75
    assert "work that hangs" in err


def test_work_left_over_at_the_drain_is_told_by_the_exit_code(start):
    process = start(
        """
        class Slow(Fake):
            async def drain(self, *, timeout=None):
                await asyncio.sleep(3600)
        plugins.register(Store, "fake", Slow)
        async def main():
            async with Service("delays", shutdown_grace="200ms") as service:
                await service.get(Store)
                await service.run()
        kmp_core.run(main)
        """
    )
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    code, out, err = end(process)
    assert (code, out.split()) == (75, ["closed"])
    assert "drain" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        ("ConfigurationError(Fault('KMP_X', 'is wrong', example='1'))", 78, "KMP_X: is wrong; for example 1"),
        ("InvalidInput('key', 'is empty')", 65, "key: is empty"),
        ("Corrupt('the file is damaged')", 65, "the file is damaged"),
        ("PermissionDenied('not yours')", 77, "not yours"),
        ("Unavailable('the backend is away')", 75, "the backend is away"),
        ("OSError(98, 'Address already in use')", 78, "Address already in use; for example another port"),
        ("ExceptionGroup('two', [Unavailable('one'), Unavailable('other')])", 75, "other"),
    ],
)
def test_a_users_mistake_is_one_screen_without_a_traceback(start, error, code, shown):
    process = start(f"async def main():\n    raise {error}\nkmp_core.run(main)")
    got, out, err = end(process)
    assert (got, out) == (code, "")
    assert shown in err
    assert "Traceback" not in err
    assert len(err.splitlines()) < 24


def test_a_program_that_was_called_instead_of_handed_over_is_told_so(start):
    process = start("async def main(): ...\nkmp_core.run(main())")
    got, out, err = end(process)
    assert (got, out) == (65, "")
    assert err == "InvalidInput: main: must be the function itself, not called; for example run(main)\n"


def test_an_error_that_nobody_expected_shows_where_without_local_variables(start):
    process = start(
        """
        async def main():
            password = "hunter" + "2"
            raise ZeroDivisionError(f"cannot divide redis://app:{str.swapcase('HUNTER3')}@cache")
        kmp_core.run(main)
        """
    )
    code, _, err = end(process)
    assert code == 1
    assert "Traceback" in err
    assert "hunter2" not in err
    assert "hunter3" not in err


def test_a_wrong_variable_stops_the_service_before_it_opens_anything(start):
    process = start(SERVE, KMP_TEST_STORE_URL="timescale://app:hunter2@db/x", KMP_LOG_LEVEL="loud")
    code, out, err = end(process)
    assert (code, out) == (78, "")
    assert "KMP_PROJECT" in err or "KMP_LOG_LEVEL" in err
    assert "KMP_LOG_LEVEL" in err
    assert "hunter2" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_run_cleans_up_and_tells(start, number):
    process = start(
        """
        async def main():
            async with Service("delays") as service:
                await service.get(Store)
                say("opened")
                await asyncio.sleep(3600)
        kmp_core.run(main)
        """
    )
    wait_for(process, "opened")
    process.send_signal(number)
    code, out, err = end(process)
    assert (code, out.split()) == (128 + number, ["drained", "closed"])
    assert "Traceback" not in err


def test_a_second_sigterm_before_run_ends_at_once(start):
    process = start(
        """
        async def main():
            async with Service("delays") as service:
                await service.get(Store)
                say("opened")
                time.sleep(3600)
        kmp_core.run(main)
        """
    )
    wait_for(process, "opened")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)  # two that come together count as one
        time.sleep(0.02)
    code, out, err = end(process)
    assert (code, out) == (143, "")
    assert "SIGTERM came again" in err


def test_a_handler_of_the_program_for_sigterm_stays(start):
    process = start(
        """
        heard = []
        signal.signal(signal.SIGTERM, lambda *_: heard.append(say("mine")))
        async def main():
            async with Service("delays") as service:
                await service.get(Store)
                say("opened")
                while not heard:
                    await asyncio.sleep(0.01)
        kmp_core.run(main)
        """
    )
    wait_for(process, "opened")
    process.send_signal(signal.SIGTERM)
    code, out, _ = end(process)
    assert (code, out.split()) == (0, ["mine", "drained", "closed"])


def test_a_forked_child_is_refused_with_advice_and_the_parent_goes_on(start):
    process = start(
        """
        async def main():
            async with Service("delays") as service:
                store = await service.get(Store)
                child = os.fork()
                if child == 0:
                    for call in (store.use(), service.get(Store)):
                        try:
                            call.send(None)
                        except LifecycleError as error:
                            say(f"refused: {'after the fork' in str(error)}")
                    os._exit(0)
                os.waitpid(child, 0)
                await store.use()
                say("parent works")
        import warnings; warnings.simplefilter("ignore")
        kmp_core.run(main)
        """
    )
    code, out, _ = end(process)
    assert code == 0
    assert out.splitlines() == ["refused: True", "refused: True", "parent works", "drained", "closed"]


def test_a_signal_to_a_forked_child_ends_the_child_alone(start):
    process = start(
        """
        async def main():
            async with Service("delays", shutdown_grace="500ms") as service:
                async def fork():
                    while service.health.phase != "ready":
                        await asyncio.sleep(0.01)
                    began, begin = os.pipe()
                    child = os.fork()
                    if child == 0:
                        os.write(begin, b"!")
                        while True:
                            time.sleep(60)
                    os.read(began, 1)  # Python forgets a signal that a child gets while it is being made
                    os.kill(child, signal.SIGTERM)
                    _, status = await asyncio.to_thread(os.waitpid, child, 0)
                    say(f"child {os.waitstatus_to_exitcode(status)}")
                    await asyncio.sleep(2)  # beyond what a watchdog that was woken would wait
                    service.stop()
                service.start_task(fork(), name="fork")
                await service.run()
        kmp_core.run(main)
        """
    )
    code, out, err = end(process)
    assert (code, out.split()) == (0, ["child", "-15"]), err


def test_workers_that_are_forked_before_they_open_each_have_their_own(start):
    process = start(
        """
        service = Service("delays")          # made before the fork, opened after it
        async def main():
            async with service:
                await (await service.get(Store)).use()
                say("worked")
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                kmp_core.run(main)
                os._exit(0)
            children.append(child)
        sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
        """
    )
    code, out, _ = end(process)
    assert code == 0
    assert out.split().count("worked") == out.split().count("closed") == 2


def test_the_lifespan_works_in_each_worker_of_a_server(tmp_path):
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "serving.py").write_text(
        textwrap.dedent(PREAMBLE)
        + textwrap.dedent(
            """
            from starlette.applications import Starlette
            from starlette.responses import PlainTextResponse
            from starlette.routing import Mount, Route
            service = Service("delays")
            async def index(request):
                await (await service.get(Store)).use()
                return PlainTextResponse(str(os.getpid()))
            app = Starlette(
                routes=[Route("/", index), Mount("/health", service.health.app)], lifespan=service.lifespan
            )
            """
        )
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KMP_")} | {"KMP_DIRECTORY": str(tmp_path)}
    # A worker that has not begun to answer within the server's five seconds is killed: too few on a busy machine.
    patient = ["--timeout-worker-healthcheck=60"]
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "serving:app", "--workers=2", f"--port={port}", *patient],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        pids = _pids(port, server)
        assert len(pids) == 2
        assert str(server.pid) not in pids
        assert b'"status": "ok"' in _request(port, "/health/readyz")
    finally:
        server.send_signal(signal.SIGTERM)
        out, _ = server.communicate(timeout=30)
    assert out.count("drained") == out.count("closed") == 2, out
    assert "Traceback" not in out


def _pids(port: int, server: subprocess.Popen[str]) -> set[str]:
    seen: set[str] = set()
    end = time.monotonic() + 30
    while len(seen) < 2 and time.monotonic() < end and server.poll() is None:
        try:
            answer = _request(port, "/")
        except OSError:
            time.sleep(0.05)
            continue
        found = re.search(rb"\r\n\r\n(\d+)$", answer)
        if found:
            seen.add(found[1].decode())
    return seen


def _request(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_no_file_is_left_where_nothing_was_stored(start, tmp_path):
    process = start(SERVE)
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    end(process)
    assert {path.name for path in Path(tmp_path).iterdir()} == {"program0.py"}
