"""`dev.py servers` and `demo --servers`: started once, found again, removed with all they have, also half done."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import engine
import psutil
import pytest

import stack
import testbed

PROGRAM = Path(stack.__file__)
ROOT = PROGRAM.parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def own_stack(
    servers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    """Servers beside those of the clone, which may be somebody's work; whatever is left is removed."""
    mark = f"kmp-servers-test-{os.getpid()}"
    monkeypatch.setattr(stack, "MARK", mark)
    monkeypatch.setattr(stack, "STATE", tmp_path / "servers.json")
    yield mark
    stack.stop_all()


def ids(label: str) -> set[str]:
    client = docker.from_env()
    try:
        return {
            container.id
            for container in client.containers.list(all=True, filters={"label": label}, ignore_removed=True)
        }
    finally:
        client.close()


def test_servers_start_once_and_are_removed(own_stack: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stack.start() == 0
    first, _ = capsys.readouterr()
    started = ids(own_stack)
    assert len(started) == len(stack.SERVERS)
    words = [word for word in shlex.split(first, comments=True) if word != "export"]
    variables = dict(word.split("=", 1) for word in words)
    assert variables["KMP_PROJECT"] == "demo"
    assert len(variables) == 5
    assert "# Kafka" in first
    assert stack.STATE.stat().st_mode & 0o077 == 0

    done = subprocess.run([sys.executable, "-c", USE], env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    assert stack.start() == 0
    again, told = capsys.readouterr()
    assert again == first
    assert "running already" in told
    assert ids(own_stack) == started

    assert stack.stop() == 0
    assert ids(own_stack) == set()
    assert not stack.STATE.exists()
    assert stack.stop() == 0
    assert "nothing is running" in capsys.readouterr().err


USE = """
import asyncio
from kmp_core import Service
from kmp_storage import Bucket, Cache, GraphStore, TimeSeriesStore

async def main():
    async with Service("hand") as service:
        for capability in (TimeSeriesStore, GraphStore, Cache, Bucket):
            await (await service.get(capability)).check()

asyncio.run(main())
"""


def test_a_start_that_fails_half_way_leaves_nothing(own_stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "SERVERS", ("redis", "s3"))

    async def provision(servers: dict[str, testbed.Server]) -> dict[str, str]:
        assert len(ids(own_stack)) == 2
        raise ConnectionError("not today")

    monkeypatch.setattr(stack, "provision", provision)
    with pytest.raises(ConnectionError):
        stack.start()
    assert ids(own_stack) == set()


def test_what_a_killed_start_left_is_removed_by_stop(own_stack: str) -> None:
    server = testbed.launch("redis", testbed.RECIPES["redis"], mark=own_stack)
    server.container.get_docker_client().client.close()
    testbed.remove_orphans()
    assert len(ids(own_stack)) == 1
    assert stack.stop() == 0
    assert ids(own_stack) == set()


@contextmanager
def session(name: str, *arguments: str, root: Path) -> Iterator[subprocess.Popen[str]]:
    """A session of nox as `dev.py` runs it, in a clone of its own: everything that Ctrl-C reaches in a terminal."""
    shutil.copy(ROOT / "noxfile.py", root)
    for folder in ("tests", "examples", "packages"):
        (root / folder).symlink_to(ROOT / folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "nox", "--noxfile", str(root / "noxfile.py"), "--session", name, "--", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def interrupt(process: subprocess.Popen[str]) -> str:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody
    output, _ = process.communicate(timeout=50)  # less than a server may take to be ready
    assert process.returncode == 130, output
    assert "Traceback" not in output
    return output


@pytest.mark.parametrize("started", [1, len(stack.SERVERS)])
def test_an_interrupted_start_leaves_nothing(servers: Any, tmp_path: Path, started: int) -> None:
    label = stack.mark_of(tmp_path)
    try:
        with session("servers", root=tmp_path) as process:
            while len(ids(label)) < started:
                assert process.poll() is None, process.communicate()[0]
            assert "interrupted; what was started is removed" in interrupt(process)
        assert ids(label) == set()
    finally:
        remove(label)


def test_an_example_that_is_interrupted_while_its_servers_start_leaves_nothing(servers: Any, tmp_path: Path) -> None:
    label = ""
    with session("demo", "--servers", root=tmp_path) as process:
        while len(ids(label := label_of(process))) < len(stack.SHARED) + 2:
            assert process.poll() is None, process.communicate()[0]
        os.killpg(process.pid, signal.SIGINT)
        while len(ids(label)) == len(stack.SHARED) + 2:
            assert process.poll() is None, process.communicate()[0]
        output = interrupt(process)  # somebody who is impatient
    assert "interrupted; what was started is removed" in output
    assert ids(label) == set()


def label_of(process: subprocess.Popen[str]) -> str:
    """By which the containers are found that the program below this one starts."""
    children = psutil.Process(process.pid).children()
    return f"{testbed.LABEL}={children[0].pid if children else 0}"


def remove(label: str) -> None:
    for one in ids(label):
        subprocess.run(["docker", "rm", "--force", "--volumes", one], capture_output=True, check=False)


def test_the_example_removes_what_it_started_when_it_is_interrupted(servers: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "--demo", "--directory", str(state)],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    label = f"{testbed.LABEL}={process.pid}"
    try:
        log, end = state / "logs" / "delays.log", time.monotonic() + 200
        while not (log.exists() and '"handled"' in log.read_text()):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.05)
        assert ids(label)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody
        output, _ = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, output
    assert "Ended early" in output
    assert "Traceback" not in output
    assert ids(label) == set()


@pytest.mark.parametrize("arguments", [[], ["--demo"], ["--stop"]])
def test_without_an_engine_it_says_so_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"no container engine .*\n", done.stderr)


def test_the_engine_that_answers_is_left_as_it_is(servers: Any) -> None:
    assert engine.answers()
    engine.ensure(install=False)
