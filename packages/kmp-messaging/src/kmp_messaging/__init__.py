"""Typed events, delivered at least once, in order per key."""

from kmp_messaging.envelope import Metadata, metadata_of
from kmp_messaging.errors import HandlerKilled, InvalidEvent, MalformedEvent, UndeliverableEvent, UnknownEventType
from kmp_messaging.models import Event
from kmp_messaging.protocols import BatchHandler, EventBus, Handler
from kmp_messaging.settings import BusSettings
from kmp_messaging.values import DeadLetter, Lag, Subscription

__all__ = [
    "BatchHandler",
    "BusSettings",
    "DeadLetter",
    "Event",
    "EventBus",
    "Handler",
    "HandlerKilled",
    "InvalidEvent",
    "Lag",
    "MalformedEvent",
    "Metadata",
    "Subscription",
    "UndeliverableEvent",
    "UnknownEventType",
    "metadata_of",
]
