"""Contents of a bucket as files that no key names, so that no key can lead out of the store or collide.

A content is written to `incoming/`, made durable, and only then named by a row of the index; `settle` moves it to
`objects/`. So a killed process leaves either an object or a file in `incoming/` that nothing names, and while its
writer lives that file is locked. Links in the store are never followed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from kmp_core.errors import Corrupt, ErrorTable, KmpError, PermissionDenied, Unavailable
from kmp_core.sqlite import make_private_directory
from kmp_storage.embedded.bucket.blobs import Content, Upload

__all__ = ["FileBlobs"]

_NAME = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileBlobs:
    """Contents as files below one directory; links in it are never followed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = self._objects = -1

    def open(self) -> None:
        make_private_directory(self.root)
        with _ERRORS.translating():
            self._incoming = self._directory("incoming")
            self._objects = self._directory("objects")

    def close(self) -> None:
        for descriptor in (self._incoming, self._objects):
            if descriptor >= 0:
                os.close(descriptor)
        self._incoming = self._objects = -1

    def begin(self) -> Upload:
        while True:
            # Whoever sweeps may look at a new file before its writer has locked it: then another name is taken.
            with contextlib.suppress(BlockingIOError), _ERRORS.translating():
                return _FileUpload(self._incoming, self._objects)

    def read(self, name: str) -> Content | None:
        # A content moves from incoming to objects once: looked for in that order and once more, it cannot be missed.
        for directory in (self._objects, self._incoming, self._objects):
            with contextlib.suppress(FileNotFoundError), _ERRORS.translating():
                return _FileContent(directory, name)
        return None

    def remove(self, name: str) -> None:
        # In the order in which a content moves, so that one on its way is not missed.
        for directory in (self._incoming, self._objects):
            with contextlib.suppress(FileNotFoundError), _ERRORS.translating():
                os.unlink(name, dir_fd=directory)

    def check(self) -> None:
        with _ERRORS.translating():
            for descriptor in (self._incoming, self._objects):
                if os.fstat(descriptor).st_nlink == 0:
                    raise Unavailable(f"the directory {self.root} was removed while it was in use", backend="file")

    def abandoned(self) -> Iterator[Upload]:
        for name in os.listdir(self._incoming):  # noqa: PTH208 - by descriptor
            if _NAME.fullmatch(name) is None:
                continue
            # Locked by its writer, gone by now, or a link or directory that nobody of us made.
            with contextlib.suppress(OSError):
                yield _FileUpload(self._incoming, self._objects, name)

    def _directory(self, name: str) -> int:
        path = self.root / name
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            _sync_directory(self.root)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


class _FileUpload:
    """A file in `incoming/`, locked by its descriptor for as long as its writer lives."""

    def __init__(self, incoming: int, objects: int, name: str | None = None) -> None:
        self.name = name or uuid.uuid4().hex
        self._incoming = incoming
        self._objects = objects
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        if name is None:
            flags |= os.O_CREAT | os.O_EXCL
        self._file = os.open(self.name, flags, 0o600, dir_fd=incoming)
        # A call that was given up may still write in its thread while another one cleans up.
        self._lock = threading.Lock()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self._file)
            raise

    def write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        with _ERRORS.translating(), self._lock:
            while view and self._file >= 0:
                view = view[os.write(self._file, view) :]

    def seal(self) -> None:
        with _ERRORS.translating(), self._lock:
            if self._file >= 0:
                os.fsync(self._file)
                os.fsync(self._incoming)

    def intact(self) -> bool:
        with self._lock:
            return self._file >= 0 and os.fstat(self._file).st_nlink == 1

    def settle(self) -> None:
        with self._lock, _ERRORS.translating(), contextlib.suppress(FileNotFoundError):
            os.rename(self.name, self.name, src_dir_fd=self._incoming, dst_dir_fd=self._objects)
        self._let_go()

    def discard(self) -> None:
        with self._lock, _ERRORS.translating(), contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self._incoming)
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


class _FileContent:
    def __init__(self, directory: int, name: str) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.open(name, flags, dir_fd=directory)
        self._lock = threading.Lock()
        status = os.fstat(self._file)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise Corrupt("the store holds something else than a file where a content should be")

    def read(self, count: int) -> bytes:
        parts = []
        with _ERRORS.translating(), self._lock:
            while count > 0 and self._file >= 0 and (part := os.read(self._file, count)):
                parts.append(part)
                count -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translate(error: BaseException) -> KmpError | None:
    assert isinstance(error, OSError)
    if isinstance(error, FileNotFoundError | BlockingIOError):
        return None
    if error.errno in _NO_ROOM:
        return Unavailable("the disk is full; nothing was written, and nothing that was there is lost", backend="file")
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return Corrupt("the store holds a link or a special file, which is never followed")
    if isinstance(error, PermissionError):
        return PermissionDenied("the bucket's directory may not be used by this user")
    return Unavailable(f"the file system reported: {os.strerror(error.errno or 0)}", backend="file")


_ERRORS = ErrorTable({OSError: _translate})
