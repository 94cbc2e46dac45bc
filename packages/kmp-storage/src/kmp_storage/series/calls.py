"""What callers of a time-series store pass, checked before any backend is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args
from zoneinfo import ZoneInfo

from kmp_core.errors import InvalidInput
from kmp_storage.fields import did_you_mean
from kmp_storage.models import Measurement
from kmp_storage.protocols import Aggregation
from kmp_storage.series.codec import Codec
from kmp_storage.series.time_buckets import Every

__all__ = ["Filter", "Summary", "class_of", "pairs_of", "runs", "tags_of"]

_KNOWN: tuple[str, ...] = get_args(Aggregation)
_OF_NUMBERS = frozenset(_KNOWN) - {"count"}


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition over the table `t`, with its parameters."""

    sql: str
    parameters: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """What an aggregate asks for."""

    pairs: tuple[tuple[str, str], ...]
    by: tuple[str, ...]
    every: Every | None
    zone: ZoneInfo
    where: Filter


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


def pairs_of(codec: Codec[Any], values: Mapping[str, str | Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """Field and aggregation of each value asked for. Raises `InvalidInput` with "did you mean"."""
    pairs: dict[tuple[str, str], None] = {}
    for name, wanted in values.items():
        field = codec.fields.get(name)
        if field is None:
            raise InvalidInput("values", f"{name!r} is no field{did_you_mean(name, codec.fields)}")
        for aggregation in (wanted,) if isinstance(wanted, str) else wanted:
            if aggregation not in _KNOWN:
                raise InvalidInput(
                    f"values, {name}", f"{aggregation!r} is unknown{did_you_mean(str(aggregation), _KNOWN)}"
                )
            if aggregation in _OF_NUMBERS and field.kind not in ("int", "float", "bool"):
                raise InvalidInput(
                    f"values, {name}", f"{aggregation} needs a number, not {field.kind}", example='"count"'
                )
            pairs[name, aggregation] = None
    if not pairs:
        raise InvalidInput("values", "asks for nothing", example='{"minutes": "mean"}')
    return tuple(pairs)
