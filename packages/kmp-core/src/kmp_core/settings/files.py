"""Read a small file that an operator named, without trusting that it is one."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["MAX_BYTES", "ExistingFile", "UnreadableFile", "expand", "read_small_file", "read_text_file"]

MAX_BYTES = 1 << 20
"""Settings, manifests and secrets are small; a larger file is the wrong file, and is not read into memory."""


def _there(path: Path | None) -> Path | None:
    try:
        there = path is None or path.is_file()
    except OSError:  # too long, a loop of links, a directory that may not be searched
        there = False
    if not there:
        raise ValueError("is no file")
    return path


ExistingFile = Annotated[Path | None, AfterValidator(_there), Field(examples=["/etc/ssl/authority.pem"])]
"""None, or a file that must be there when the settings load: later its lack would look like a backend that is away."""


class UnreadableFile(Exception):
    """Says in words what is wrong with the file; `example` says what would be right."""

    def __init__(self, problem: str, example: str, *, missing: bool = False) -> None:
        self.problem = problem
        self.example = example
        self.missing = missing
        super().__init__(problem)


def expand(directory: Path, named: str) -> Path:
    """The path that a setting names: `~` is the home directory, and a relative path is below `directory`."""
    return directory / os.path.expanduser(named)  # noqa: PTH111 - the method of Path raises for an unknown user


def read_text_file(path: Path) -> str:
    """The text of a regular file in UTF-8, a byte order mark left out. Raises `UnreadableFile`."""
    content, _ = read_small_file(path)
    try:
        return content.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"is not UTF-8 (at line {line})"
    # Outside the handler: the error there holds the content.
    raise UnreadableFile(problem, "a file saved as UTF-8")


def read_small_file(path: Path, *, flags: int = 0) -> tuple[bytes, os.stat_result]:
    """A regular file's content, and its state before it was read. Raises `UnreadableFile`."""
    try:
        # Without waiting: a named pipe would otherwise hold the start of the service for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        problem = "does not exist" if missing else f"cannot be read ({os.strerror(error.errno or 0)})"
        raise UnreadableFile(problem, "a file that this user may read", missing=missing) from None
    except ValueError:
        raise UnreadableFile("is not a path", "/etc/kmp/settings.env") from None
    try:
        return _content(descriptor)
    except OSError as error:
        problem = f"cannot be read ({os.strerror(error.errno or 0)})"
        raise UnreadableFile(problem, "a file that this user may read") from None
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> tuple[bytes, os.stat_result]:
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        kind = "a directory" if stat.S_ISDIR(state.st_mode) else "not a regular file"
        raise UnreadableFile(f"is {kind}", "a file")
    chunks = []
    left = MAX_BYTES + 1
    while left and (chunk := os.read(descriptor, left)):
        chunks.append(chunk)
        left -= len(chunk)
    if not left:
        raise UnreadableFile(f"is larger than {MAX_BYTES >> 20} MiB", "a file of a few kilobytes")
    return b"".join(chunks), state
