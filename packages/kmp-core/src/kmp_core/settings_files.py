"""Read a small text file that an operator named, without trusting that it is one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["MAX_BYTES", "UnreadableFile", "expand", "read_small_file"]

MAX_BYTES = 1 << 20
"""Settings, manifests and secrets are small; a larger file is the wrong file, and is not read into memory."""


class UnreadableFile(Exception):
    """Says in words what is wrong with the file; `example` says what would be right."""

    def __init__(self, problem: str, example: str) -> None:
        self.problem = problem
        self.example = example
        super().__init__(problem)


def expand(directory: Path, named: str) -> Path:
    """The path that a setting names: `~` is the home directory, and a relative path is below `directory`."""
    return directory / os.path.expanduser(named)  # noqa: PTH111 - the method of Path raises for an unknown user


def read_small_file(path: Path) -> str:
    """The text of a regular file in UTF-8, a byte order mark left out. Raises `UnreadableFile`."""
    try:
        # A named pipe would otherwise hold the start of the service for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        problem = f"cannot be read ({os.strerror(error.errno or 0)})"
        raise UnreadableFile(problem, "a file that this user may read") from None
    except ValueError:
        raise UnreadableFile("is not a path", "/etc/kmp/settings.env") from None
    try:
        content = _content(descriptor)
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise UnreadableFile(f"is larger than {MAX_BYTES >> 20} MiB", "a file of a few kilobytes")
    try:
        return content.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"is not UTF-8 (at line {line})"
    raise UnreadableFile(problem, "a file saved as UTF-8")


def _content(descriptor: int) -> bytes:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise UnreadableFile(f"is {kind}", "a text file")
    chunks = []
    left = MAX_BYTES + 1
    while left and (chunk := os.read(descriptor, left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)
