"""Tests leave nothing behind: a process, an embedded database, a project on a server that outlives the run fails it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

GRACE_SECONDS = 5.0
DATA = {".kmp"}
SUFFIXES = (".db", ".db-wal", ".db-shm", ".sqlite", ".sqlite3")
ELSEWHERE = {".venv", ".nox", ".git", "node_modules", "dist", "site"}

elsewhere = pytest.StashKey[list[str]]()
"""What other plugins found, in places that only they know."""

_before = pytest.StashKey[set[str]]()
_left = pytest.StashKey[list[str]]()


def files(root: Path) -> Iterator[str]:
    """Embedded data under `root`: the directories that providers make, and stray database files."""
    for directory, names, found in os.walk(root):
        for name in DATA.intersection(names):
            yield str(Path(directory, name))
        names[:] = [name for name in names if name not in ELSEWHERE | DATA]
        yield from (str(Path(directory, name)) for name in found if name.endswith(SUFFIXES))


def processes() -> list[str]:
    """Descendants of this process that are still there after a moment of grace."""
    children = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(children, timeout=GRACE_SECONDS)
    found = []
    for child in alive:
        try:
            found.append(f"process {child.pid}: {' '.join(child.cmdline())[:120] or child.name()}")
        except psutil.NoSuchProcess:
            continue
    return found


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_before] = set(files(session.config.rootpath))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    before = session.config.stash.get(_before, set())
    left = processes() + sorted(set(files(session.config.rootpath)) - before)
    if elsewhere in session.config.stash:
        found: list[str] = session.config.stash[elsewhere]
        left += found
    session.config.stash[_left] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left := config.stash.get(_left, []):
        terminalreporter.section("left behind by the tests", red=True)
        for line in left:
            terminalreporter.write_line(line)
