"""What passes between intake and handlers: single events and batches, and the handler that a class of events has."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from kmp_messaging.embedded.partition import Partition
from kmp_messaging.models import Event

__all__ = ["Batch", "Item", "Raw", "Route"]

Raw = tuple[Partition, int, bytes]
"""An event that nobody has looked at yet: where it belongs, its position, its bytes."""


@dataclass(slots=True, eq=False)
class Route:
    """Which handler gets the events of a class; `size` is None for a handler of single events."""

    event: type[Event]
    handler: Callable[[Any], Coroutine[Any, Any, None]]
    retries: int
    concurrency: int
    size: int | None = None

    def call(self, event: Event) -> Coroutine[Any, Any, None]:
        """Handle one event, whichever kind of handler it is."""
        return self.handler(event if self.size is None else [event])


@dataclass(slots=True, eq=False)
class Item:
    """One event on its way to its handler."""

    partition: Partition
    position: int
    content: bytes
    event: Any
    envelope: dict[str, Any]
    key: str | None
    route: Route

    @property
    def raw(self) -> Raw:
        """As it came."""
        return (self.partition, self.position, self.content)

    @property
    def attempts(self) -> int:
        """How often it was tried and failed."""
        return self.partition.attempts.get(self.position, 0)

    @property
    def deaths(self) -> int:
        """How many processes were killed while they handled it alone."""
        return self.partition.deaths.get(self.position, 0)


@dataclass(slots=True, eq=False)
class Batch:
    """Events that are handled together, and how often that failed.

    A `part` of a batch that failed too often is looked through by halves: where its other half is fine, the `rest` is
    `bad`, which needs no try.
    """

    items: list[Item]
    route: Route
    failures: int = 0
    part: bool = False
    bad: bool = False
    rest: Batch | None = None
