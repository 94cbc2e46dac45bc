"""One file per key, and locks that the kernel releases when their process dies. Blocking; called from threads."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["KernelLock", "Record", "Store", "file_name"]

_HEADER = struct.Struct("<QdB")
_STATES: tuple[Literal["gone", "value", "nothing"], ...] = ("gone", "value", "nothing")


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a key. `changes` grows with every change, deletions included; `expires` 0 is never."""

    changes: int = 0
    expires: float = 0
    state: Literal["gone", "value", "nothing"] = "gone"
    value: bytes = b""

    def live(self, now: float) -> bool:
        """Whether there is something, and its time is not over."""
        return self.state != "gone" and (self.expires == 0 or now < self.expires)


class Store:
    """The files of one project."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the directories."""
        for part in ("values", "stripes", "loads", "locks"):
            (self.root / part).mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, key: str) -> Record:
        """The key's record; a file that somebody else damaged counts as none."""
        try:
            content = (self.root / "values" / file_name(key)).read_bytes()
            header: tuple[int, float, int] = _HEADER.unpack_from(content)
            changes, expires, state = header
            return Record(changes, expires, _STATES[state], content[_HEADER.size :])
        except (FileNotFoundError, struct.error, IndexError):
            return Record()

    def change(self, key: str, decide: Callable[[Record], Record | None]) -> Record | None:
        """Replace the record by what `decide` makes of it, alone over all processes; None leaves it."""
        with self._alone(key):
            old = self.read(key)
            new = decide(old)
            if new is not None:
                header = _HEADER.pack(old.changes + 1, new.expires, _STATES.index(new.state))
                self._replace(self.root / "values" / file_name(key), header + new.value)
            return new

    def bytes_used(self) -> int:
        """What the values take."""
        return sum(entry.stat().st_size for entry in os.scandir(self.root / "values"))

    def lock(self, kind: Literal["loads", "locks"], name: str) -> KernelLock:
        """A lock that is not taken yet."""
        return KernelLock(self.root / kind / file_name(name))

    def _replace(self, path: Path, content: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.root)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(temporary).replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise

    @contextmanager
    def _alone(self, key: str) -> Generator[None, None, None]:
        # Changes are short, so a few locks serve all keys.
        with (self.root / "stripes" / file_name(key)[:2]).open("ab") as stripe:
            fcntl.flock(stripe, fcntl.LOCK_EX)
            yield


class KernelLock:
    """A file that one descriptor at a time has locked; its content counts the holders."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def try_take(self) -> bool:
        """Take it, or say that somebody else has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(descriptor).st_nlink > 0  # not one that its holder removed a moment ago
        except BlockingIOError:
            free = False
        if free:
            self._file = descriptor
        else:
            os.close(descriptor)
        return free

    def count(self) -> int:
        """How many have held it, this holder included; kept over restarts."""
        number = int(os.pread(self._file, 20, 0) or b"0") + 1
        os.pwrite(self._file, b"%020d" % number, 0)
        return number

    def release(self, *, remove: bool = False) -> None:
        """Let go; harmless when it was not taken."""
        if self._file >= 0:
            if remove:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


def file_name(key: str) -> str:
    """A name that no key can lead out of its directory with, and that no two keys share."""
    return hashlib.sha256(key.encode()).hexdigest()
