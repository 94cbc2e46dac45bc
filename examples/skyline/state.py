"""The directory of one run: clean at the beginning, one run at a time, readable by this user alone."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from kmp_core.errors import ConfigurationError, Fault

__all__ = ["State", "prepare", "write_private"]

_MARK = ".skyline"
_CONTENT = ("credentials", "harbour", "logs", "skyline", "keys.json")


@dataclass(frozen=True, slots=True)
class State:
    """Where things are. The projects' own directories are below `directory`, as every KMP service makes them."""

    directory: Path

    @property
    def keys(self) -> Path:
        return self.directory / "keys.json"

    def log(self, service: str) -> Path:
        return self.directory / "logs" / f"{service}.log"

    def credentials(self, service: str) -> Path:
        """The directory of one service's secrets, each a file that is named after its variable."""
        return self.directory / "credentials" / service

    def write_secret(self, service: str, variable: str, value: str) -> None:
        folder = self.credentials(service)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(folder / variable, value)


@contextmanager
def prepare(directory: Path) -> Generator[State, None, None]:
    """Clean the directory and keep other runs out of it while the block runs.

    Raises `ConfigurationError` for a directory that cannot be used, or holds what is not of this example.
    """
    state = State(directory.absolute())
    try:
        mark = _take(state.directory)
    except OSError as error:
        problem = f"cannot be used: {os.strerror(error.errno or 0)}"
        raise _fault(Path(error.filename or state.directory), problem) from None
    with mark:
        try:
            yield state
        finally:
            _remove(state.directory / "credentials")


def write_private(file: Path, content: str) -> None:
    """Write a file that only this user may read, from its first moment on."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(content)


def _take(directory: Path) -> TextIO:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (directory / _MARK).exists() and any(directory.iterdir()):
        raise _fault(directory, "is not empty and was not made by this example")
    mark = (directory / _MARK).open("a")
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in _CONTENT:
            _remove(directory / name)
        (directory / "logs").mkdir(mode=0o700)
        (directory / "credentials").mkdir(mode=0o700)
    except BlockingIOError:
        mark.close()
        raise _fault(directory, "is in use by another run") from None
    except BaseException:
        mark.close()
        raise
    return mark


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fault(path: Path, problem: str) -> ConfigurationError:
    return ConfigurationError(Fault(str(path), problem, example="--directory /tmp/skyline"))
