"""Between a measurement class and rows for PostgreSQL's binary protocol, checked a column at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from operator import attrgetter, itemgetter
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

from kmp_core.errors import InvalidInput
from kmp_storage.columns import ENCODERS, Encoder, encode_column, encode_value
from kmp_storage.fields import FieldType
from kmp_storage.models import Measurement
from kmp_storage.series.codec import Codec

__all__ = ["SQL_TYPES", "TimescaleCodec", "parameter", "timescale_codec_of"]

M = TypeVar("M", bound=Measurement)

SQL_TYPES = {
    "bool": "boolean",
    "int": "bigint",
    "float": "double precision",
    # Compared by code point, so that order and equality are the same on every server.
    "str": 'text COLLATE "C"',
    "bytes": "bytea",
    "datetime": "timestamptz",
    "date": "date",
    "uuid": "uuid",
}

# What lies beyond them in UTC, as in another zone it can, nobody could read again.
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

_zone = attrgetter("tzinfo")
_fields = attrgetter("__dict__")


class _TooEarly(Exception):
    """A row's time is the very first moment: the driver's word for '-infinity', which no chunk covers."""


def _datetimes(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    if any(not issubclass(kind, datetime) for kind in set(map(type, values))):
        return None
    if values and values[0].utcoffset() is None:
        return None
    # A naive one among aware ones raises TypeError, faster than each is asked.
    first = min(values, default=_LAST)
    if first == _FIRST and field.name == "time":
        raise _TooEarly
    return values if first >= _FIRST and max(values, default=_FIRST) <= _LAST else None


def _dates(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    kinds = set(map(type, values))
    return values if all(issubclass(k, date) and not issubclass(k, datetime) for k in kinds) else None


def _uuids(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    return values if all(issubclass(kind, UUID) for kind in set(map(type, values))) else None


def _floats(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    # A sum is finite only where all are; where it is not, each is looked at, since finite ones may add up to infinity.
    if set(map(type, values)) == {float} and math.isfinite(sum(values)):
        return values
    return ENCODERS["float"](field, values)


_POSTGRES: Mapping[str, Encoder] = {
    **ENCODERS,
    "float": _floats,
    "datetime": _datetimes,
    "date": _dates,
    "uuid": _uuids,
}


def _aware(value: datetime | None) -> datetime | None:
    return value if value is None or value.tzinfo is not None else value.replace(tzinfo=UTC)


class TimescaleCodec(Codec[M]):
    """Encode and decode the rows of one class; the driver itself knows dates, times and UUIDs."""

    def __init__(self, model: type[M]) -> None:
        super().__init__(model)
        self._decoders = [(index, f.python) for index, f in enumerate(self.fields.values()) if f.kind == "enum"]
        pick = itemgetter(*self.columns)
        # itemgetter of a single name gives no tuple.
        self._pick: Callable[[Any], tuple[Any, ...]] = pick if len(self.columns) > 1 else lambda row: (pick(row),)
        self._ordered = list(self.fields.values())
        self._times = [index for index, f in enumerate(self._ordered) if f.kind == "datetime"]

    def encode(self, measurements: Sequence[Measurement], *, first_row: int = 0) -> list[tuple[Any, ...]]:
        """Rows for the driver. Raises `InvalidInput` naming row and field."""
        try:
            # A model keeps its fields in its dictionary; asking that is a third faster than asking the model.
            rows = list(map(self._pick, map(_fields, measurements)))
        except KeyError:
            self._refuse_incomplete(measurements, first_row)
            raise
        columns = list(zip(*rows, strict=True))
        changed = False
        for index, (field, column) in enumerate(zip(self._ordered, columns, strict=False)):
            try:
                encoded = encode_column(field, column, first_row=first_row, encoders=_POSTGRES)
            except _TooEarly:
                row = first_row + column.index(_FIRST)
                problem = "is the very first moment of the calendar, which PostgreSQL keeps for '-infinity'"
                raise InvalidInput(field.name, problem, example="datetime(2013, 1, 1, tzinfo=UTC)", row=row) from None
            if encoded is not column:
                columns[index] = tuple(encoded)
                changed = True
        return list(zip(*columns, strict=True)) if changed else rows

    def decode(self, rows: Sequence[tuple[Any, ...]]) -> list[M]:
        """Validated instances. The driver stands a naive time for PostgreSQL's `infinity`, which is `datetime.max`."""
        for index in self._times:
            if None in set(map(_zone, filter(None, map(itemgetter(index), rows)))):
                rows = [(*row[:index], _aware(row[index]), *row[index + 1 :]) for row in rows]
        return super().decode(rows)

    def check_class(self, measurements: Sequence[object], first_row: int) -> None:
        """Raise `InvalidInput` for the first that is of another class."""
        if set(map(type, measurements)) == {self.model}:
            return
        for row, measurement in enumerate(measurements, start=first_row):
            if type(measurement) is not self.model:
                raise InvalidInput("series", f"a stream holds one class, {self.model.__name__}", row=row)


def parameter(field: FieldType, value: Any, where: str) -> Any:
    """A value to select by, as the driver takes it."""
    return encode_value(field, value, where=where, encoders=_POSTGRES)


_codecs: WeakKeyDictionary[type[Measurement], TimescaleCodec[Any]] = WeakKeyDictionary()


def timescale_codec_of(model: type[M]) -> TimescaleCodec[M]:
    """The codec of a class, made once. Raises `InvalidInput` for what is no measurement class with a series."""
    given: object = model
    if not isinstance(given, type) or not issubclass(given, Measurement):
        raise InvalidInput("series", "must be a class derived from Measurement", example="Delay")
    found = _codecs.get(model)
    if found is None:
        if not model.__pydantic_complete__:
            model.model_rebuild()
        found = _codecs[model] = TimescaleCodec(model)
    return found
