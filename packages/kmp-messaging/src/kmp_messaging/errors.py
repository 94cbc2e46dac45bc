"""What this package adds to the tree of `kmp_core.errors`.

```text
KmpError
└── UndeliverableEvent      stored bytes that no handler can be given; they become a dead letter, never a crash
    ├── MalformedEvent      the bytes are no event at all
    ├── UnknownEventType    an event whose class this process does not have
    └── InvalidEvent        the content does not fit the class; names the fields, never a value
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmp_core.errors import KmpError

__all__ = ["HandlerKilled", "InvalidEvent", "MalformedEvent", "UndeliverableEvent", "UnknownEventType"]


class HandlerKilled(KmpError):
    """The process ended while it handled this event, as often as the event may be tried."""


class UndeliverableEvent(KmpError):
    """No handler can be given this event, now or later. `attributes` is what could be read of its envelope."""

    def __init__(self, message: str, *, attributes: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.attributes: Mapping[str, Any] = attributes or {}


class MalformedEvent(UndeliverableEvent):
    """The bytes are not a CloudEvent of version 1 in JSON."""


class UnknownEventType(UndeliverableEvent):
    """The event's type is declared by no class of this process."""


class InvalidEvent(UndeliverableEvent):
    """The content does not fit the class that has the event's type."""
