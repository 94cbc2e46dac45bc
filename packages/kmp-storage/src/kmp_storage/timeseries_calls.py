"""What callers of a time-series store pass, checked before any backend is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kmp_core.errors import InvalidInput
from kmp_storage.embedded.timeseries.codec import Codec
from kmp_storage.models import Measurement

__all__ = ["class_of", "runs", "tags_of"]


def runs(measurements: Sequence[Measurement]) -> list[tuple[type[Measurement], int, list[Measurement]]]:
    """Neighbours of one class together, with the position of the first, in their order."""
    found: list[tuple[type[Measurement], int, list[Measurement]]] = []
    current: type[Measurement] | None = None
    for position, measurement in enumerate(measurements):
        if type(measurement) is not current:
            current = class_of(measurement, position)
            found.append((current, position, []))
        found[-1][2].append(measurement)
    return found


def class_of(measurement: object, position: int) -> type[Measurement]:
    """The class of what somebody wants stored. Raises `InvalidInput` for what is no measurement."""
    if isinstance(measurement, Measurement):
        return type(measurement)
    hint = "; pass rows as *rows, or use append_all" if isinstance(measurement, list | tuple) else ""
    raise InvalidInput("measurements", f"must be a Measurement, not {type(measurement).__name__}{hint}", row=position)


def tags_of(codec: Codec[Any], by: Sequence[str]) -> tuple[str, ...]:
    """The names in `by`, each once. Raises `InvalidInput` for one that is no tag."""
    if isinstance(by, str):
        raise InvalidInput("by", "must be a sequence of names", example=f'("{by}",)')
    for name in by:
        codec.field(name, "by")
    return tuple(dict.fromkeys(by))
