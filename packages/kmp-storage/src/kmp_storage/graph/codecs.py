"""Between node and edge classes and what a store keeps of them: a key or two ends, and properties in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from kmp_core.errors import Corrupt, InvalidInput
from kmp_storage.fields import FieldType
from kmp_storage.graph.node_keys import check_node_key
from kmp_storage.models import Edge, Node, edge_fields, node_fields

__all__ = ["Codecs", "EdgeCodec", "NodeCodec", "Properties"]

N = TypeVar("N", bound=Node)
E = TypeVar("E", bound=Edge)


class Properties(ABC):
    """The fields of a class but those that identify; how they are kept is a store's own."""

    def __init__(
        self, model: type[Node] | type[Edge], fields: Mapping[str, FieldType], identify: tuple[str, ...]
    ) -> None:
        self.model = model
        self.fields = {name: field for name, field in fields.items() if name not in identify}
        self.unset = frozenset(name for name in self.fields if model.model_fields[name].default is None)
        """The fields that are None where nothing is known of them: to pass None of such a one adds nothing."""

    @abstractmethod
    def encode(self, item: Node | Edge, row: int | None) -> dict[str, Any]:
        """What was passed of the item's fields. Raises `InvalidInput` naming row and field."""

    @abstractmethod
    def decode(self, stored: Any) -> dict[str, Any]:
        """The fields again; a property that the class does not know is left out."""

    def unfit(self, what: str, error: Exception) -> Corrupt:
        """The error for stored properties that the class refuses."""
        problem = str(error)
        if isinstance(error, ValidationError):
            fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
            problem = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        return Corrupt(
            f"A stored {what} does not fit {self.model.__name__} (any more): {problem}. Loosen the class, or merge "
            "what is stored anew"
        )


class NodeCodec(Generic[N]):
    """Encode and decode the nodes of one class."""

    def __init__(self, model: type[N], properties: type[Properties]) -> None:
        options = model.__kmp_node__
        assert options.label is not None
        assert options.key is not None
        self.model = model
        self.label: str = options.label
        self.property: str = options.key
        self._properties = properties(model, node_fields(model), (options.key,))
        self.unset = self._properties.unset

    def key(self, node: Node, row: int | None = None) -> str:
        """The node's key. Raises `InvalidInput`."""
        return check_node_key(getattr(node, self.property, None), self.property, row)

    def encode(self, node: Node, row: int | None = None) -> dict[str, Any]:
        """The node's properties, as far as they were passed."""
        return self._properties.encode(node, row)

    def decode(self, key: str, stored: Any) -> N:
        """The node again. Raises `Corrupt` where the class refuses what is stored."""
        try:
            given = {self.property: key, **self._properties.decode(stored)}
            node: N = self.model.__pydantic_validator__.validate_python(given)
        except (ValueError, TypeError, AttributeError) as error:
            raise self._properties.unfit(f"{self.label} {key!r}", error) from None
        return node


class EdgeCodec(Generic[E]):
    """Encode and decode the edges of one class."""

    def __init__(self, model: type[E], properties: type[Properties], codecs: Codecs) -> None:
        options = model.__kmp_edge__
        assert options.name is not None
        assert options.source is not None
        assert options.target is not None
        self.model = model
        self.type: str = options.name
        self.source: NodeCodec[Node] = codecs.node(options.source)
        self.target: NodeCodec[Node] = codecs.node(options.target)
        self._properties = properties(model, edge_fields(model), ("source", "target"))
        self.unset = self._properties.unset

    def ends(self, edge: Edge, row: int | None = None) -> tuple[str, str]:
        """The keys of both ends. Raises `InvalidInput`."""
        return (
            check_node_key(getattr(edge, "source", None), "source", row),
            check_node_key(getattr(edge, "target", None), "target", row),
        )

    def encode(self, edge: Edge, row: int | None = None) -> dict[str, Any]:
        """The edge's properties, as far as they were passed."""
        return self._properties.encode(edge, row)

    def decode(self, source: str, target: str, stored: Any) -> E:
        """The edge again. Raises `Corrupt` where the class refuses what is stored."""
        try:
            given = {"source": source, "target": target, **self._properties.decode(stored)}
            edge: E = self.model.__pydantic_validator__.validate_python(given)
        except (ValueError, TypeError, AttributeError) as error:
            raise self._properties.unfit(f"{self.type} from {source!r} to {target!r}", error) from None
        return edge


class Codecs:
    """The codecs of one kind of store, each made once."""

    def __init__(self, properties: type[Properties]) -> None:
        self._properties = properties
        self._nodes: WeakKeyDictionary[type[Node], NodeCodec[Any]] = WeakKeyDictionary()
        self._edges: WeakKeyDictionary[type[Edge], EdgeCodec[Any]] = WeakKeyDictionary()

    def node(self, model: type[N]) -> NodeCodec[N]:
        """The codec of a node class. Raises `InvalidInput` for what is none."""
        given: object = model
        if not isinstance(given, type) or not issubclass(given, Node):
            raise InvalidInput("node", "must be a class derived from Node", example="Airport")
        if model not in self._nodes:
            _complete(model)
            self._nodes[model] = NodeCodec(model, self._properties)
        return self._nodes[model]

    def edge(self, model: type[E]) -> EdgeCodec[E]:
        """The codec of an edge class. Raises `InvalidInput` for what is none."""
        given: object = model
        if not isinstance(given, type) or not issubclass(given, Edge):
            raise InvalidInput("via", "must be a class derived from Edge", example="Route")
        if model not in self._edges:
            _complete(model)
            self._edges[model] = EdgeCodec(model, self._properties, self)
        return self._edges[model]


def _complete(model: type[Node] | type[Edge]) -> None:
    # A class may name another that is defined below it; by its first use both are there.
    if not model.__pydantic_complete__:
        model.model_rebuild()
