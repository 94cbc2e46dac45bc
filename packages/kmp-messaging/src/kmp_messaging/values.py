"""What a bus returns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

__all__ = ["DeadLetter", "Lag", "Subscription"]


class Subscription(Protocol):
    """A handler at work: `await cancel()` ends it alone, after what it is doing."""

    @property
    def group(self) -> str: ...

    async def cancel(self) -> None:
        """Stop intake, let the handler end, commit."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a group is behind: events not yet committed, and the age in seconds of the oldest (0 where none)."""

    events: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that was given up: `content` is the encoded event as it came, so that nothing is lost.

    `cause` is the error's class, `detail` its message after redaction; `origin` names topic, position and source.
    """

    id: str
    topic: str
    group: str
    type: str
    key: str | None
    content: bytes
    cause: str
    detail: str
    attempts: int
    origin: str
    traceparent: str | None
    time: datetime
