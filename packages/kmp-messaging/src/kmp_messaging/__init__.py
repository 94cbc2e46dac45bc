"""Typed events, delivered at least once, in order per key."""

from kmp_messaging.models import Event
from kmp_messaging.protocols import BatchHandler, EventBus, Handler
from kmp_messaging.values import DeadLetter, Lag, Subscription

__all__ = ["BatchHandler", "DeadLetter", "Event", "EventBus", "Handler", "Lag", "Subscription"]
