"""Between a model's fields and SQLite's columns: whole columns are checked and converted at once, which is what makes
appending fast; only a column with a fault is searched for the row.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID

from kmp_core.errors import InvalidInput
from kmp_storage.fields import MAX_INTEGER, MIN_INTEGER, FieldType

__all__ = [
    "ENCODERS",
    "SQL_TYPES",
    "Encoder",
    "decoder",
    "encode_column",
    "encode_value",
    "from_microseconds",
    "kept_kind",
    "microseconds",
]

Problem = tuple[str, str | None]
Encoder = Callable[[FieldType, Sequence[Any]], Sequence[Any] | None]
"""Whole columns at once; None, or an exception, where a value does not fit."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

SQL_TYPES = {
    "bool": "INTEGER",
    "int": "INTEGER",
    "float": "REAL",
    "str": "TEXT",
    "bytes": "BLOB",
    "datetime": "INTEGER",
    "date": "TEXT",
    "uuid": "TEXT",
}


def kept_kind(field: FieldType) -> str:
    """The kind under which a field's values are kept: an `Enum` is its values."""
    if field.kind == "enum":
        return "str" if field.text else "int"
    return field.kind


def microseconds(value: datetime) -> int:
    """An aware time as whole microseconds since 1970 in UTC, exactly."""
    return (value - _EPOCH) // _MICROSECOND


_FIRST = microseconds(datetime.min.replace(tzinfo=UTC))
_LAST = microseconds(datetime.max.replace(tzinfo=UTC))


def from_microseconds(value: int) -> datetime:
    """The same in UTC again."""
    return _EPOCH + timedelta(microseconds=value)


def encode_column(
    field: FieldType, column: Sequence[Any], *, first_row: int = 0, encoders: Mapping[str, Encoder] | None = None
) -> Sequence[Any]:
    """What SQLite, or whomever `encoders` are for, keeps for these values.

    Raises `InvalidInput` naming row and field for one that cannot be kept.
    """
    present = column
    if None in column:
        if not field.optional:
            _refuse(field, column, first_row)
        present = [value for value in column if value is not None]
    encoded: Sequence[Any] | None = None
    with contextlib.suppress(TypeError, ValueError, AttributeError, OverflowError):
        encoded = (encoders or ENCODERS)[kept_kind(field)](field, present)
    if encoded is None:
        _refuse(field, column, first_row)
    if present is column:
        return encoded
    values = iter(encoded)
    return [None if value is None else next(values) for value in column]


def encode_value(
    field: FieldType,
    value: Any,
    *,
    where: str | None = None,
    row: int | None = None,
    encoders: Mapping[str, Encoder] | None = None,
) -> Any:
    """One value, with `where` (default: the field's name) for the error. None is always taken: in a filter it is
    'is not there'."""
    if value is None:
        return None
    problem = _problem(field, value)
    if problem is not None:
        raise InvalidInput(where or field.name, problem[0], example=problem[1], row=row)
    return _encode_plain(field, [value], encoders or ENCODERS)[0]


def decoder(field: FieldType) -> Callable[[Any], Any] | None:
    """What turns a kept value (not None) into the field's, or None where it is the same."""
    if field.kind == "enum":
        return field.python
    if field.kind == "float":
        return float  # JSON, unlike SQLite, would give an int for 1.0 written by another language
    return _DECODERS.get(field.kind)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "bool": bool,
    "datetime": from_microseconds,
    "date": date.fromisoformat,
    "uuid": UUID,
}


def _refuse(field: FieldType, column: Sequence[Any], first_row: int) -> NoReturn:
    for row, value in enumerate(column, start=first_row):
        if value is None and field.optional:
            continue
        problem = _problem(field, value)
        if problem is not None:
            raise InvalidInput(field.name, problem[0], example=problem[1], row=row)
    raise AssertionError(f"a column of {field.name!r} was refused, and none of its values")


def _encode_plain(field: FieldType, values: Sequence[Any], encoders: Mapping[str, Encoder]) -> Sequence[Any]:
    encoded = encoders[kept_kind(field)](field, values)
    assert encoded is not None
    return encoded


