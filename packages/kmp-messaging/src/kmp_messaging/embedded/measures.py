"""How long handlers take, as the semantic conventions want it (`messaging.process.duration`), one point per operation.

An operation is a call with a batch, or a run of single events that a worker handed out in one go: a point for each
event would cost more than most handlers do.
"""

from __future__ import annotations

import time

from opentelemetry.util.types import AttributeValue

from kmp_core.telemetry import Telemetry

__all__ = ["ProcessingTime"]


class ProcessingTime:
    """The processing time of one group in one topic; nearly free when nobody listens."""

    __slots__ = ("_attributes", "_histogram", "_listening")

    def __init__(self, telemetry: Telemetry, topic: str, group: str) -> None:
        self._listening = telemetry.listening
        self._histogram = telemetry.processing
        self._attributes: dict[str, AttributeValue] = {
            **telemetry.attributes,
            "messaging.operation.name": "process",
            "messaging.destination.name": topic,
            "messaging.consumer.group.name": group,
        }

    def record(self, began: float, error: BaseException | None = None) -> None:
        """An operation that began at this moment of `time.monotonic` has ended."""
        if not self._listening:
            return
        attributes = self._attributes
        if error is not None:
            attributes = {**attributes, "error.type": type(error).__qualname__}
        self._histogram.record(time.monotonic() - began, attributes)
