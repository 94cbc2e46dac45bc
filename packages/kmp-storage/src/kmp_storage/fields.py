"""Which types a stored field may have: those that every provider keeps without losing anything.

| annotation | kept as |
|---|---|
| `bool`, `int` (64 bits), `float` (finite), `str` (no NUL, no lone surrogate), `bytes` | itself |
| `datetime` (aware) | microseconds in UTC |
| `date`, `UUID` | ISO 8601, canonical text |
| an `Enum` or a `Literal` whose values are all text or all integers | the value |

Each may be `| None`. Everything else is refused when the class is defined, so that nobody finds out in production:
a `Decimal` (keep whole units, such as cents, in an `int`), a `timedelta` (keep seconds in a `float`), lists, mappings
and other models (give them fields of their own).
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin
from uuid import UUID

import pydantic
from pydantic import BaseModel

from kmp_core.errors import InvalidInput

__all__ = ["MAX_INTEGER", "MIN_INTEGER", "FieldType", "Kind", "did_you_mean", "fields_of"]

Kind = Literal["bool", "int", "float", "str", "bytes", "datetime", "date", "uuid", "enum"]

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1

_PLAIN: tuple[tuple[type, Kind], ...] = (  # in this order: a bool is an int, a datetime is a date
    (bool, "bool"),
    (int, "int"),
    (float, "float"),
    (str, "str"),
    (bytes, "bytes"),
    (datetime, "datetime"),
    (date, "date"),
    (UUID, "uuid"),
)
_PYDANTIC: dict[object, Kind] = {
    pydantic.AwareDatetime: "datetime",
    pydantic.PastDatetime: "datetime",
    pydantic.FutureDatetime: "datetime",
    pydantic.PastDate: "date",
    pydantic.FutureDate: "date",
}
_ADVICE: dict[object, str] = {
    Decimal: "keep whole units, such as cents, in an int",
    timedelta: "keep seconds in a float",
    pydantic.NaiveDatetime: "use datetime; times are aware",
    pydantic.SecretStr: "secrets belong in a SecretStore",
    Any: "name the type",
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FieldType:
    """What a field holds: `python` is the class that its values have, an `Enum` or a subclass of `str` included."""

    name: str
    kind: Kind
    python: type
    optional: bool
    required: bool

    @property
    def text(self) -> bool:
        """Whether it is kept as text."""
        if self.kind == "enum":
            members: Any = self.python
            return all(isinstance(member.value, str) for member in members)
        return self.kind in ("str", "date", "uuid")


def fields_of(model: type[BaseModel]) -> dict[str, FieldType]:
    """The stored fields of a model. Raises `InvalidInput` for a name or a type that no provider could keep."""
    found: dict[str, FieldType] = {}
    folded: dict[str, str] = {}
    for name, info in model.model_fields.items():
        where = f"{model.__name__}.{name}"
        if _NAME.fullmatch(name) is None:
            raise InvalidInput(where, "a stored field's name has 1 to 63 of a-z, A-Z, 0-9 and '_'", example="minutes")
        if name.lower() in folded:
            raise InvalidInput(where, f"differs from {folded[name.lower()]!r} in case alone, which databases ignore")
        folded[name.lower()] = name
        kind, python, optional = _resolve(info.annotation, where)
        found[name] = FieldType(name, kind, python, optional, info.is_required())
    return found


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'tags'?`, or the names there are, to be appended to an error's text."""
    import difflib  # costs import time, and is needed for errors alone

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f" (there are: {', '.join(names)})" if names else ""


def _resolve(annotation: Any, where: str) -> tuple[Kind, type, bool]:
    """Kind, class and whether None is allowed."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _resolve(get_args(annotation)[0], where)
    if origin in (Union, types.UnionType):
        members = [argument for argument in get_args(annotation) if argument is not type(None)]
        if len(members) == 1:
            kind, python, _ = _resolve(members[0], where)
            return kind, python, len(get_args(annotation)) == 2
        raise InvalidInput(where, "must have one type, and None at most besides", example="float | None")
    if origin is Literal:
        return *_literal(get_args(annotation), where), None in get_args(annotation)
    if isinstance(annotation, NewType):
        return _resolve(annotation.__supertype__, where)
    if hasattr(annotation, "__value__"):  # the type statement of Python 3.12
        return _resolve(annotation.__value__, where)
    return *_plain(annotation, where), False


def _plain(annotation: Any, where: str) -> tuple[Kind, type]:
    kind = _PYDANTIC.get(annotation)
    if kind is not None:
        return kind, date if kind == "date" else datetime
    if isinstance(annotation, type):
        if issubclass(annotation, Enum):
            _literal([member.value for member in annotation], where)
            return "enum", annotation
        for python, plain in _PLAIN:
            if issubclass(annotation, python):
                return plain, annotation
    shown = getattr(annotation, "__name__", str(annotation))
    advice = _ADVICE.get(annotation, "give it fields of its own")
    raise InvalidInput(
        where,
        f"{shown} cannot be stored: {advice}",
        example="bool, int, float, str, bytes, datetime, date, UUID, an Enum or Literal of text or integers",
    )


def _literal(values: Iterable[object], where: str) -> tuple[Kind, type]:
    found = {type(value) for value in values if value is not None}
    kinds: tuple[tuple[type, Kind], ...] = ((str, "str"), (int, "int"))
    for python, kind in kinds:
        if found and all(issubclass(member, python) and member is not bool for member in found):
            return kind, python
    raise InvalidInput(where, "the values of an Enum or a Literal must be all text or all integers")
