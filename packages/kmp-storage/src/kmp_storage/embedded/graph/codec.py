"""Between node and edge classes and what the graph's tables keep: a key or two ends, and properties as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from kmp_core.errors import Corrupt, InvalidInput
from kmp_storage.embedded.columns import decoder, encode_value
from kmp_storage.fields import FieldType
from kmp_storage.models import Edge, Node, edge_fields, node_fields

__all__ = ["EdgeCodec", "NodeCodec", "check_key", "edge_codec", "node_codec"]

N = TypeVar("N", bound=Node)
E = TypeVar("E", bound=Edge)
S = TypeVar("S", Node, Edge)

_LONGEST_KEY = 512
_KEY = FieldType("key", "str", str, optional=False, required=True)


def check_key(value: object, field: str = "key", row: int | None = None) -> str:
    """The key of a node, where it can be one. Raises `InvalidInput`."""
    if value is None:
        raise InvalidInput(field, "must not be None", example='"JFK"', row=row)
    key: str = encode_value(_KEY, value, where=field, row=row)
    if not 1 <= len(key) <= _LONGEST_KEY:
        raise InvalidInput(field, f"must have 1 to {_LONGEST_KEY} characters", example='"JFK"', row=row)
    return str(key)


class _Properties:
    """The fields of a class that are kept as properties, which is all but those that identify."""

    def __init__(
        self, model: type[Node] | type[Edge], fields: Mapping[str, FieldType], identify: tuple[str, ...]
    ) -> None:
        self._model = model
        self._fields = {name: field for name, field in fields.items() if name not in identify}
        self._decoders = {name: decode for name, field in self._fields.items() if (decode := decoder(field))}

    def encode(self, item: Node | Edge, row: int | None) -> dict[str, Any]:
        """What was passed of the item's fields. Raises `InvalidInput` naming row and field."""
        given: dict[str, Any] = {}
        for name, field in self._fields.items():
            if name not in item.model_fields_set:
                continue
            value = getattr(item, name)
            if value is None and not field.optional:
                raise InvalidInput(name, "must not be None", row=row)
            kept = encode_value(field, value, row=row)
            given[name] = base64.b64encode(kept).decode() if isinstance(kept, bytes) else kept
        return given

    def decode(self, text: str) -> dict[str, Any]:
        """The fields again; a property that the class does not know is left out."""
        found: dict[str, Any] = {}
        for name, value in json.loads(text).items():
            field = self._fields.get(name)
            if field is None:
                continue
            if value is not None and field.kind == "bytes":
                value = base64.b64decode(value)
            decode = self._decoders.get(name)
            found[name] = value if decode is None or value is None else decode(value)
        return found

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
        options = model.__kmp_node__
        fields = node_fields(model)
        assert options.label is not None
        assert options.key is not None
        self.model = model
        self.label: str = options.label
        self._key: str = options.key
        self._properties = _Properties(model, fields, (options.key,))

    def key(self, node: Node, row: int | None = None) -> str:
        """The node's key. Raises `InvalidInput`."""
        return check_key(getattr(node, self._key, None), self._key, row)

    def encode(self, node: Node, row: int | None = None) -> dict[str, Any]:
        """The node's properties, as far as they were passed."""
        return self._properties.encode(node, row)

    def decode(self, key: str, properties: str) -> N:
        """The node again. Raises `Corrupt` where the class refuses what is stored."""
        try:
            found: N = self.model.__pydantic_validator__.validate_python(
                {self._key: key, **self._properties.decode(properties)}
            )
        except ValueError as error:
            raise self._properties.unfit(f"{self.label} {key!r}", error) from None
        return found


class EdgeCodec(Generic[E]):
    """Encode and decode the edges of one class."""

    def __init__(self, model: type[E]) -> None:
        options = model.__kmp_edge__
        fields = edge_fields(model)
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
            check_key(getattr(edge, "source", None), "source", row),
            check_key(getattr(edge, "target", None), "target", row),
        )

    def encode(self, edge: Edge, row: int | None = None) -> dict[str, Any]:
        """The edge's properties, as far as they were passed."""
        return self._properties.encode(edge, row)

    def decode(self, source: str, target: str, properties: str) -> E:
        """The edge again. Raises `Corrupt` where the class refuses what is stored."""
        given = {"source": source, "target": target, **self._properties.decode(properties)}
        try:
            found: E = self.model.__pydantic_validator__.validate_python(given)
        except ValueError as error:
            raise self._properties.unfit(f"{self.type} from {source!r} to {target!r}", error) from None
        return found


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


def _complete(model: type[S]) -> None:
    # A class may name another that is defined below it; by its first use both are there.
    if not model.__pydantic_complete__:
        model.model_rebuild()
