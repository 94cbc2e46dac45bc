"""Keep a stream's encoded rows aside until its end, with flat memory, so that a slow source holds no lock."""

from __future__ import annotations

import marshal
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kmp_core.errors import ErrorTable, Unavailable

__all__ = ["Stage"]

_IN_MEMORY = 4 << 20


def _unavailable(error: BaseException) -> Unavailable:
    reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "unknown"
    return Unavailable(f"The stream's rows cannot be kept aside ({reason}); nothing was stored", backend="sqlite")


_ERRORS = ErrorTable({OSError: _unavailable})


class Stage:
    """Chunks of rows in a file without a name, which is gone with the process however that ends.

    Up to 4 MiB stay in memory. `directory` is where the store's own file is, and so has the room that rows need.
    """

    def __init__(self, directory: Path | None) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(directory) if directory else None)  # noqa: SIM115 - closed in __exit__
        self.chunks = 0
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, rows: list[tuple[Any, ...]]) -> None:
        """Keep a chunk."""
        content = marshal.dumps(rows)
        with _ERRORS.translating():
            self._file.write(len(content).to_bytes(8, "big"))
            self._file.write(content)
        self.chunks += 1
        self.rows += len(rows)

    def __iter__(self) -> Iterator[list[tuple[Any, ...]]]:
        """The chunks in their order, from the beginning."""
        with _ERRORS.translating():
            self._file.seek(0)  # also writes what is buffered
        while head := self._file.read(8):
            yield marshal.loads(self._file.read(int.from_bytes(head, "big")))  # noqa: S302 - we wrote it a moment ago
