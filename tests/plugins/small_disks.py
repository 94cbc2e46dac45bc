"""A file system of a test's own: small, full or read-only, since a superuser is kept by no permission bits."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """Mount one at `place`, `options` such as `size=4m`. Skips where that is not permitted, and fails in CI."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = f"a small file system cannot be mounted here: {done.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # also after a test that failed half-way


def remount(place: Path, options: str) -> None:
    """Change it, to `ro` or another size."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
