"""Between node and edge classes and Neo4j's properties, which are typed: a time is a time there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta, timezone
from functools import partial
from importlib import import_module
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from kmp_core.errors import InvalidInput
from kmp_core.plugins import extra
from kmp_storage.columns import ENCODERS, encode_value, kept_kind
from kmp_storage.fields import MAX_INTEGER, MIN_INTEGER, FieldType
from kmp_storage.graph.codecs import Codecs, EdgeCodec, NodeCodec, Properties
from kmp_storage.models import Edge, Node

with extra("neo4j", install="kmp-storage[neo4j]"):
    from neo4j import graph
    from neo4j import time as neo4j_time

pytz: Any = import_module("pytz")  # comes with the driver, and without types

__all__ = ["EdgeCodec", "NodeCodec", "edge_codec", "node_codec", "plain", "sendable"]


_NONE = "_none_"
"""Before a field's name: the field is None, and not only unknown. Neo4j keeps no None, and a default may be another."""


def plain(value: Any) -> Any:
    """What the driver returned, without types of the driver's: times are Python's, a node is its properties.

    Only a duration that has months, of which nobody knows how long they are, stays the driver's.
    """
    if isinstance(value, neo4j_time.DateTime | neo4j_time.Date | neo4j_time.Time):
        native = value.to_native()
        return _in_its_zone(native) if isinstance(native, datetime) else native
    if isinstance(value, neo4j_time.Duration) and not value.months:
        return timedelta(days=value.days, seconds=value.seconds, microseconds=value.nanoseconds // 1000)
    if isinstance(value, graph.Path):
        return [plain(part) for part in _alternating(value)]
    if isinstance(value, graph.Entity | Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value


def sendable(value: Any) -> Any:
    """A parameter as the driver may have it: no time in a zone of `zoneinfo`.

    Of such a zone it asks the offset of an object that is no `datetime`. `zoneinfo` reads its memory as if it were one:
    the hour is wrong at times, and Python may crash. Zones of pytz, which the driver itself uses, are safe.
    """
    if isinstance(value, datetime) and isinstance(value.tzinfo, ZoneInfo):
        try:
            return value.astimezone(pytz.timezone(value.tzinfo.key))
        except (pytz.UnknownTimeZoneError, AttributeError):  # or it has no name
            return value.astimezone(timezone(value.utcoffset() or timedelta()))
    if isinstance(value, time) and isinstance(value.tzinfo, ZoneInfo):
        raise TypeError("a time of day has no offset in a zone whose offset depends on the day")
    if isinstance(value, Mapping):
        return {name: sendable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [sendable(part) for part in value]
    return value


class _Properties(Properties):
    """Each field is a property of its own, the key of a node among them."""

    def __init__(
        self, model: type[Node] | type[Edge], fields: Mapping[str, FieldType], identify: tuple[str, ...]
    ) -> None:
        super().__init__(model, fields, identify)
        self._quick = {name: _QUICK.get(field.kind, _never) for name, field in self.fields.items()}
        self._decoders = {name: _decoder(field) for name, field in self.fields.items()}
        # Only where the default is something else has an explicit None to be told from nothing.
        self._marked = {name for name, field in self.fields.items() if field.optional and name not in self.unset}

    def encode(self, item: Node | Edge, row: int | None) -> dict[str, Any]:
        given: dict[str, Any] = {}
        passed = item.model_fields_set
        for name, field in self.fields.items():
            if name not in passed:
                continue
            value = getattr(item, name)
            if value is None and not field.optional:
                raise InvalidInput(name, "must not be None", row=row)
            if name in self._marked:
                given[_NONE + name] = True if value is None else None
            given[name] = value if self._quick[name](value) else _encode(field, value, row)
        return given

    def decode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, decode in self._decoders.items():
            value = stored.get(name)
            if value is not None:
                fields[name] = value if decode is None else decode(value)
            elif _NONE + name in stored:
                fields[name] = None
        return fields


_codecs = Codecs(_Properties)
node_codec, edge_codec = _codecs.node, _codecs.edge


def _alternating(path: graph.Path) -> list[Any]:
    parts: list[Any] = [path.nodes[0]]
    for edge, node in zip(path.relationships, path.nodes[1:], strict=True):
        parts += [edge, node]
    return parts


def _encode(field: FieldType, value: Any, row: int | None) -> Any:
    try:
        return encode_value(field, value, row=row, encoders=_ENCODERS)
    except OverflowError:
        raise InvalidInput(field.name, "lies outside the years 1 to 9999 in UTC", row=row) from None


_ENCODERS = {
    **ENCODERS,
    "str": lambda field, values: None if (kept := ENCODERS["str"](field, values)) is None else list(map(_text, kept)),
    "int": lambda field, values: None if (kept := ENCODERS["int"](field, values)) is None else list(map(int, kept)),
    "bytes": lambda _, values: list(map(bytes, values)),
    "datetime": lambda _, values: [value.astimezone(UTC) for value in values],
    "date": lambda _, values: list(values),
}


def _text(value: str) -> str:
    return value if type(value) is str else str.__str__(value)


def _quick_text(value: Any) -> bool:
    return type(value) is str and value.isascii() and "\0" not in value


def _quick_integer(value: Any) -> bool:
    return type(value) is int and MIN_INTEGER <= value <= MAX_INTEGER


def _quick_float(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _quick_bool(value: Any) -> bool:
    return type(value) is bool


def _never(value: Any) -> bool:
    return False


_QUICK: dict[str, Callable[[Any], bool]] = {
    "str": _quick_text,
    "int": _quick_integer,
    "float": _quick_float,
    "bool": _quick_bool,
}
"""Whether a value is one of the common ones, which go to the driver as they are."""


def _decoder(field: FieldType) -> Callable[[Any], Any] | None:
    if field.kind == "enum":
        return field.python
    kind = kept_kind(field)
    return partial(_time, field.name) if kind == "datetime" else _DECODERS.get(kind)


def _in_its_zone(moment: datetime) -> datetime:
    """The moment with a zone of Python's own instead of the driver's; the offset alone where none has the name."""
    offset, name = moment.utcoffset(), getattr(moment.tzinfo, "zone", None)
    if offset is None:
        return moment
    if name not in (None, "UTC"):
        with suppress(ZoneInfoNotFoundError):
            return moment.astimezone(ZoneInfo(name))
    return moment.astimezone(timezone(offset))


def _time(name: str, value: Any) -> datetime:
    native: datetime = value.to_native()
    if native.tzinfo is None:
        raise ValueError(f"{name}: is a local time without a zone, which is no moment")
    return native.astimezone(UTC)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "date": lambda value: value.to_native(),
    "uuid": UUID,
}
