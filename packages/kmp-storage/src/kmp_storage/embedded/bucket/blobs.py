"""What the embedded bucket needs of a place for contents. All calls block, and are made from threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

__all__ = ["Blobs", "Content", "Upload"]


class Upload(Protocol):
    """A content on its way in."""

    name: str

    def write(self, chunk: bytes) -> None: ...
    def seal(self) -> None:
        """Make it durable."""

    def intact(self) -> bool:
        """Whether nobody swept it away; once sealed and named by the index, nobody will."""
        ...

    def settle(self) -> None:
        """It is named by the index: move it to its place."""

    def discard(self) -> None:
        """It will never be named: leave nothing."""


class Content(Protocol):
    """An object's content, open for reading."""

    size: int

    def read(self, count: int) -> bytes: ...
    def close(self) -> None: ...


class Blobs(Protocol):
    """Contents by name."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def begin(self) -> Upload: ...
    def read(self, name: str) -> Content | None: ...
    def remove(self, name: str) -> None: ...
    def check(self) -> None: ...
    def abandoned(self) -> Iterator[Upload]:
        """What writers that live no more left in `incoming/`, each locked while it is looked at."""
        ...
