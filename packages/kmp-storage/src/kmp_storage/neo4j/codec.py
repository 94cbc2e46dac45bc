"""Between node and edge classes and Neo4j's properties, which are typed: a time is a time there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta, timezone
from importlib import import_module
from typing import Any, Generic, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ValidationError

from kmp_core.errors import Corrupt, InvalidInput
from kmp_core.plugins import extra
from kmp_storage.embedded.columns import ENCODERS, encode_value, kept_kind
from kmp_storage.embedded.graph.codec import check_key
from kmp_storage.fields import MAX_INTEGER, MIN_INTEGER, FieldType
from kmp_storage.models import Edge, Node, edge_fields, node_fields

with extra("neo4j", install="kmp-storage[neo4j]"):
    from neo4j import graph
    from neo4j import time as neo4j_time

pytz: Any = import_module("pytz")  # comes with the driver, and without types

__all__ = ["EdgeCodec", "NodeCodec", "edge_codec", "node_codec", "plain", "sendable"]

N = TypeVar("N", bound=Node)
E = TypeVar("E", bound=Edge)

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


class _Properties:
    """The fields of a class that are properties of what is stored; the key of a node is one of them, and identifies."""

    def __init__(
        self, model: type[Node] | type[Edge], fields: Mapping[str, FieldType], identify: tuple[str, ...]
    ) -> None:
        self._model = model
        self._fields = {name: field for name, field in fields.items() if name not in identify}
        self._quick = {name: _QUICK.get(field.kind, _never) for name, field in self._fields.items()}
        self._decoders = {name: _decoder(field) for name, field in self._fields.items()}
        # Only where the default is something else has an explicit None to be told from nothing.
        self._marked = {
            name
            for name, field in self._fields.items()
            if field.optional and model.model_fields[name].default is not None
        }

    def encode(self, item: Node | Edge, row: int | None) -> dict[str, Any]:
        """What was passed of the item's fields. Raises `InvalidInput` naming row and field."""
        given: dict[str, Any] = {}
        passed = item.model_fields_set
        for name, field in self._fields.items():
            if name not in passed:
                continue
            value = getattr(item, name)
            if value is None and not field.optional:
                raise InvalidInput(name, "must not be None", row=row)
            if name in self._marked:
                given[_NONE + name] = True if value is None else None
            given[name] = value if self._quick[name](value) else _encode(field, value, row)
        return given

    def decode(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The fields again; a property that the class does not know is left out."""
        fields: dict[str, Any] = {}
        for name, decode in self._decoders.items():
            value = found.get(name)
            if value is not None:
                fields[name] = value if decode is None else decode(value)
            elif _NONE + name in found:
                fields[name] = None
        return fields

    def unfit(self, what: str, error: Exception) -> Corrupt:
        """The error for stored properties that the class refuses."""
        problem = str(error)
        if isinstance(error, ValidationError):
            fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
            problem = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        return Corrupt(
            f"A stored {what} does not fit {self._model.__name__} (any more): {problem}. Loosen the class, or merge "
            "what is stored anew"
        )


class NodeCodec(Generic[N]):
    """Encode and decode the nodes of one class."""

    def __init__(self, model: type[N]) -> None:
        options, fields = model.__kmp_node__, node_fields(model)
        assert options.label is not None
        assert options.key is not None
        self.model = model
        self.label: str = options.label
        self.property: str = options.key
        self._properties = _Properties(model, fields, (options.key,))

    def key(self, node: Node, row: int | None = None) -> str:
        """The node's key. Raises `InvalidInput`."""
        return _key(getattr(node, self.property, None), self.property, row)

    def encode(self, node: Node, row: int | None = None) -> dict[str, Any]:
        """The node's properties, as far as they were passed."""
        return self._properties.encode(node, row)

    def decode(self, found: Mapping[str, Any]) -> N:
        """The node again. Raises `Corrupt` where the class refuses what is stored."""
        key = found.get(self.property)
        try:
            given = {self.property: key, **self._properties.decode(found)}
            node: N = self.model.__pydantic_validator__.validate_python(given)
        except (ValueError, TypeError, AttributeError) as error:
            raise self._properties.unfit(f"{self.label} {key!r}", error) from None
        return node


class EdgeCodec(Generic[E]):
    """Encode and decode the edges of one class."""

    def __init__(self, model: type[E]) -> None:
        options, fields = model.__kmp_edge__, edge_fields(model)
        assert options.name is not None
        assert options.source is not None
        assert options.target is not None
        self.model = model
        self.type: str = options.name
        self.source: NodeCodec[Node] = node_codec(options.source)
        self.target: NodeCodec[Node] = node_codec(options.target)
        self._properties = _Properties(model, fields, ("source", "target"))

    def ends(self, edge: Edge, row: int | None = None) -> tuple[str, str]:
        """The keys of both ends. Raises `InvalidInput`."""
        return (
            _key(getattr(edge, "source", None), "source", row),
            _key(getattr(edge, "target", None), "target", row),
        )

    def encode(self, edge: Edge, row: int | None = None) -> dict[str, Any]:
        """The edge's properties, as far as they were passed."""
        return self._properties.encode(edge, row)

    def decode(self, source: str, target: str, found: Mapping[str, Any]) -> E:
        """The edge again. Raises `Corrupt` where the class refuses what is stored."""
        try:
            given = {"source": source, "target": target, **self._properties.decode(found)}
            edge: E = self.model.__pydantic_validator__.validate_python(given)
        except (ValueError, TypeError, AttributeError) as error:
            raise self._properties.unfit(f"{self.type} from {source!r} to {target!r}", error) from None
        return edge


_nodes: WeakKeyDictionary[type[Node], NodeCodec[Any]] = WeakKeyDictionary()
_edges: WeakKeyDictionary[type[Edge], EdgeCodec[Any]] = WeakKeyDictionary()


def node_codec(model: type[N]) -> NodeCodec[N]:
    """The codec of a node class, made once. Raises `InvalidInput` for what is none."""
    given: object = model
    if not isinstance(given, type) or not issubclass(given, Node):
        raise InvalidInput("node", "must be a class derived from Node", example="Airport")
    if model not in _nodes:
        _complete(model)
        _nodes[model] = NodeCodec(model)
    return _nodes[model]


def edge_codec(model: type[E]) -> EdgeCodec[E]:
    """The codec of an edge class, made once. Raises `InvalidInput` for what is none."""
    given: object = model
    if not isinstance(given, type) or not issubclass(given, Edge):
        raise InvalidInput("via", "must be a class derived from Edge", example="Route")
    if model not in _edges:
        _complete(model)
        _edges[model] = EdgeCodec(model)
    return _edges[model]


def _complete(model: type[Node] | type[Edge]) -> None:
    # A class may name another that is defined below it; by its first use both are there.
    if not model.__pydantic_complete__:
        model.model_rebuild()


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


def _key(value: Any, field: str, row: int | None) -> str:
    # Short ASCII needs no more than this; what is anything else is looked at in full.
    if type(value) is str and 0 < len(value) < 128 and _quick_text(value):
        return value
    return check_key(value, field, row)


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
    return _DECODERS.get(kept_kind(field))


def _in_its_zone(moment: datetime) -> datetime:
    """The moment with a zone of Python's own instead of the driver's; the offset alone where none has the name."""
    offset, name = moment.utcoffset(), getattr(moment.tzinfo, "zone", None)
    if offset is None:
        return moment
    if name not in (None, "UTC"):
        with suppress(ZoneInfoNotFoundError):
            return moment.astimezone(ZoneInfo(name))
    return moment.astimezone(timezone(offset))


def _time(value: Any) -> datetime:
    native: datetime = value.to_native()
    return native.astimezone(UTC)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "datetime": _time,
    "date": lambda value: value.to_native(),
    "uuid": UUID,
}
