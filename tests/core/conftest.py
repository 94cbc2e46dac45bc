"""Fixtures for the tests of the core."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., dict[str, Any]]]:
    """Starts `access_server.py` in a process of its own; gives what it announced, and the `process`."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> dict[str, Any]:
        script = Path(__file__).with_name("access_server.py")
        process = subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return {**json.loads(process.stdout.readline()), "process": process}

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        assert process.stdout is not None
        with process:
            process.wait(timeout=15)
