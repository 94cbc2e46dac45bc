"""The capability of this package: a bus that carries typed events."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar, overload

from kmp_core.capability import capability
from kmp_core.deadlines import Timeout
from kmp_core.resource import Resource
from kmp_messaging.models import Event
from kmp_messaging.values import DeadLetter, Lag, Subscription

__all__ = ["BatchHandler", "EventBus", "Handler"]

E = TypeVar("E", bound=Event)

Handler = Callable[[E], Coroutine[Any, Any, None]]
BatchHandler = Callable[[Sequence[E]], Coroutine[Any, Any, None]]


@capability("messaging.bus", default="sqlite:")
class EventBus(Resource, Protocol):
    """Publish events and have them handled at least once, in order per key.

    A subscription's position is committed after the handler returned. A handler that raises is tried again, with
    jittered backoff and without holding up other keys; after `retries` more attempts, counted across restarts, the
    event becomes a dead letter with its cause, and the next event of its key goes on.
    """

    @abstractmethod
    async def publish(self, *events: Event, timeout: Timeout = None) -> None:
        """Return once all are stored durably, in the given order per key. All or nothing on the embedded provider."""

    @abstractmethod
    async def publish_all(self, events: Iterable[Event] | AsyncIterable[Event], *, timeout: Timeout = None) -> int:
        """Publish a long iterable in batches with flat memory and return how many; `timeout` bounds each batch."""

    @overload
    @abstractmethod
    def subscribe(
        self, event: type[E], handler: Handler[E], *, group: str, retries: int = 5, concurrency: int = 16
    ) -> Subscription: ...

    @overload
    @abstractmethod
    def subscribe(
        self, event: type[E], *, group: str, retries: int = 5, concurrency: int = 16
    ) -> Callable[[Handler[E]], Handler[E]]: ...

    @abstractmethod
    def subscribe(
        self,
        event: type[E],
        handler: Handler[E] | None = None,
        *,
        group: str,
        retries: int = 5,
        concurrency: int = 16,
    ) -> Subscription | Callable[[Handler[E]], Handler[E]]:
        """Have every event of a class handled by one member of `group`; as a call or as a decorator.

        Intake begins with `start` (a `Service` does that in `run`). Up to `concurrency` keys are handled at a time.
        A new group begins with the oldest event that is kept.
        """

    @abstractmethod
    def subscribe_batch(
        self, event: type[E], handler: BatchHandler[E], *, group: str, retries: int = 5, size: int = 500
    ) -> Subscription:
        """Handle up to `size` events at once, in order; a batch that fails is retried, then handled one by one.

        So one bad event of a batch becomes a dead letter and the others do not.
        """

    @abstractmethod
    async def start(self) -> None:
        """Begin intake for everything subscribed; what is subscribed later begins at once."""

    @abstractmethod
    async def drain(self, *, timeout: Timeout = None) -> None:
        """Stop intake, let handlers end, commit. What is not handled in time is handled again by somebody."""

    @abstractmethod
    async def lag(self, event: type[Event], *, group: str, timeout: Timeout = None) -> Lag:
        """How far a group is behind."""

    @abstractmethod
    def dead_letters(
        self, event: type[Event] | None = None, *, group: str | None = None, timeout: Timeout = None
    ) -> AsyncIterator[DeadLetter]:
        """What was given up, oldest first, each with its cause, origin and trace."""
