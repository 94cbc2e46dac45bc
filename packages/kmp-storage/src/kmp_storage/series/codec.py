"""Between a measurement class and rows of its table, checks included and without `model_dump`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from kmp_core.errors import Corrupt, InvalidInput
from kmp_storage.columns import decoder, encode_column
from kmp_storage.fields import FieldType, did_you_mean
from kmp_storage.models import Measurement, series_fields

__all__ = ["Codec", "codec_of"]

M = TypeVar("M", bound=Measurement)
Values = tuple[Any, ...]


class Codec(Generic[M]):
    """Encode and decode the rows of one class; `columns` are its fields, in their order."""

    def __init__(self, model: type[M]) -> None:
        options = model.__kmp_series__
        self.fields: dict[str, FieldType] = series_fields(model)
        assert options.series is not None
        self.model = model
        self.series: str = options.series
        self.tags = options.tags
        self.unique = options.unique
        self.retention = options.retention
        self.columns = tuple(self.fields)
        get = attrgetter(*self.columns)
        # attrgetter of a single name gives no tuple.
        self._get: Callable[[Any], Values] = get if len(self.columns) > 1 else lambda row: (get(row),)
        self._decoders = [(index, decode) for index, f in enumerate(self.fields.values()) if (decode := decoder(f))]
        self._defaulted = [
            (index, f.name) for index, f in enumerate(self.fields.values()) if not f.optional and not f.required
        ]

    def encode(self, measurements: Sequence[Measurement], *, first_row: int = 0) -> list[Values]:
        """Rows for SQLite. Raises `InvalidInput` naming row and field."""
        if not measurements:
            return []
        try:
            columns = list(zip(*map(self._get, measurements), strict=True))
        except AttributeError:
            self._refuse_incomplete(measurements, first_row)
            raise
        encoded = [
            encode_column(field, column, first_row=first_row)
            for field, column in zip(self.fields.values(), columns, strict=True)
        ]
        return list(zip(*encoded, strict=True))

    def decode(self, rows: Sequence[Values]) -> list[M]:
        """Validated instances. Raises `Corrupt` where a stored row does not fit the class (any more)."""
        if not rows:
            return []
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        for index, decode in self._decoders:
            column = columns[index]
            columns[index] = [None if value is None else decode(value) for value in column]
        validate = self.model.__pydantic_validator__.validate_python
        names = self.columns
        # An older row has no value for a field that came later, so the default stands in.
        lacking = [(i, name) for i, name in self._defaulted if None in columns[i]]
        decoded: list[M] = []
        for values in zip(*columns, strict=True):
            given = dict(zip(names, values, strict=True))
            for index, name in lacking:
                if values[index] is None:
                    del given[name]
            try:
                decoded.append(validate(given))
            except ValidationError as error:
                raise self._unfit(error) from None
        return decoded

    def field(self, name: str, option: str) -> FieldType:
        """A field to select or group by. Raises `InvalidInput` with "did you mean"."""
        if name in self.tags or name in self.unique:
            return self.fields[name]
        known = (*self.tags, *self.unique)
        problem = "is declared neither in 'tags' nor in 'unique'" if name in self.fields else "is no field"
        raise InvalidInput(option, f"{name!r} {problem} of {self.model.__name__}{did_you_mean(name, known)}")

    def _refuse_incomplete(self, measurements: Sequence[Measurement], first_row: int) -> None:
        for row, measurement in enumerate(measurements, start=first_row):
            for name in self.columns:
                if not hasattr(measurement, name):
                    raise InvalidInput(name, "is missing", row=row)

    def _unfit(self, error: ValidationError) -> Corrupt:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in fault["loc"]) or "the row"
        return Corrupt(
            f"A stored row of series {self.series!r} does not fit {self.model.__name__} (any more): {field}: "
            f"{fault['msg']}. Loosen the class, or give the new shape a series of its own"
        )


_codecs: WeakKeyDictionary[type[Measurement], Codec[Any]] = WeakKeyDictionary()


def codec_of(model: type[M]) -> Codec[M]:
    """The codec of a class, made once. Raises `InvalidInput` for what is no measurement class with a series."""
    given: object = model
    if not isinstance(given, type) or not issubclass(given, Measurement):
        raise InvalidInput("series", "must be a class derived from Measurement", example="Delay")
    found = _codecs.get(model)
    if found is None:
        if not model.__pydantic_complete__:
            model.model_rebuild()
        found = _codecs[model] = Codec(model)
    return found