def _raw(field: FieldType, values: Sequence[Any]) -> Sequence[Any]:
    if field.kind != "enum":
        return values
    return [value.value if isinstance(value, Enum) else value for value in values]


def _encode_bool(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    return values if set(map(type, values)) <= {bool} else None


def _encode_int(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    values = _raw(field, values)
    if any(not issubclass(kind, int) or kind is bool for kind in set(map(type, values))):
        return None
    return values if not values or (min(values) >= MIN_INTEGER and max(values) <= MAX_INTEGER) else None


def _encode_float(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    kinds = set(map(type, values))
    if kinds - {float}:
        if any(not issubclass(kind, int | float) or kind is bool for kind in kinds):
            return None
        values = [float(value) for value in values]
    return values if all(map(math.isfinite, values)) else None


def _encode_str(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    values = _raw(field, values)
    joined = "".join(values)
    if "\0" in joined:
        return None
    if not joined.isascii():
        joined.encode()  # raises where there is a lone surrogate
    return values


def _encode_bytes(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    return values if all(issubclass(kind, bytes) for kind in set(map(type, values))) else None


def _encode_datetime(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    encoded = [(value - _EPOCH) // _MICROSECOND for value in values]
    return encoded if not encoded or (min(encoded) >= _FIRST and max(encoded) <= _LAST) else None


def _encode_date(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    if any(issubclass(kind, datetime) for kind in set(map(type, values))):
        return None
    return [value.isoformat() for value in values]


def _encode_uuid(field: FieldType, values: Sequence[Any]) -> Sequence[Any] | None:
    return [str(value) for value in values] if all(issubclass(k, UUID) for k in set(map(type, values))) else None


ENCODERS: dict[str, Encoder] = {
    "bool": _encode_bool,
    "int": _encode_int,
    "float": _encode_float,
    "str": _encode_str,
    "bytes": _encode_bytes,
    "datetime": _encode_datetime,
    "date": _encode_date,
    "uuid": _encode_uuid,
}

_WANTED: dict[str, tuple[type | tuple[type, ...], str]] = {
    "bool": (bool, "True"),
    "int": (int, "42"),
    "float": ((int, float), "1.5"),
    "str": (str, '"UA1545"'),
    "bytes": (bytes, 'b"..."'),
    "datetime": (datetime, "datetime(2013, 1, 1, tzinfo=UTC)"),
    "date": (date, "date(2013, 1, 1)"),
    "uuid": (UUID, "uuid4()"),
}


def _problem(field: FieldType, value: Any) -> Problem | None:
    """What is wrong with one value, and an example of a right one. Never quotes the value."""
    kind = kept_kind(field)
    wanted, example = _WANTED[kind]
    plain: Any = value.value if field.kind == "enum" and isinstance(value, Enum) else value
    if plain is None:
        return "must not be None", example
    # A bool is an int and a datetime is a date, to Python.
    mistaken = kind != "bool" if isinstance(plain, bool) else kind == "date" and isinstance(plain, datetime)
    if mistaken or not isinstance(plain, wanted):
        return f"must be {kind}, not {type(plain).__name__}", example
    check = _CHECKS.get(kind)
    return None if check is None else check(plain)


def _time_problem(value: datetime) -> Problem | None:
    example = _WANTED["datetime"][1]
    if value.utcoffset() is None:
        return "is a naive time; say which zone it is in", example
    return None if _FIRST <= microseconds(value) <= _LAST else ("lies outside the years 1 to 9999 of UTC", example)


def _int_problem(value: int) -> Problem | None:
    return None if MIN_INTEGER <= value <= MAX_INTEGER else ("does not fit 64 bits", str(MAX_INTEGER))


def _float_problem(value: float) -> Problem | None:
    try:
        finite = math.isfinite(value)
    except OverflowError:
        return "does not fit 64 bits", "1.5"
    return None if finite else ("is not a finite number; a missing value is None", "None")


def _text_problem(value: str) -> Problem | None:
    if "\0" in value:
        return "contains a NUL character", None
    try:
        value.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate, which is no character", None
    return None


_CHECKS: dict[str, Callable[[Any], Problem | None]] = {
    "datetime": _time_problem,
    "int": _int_problem,
    "float": _float_problem,
    "str": _text_problem,
}
