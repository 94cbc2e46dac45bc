"""Contents of a `memory:` bucket, up to a limit."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

from kmp_core.errors import Unavailable
from kmp_storage.embedded.bucket.blobs import Content, Upload

__all__ = ["MemoryBlobs"]


class MemoryBlobs:
    """Contents in this process's memory, up to a limit."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self.lock = threading.Lock()
        self.contents: dict[str, bytes] = {}

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        self.contents.clear()

    def begin(self) -> Upload:
        return _MemoryUpload(self)

    def read(self, name: str) -> Content | None:
        content = self.contents.get(name)
        return None if content is None else _MemoryContent(content)

    def remove(self, name: str) -> None:
        with self.lock:
            self.used -= len(self.contents.pop(name, b""))

    def check(self) -> None:
        """Memory answers."""

    def abandoned(self) -> Iterator[Upload]:
        return iter(())


class _MemoryUpload:
    def __init__(self, blobs: MemoryBlobs) -> None:
        self.name = uuid.uuid4().hex
        self._blobs = blobs
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, chunk: bytes) -> None:
        with self._blobs.lock:
            if self._blobs.used + len(chunk) > self._blobs.max_bytes:
                limit = f"{self._blobs.max_bytes} bytes, KMP_STORAGE_BUCKET_MAX_MEMORY_BYTES"
                raise Unavailable(f"the memory bucket is full ({limit}); nothing was written", backend="memory")
            self._blobs.used += len(chunk)
            self._size += len(chunk)
            self._parts.append(chunk)

    def seal(self) -> None:
        self._blobs.contents[self.name] = b"".join(self._parts)

    def intact(self) -> bool:
        return self.name in self._blobs.contents

    def settle(self) -> None:
        self._parts.clear()

    def discard(self) -> None:
        with self._blobs.lock:
            self._blobs.contents.pop(self.name, None)
            self._blobs.used -= self._size
            self._size = 0


class _MemoryContent:
    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content = content
        self._position = 0

    def read(self, count: int) -> bytes:
        part = self._content[self._position : self._position + count]
        self._position += len(part)
        return part

    def close(self) -> None:
        self._content = b""
