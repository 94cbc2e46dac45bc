"""What you store, as pydantic models: measurements, and the nodes and edges of a graph.

    class Delay(Measurement, series="delays", tags=("origin",), unique=("flight",), retention="90d"):
        flight: str
        origin: str
        minutes: float | None

    class Airport(Node, label="Airport", key="code"):
        code: str
        name: str | None = None

    class Route(Edge, type="ROUTE", source=Airport, target=Airport):
        miles: int | None = None

    Route(source="JFK", target="LAX", miles=2475)

Options are class keywords. They are inherited, and may be left out on a base class that only collects fields. Their
declarations live in dunder class variables, so that a field may have any name, `series` and `label` included.
A wrong option, a misspelt one included, raises `InvalidInput` when the class is defined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from kmp_core.deadlines import duration
from kmp_core.errors import InvalidInput
from kmp_core.importing import declaration
from kmp_storage.fields import FieldType, did_you_mean, fields_of
from kmp_storage.options import (
    LABEL,
    SERIES,
    EdgeOptions,
    NodeOptions,
    SeriesOptions,
    check_config,
    check_name,
    check_selecting,
    field_names,
    refuse_unknown,
)

__all__ = ["Edge", "EdgeOptions", "Measurement", "Node", "NodeOptions", "SeriesOptions", "key_of"]


class _Stored(BaseModel):
    """The configuration that all stored models share."""

    # A field of the user's may be named `model_year`, so no namespace is protected.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True, protected_namespaces=()
    )

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, _Shown(value.isoformat()) if isinstance(value, datetime) else value


class Measurement(_Stored):
    """One row of a series: a time, and what was measured then.

    `series` names the series. `tags` are the fields that you select and group by. `unique` are the fields that, with
    the time, tell one row from another: the same row again is ignored, the same key with other values is a
    `Conflict`. Rows older than `retention` are deleted. Times are aware, whatever their zone. NaN and infinity are
    refused: a missing value is None. `kmp_storage.fields` lists the types that fields may have.
    """

    __kmp_series__: ClassVar[SeriesOptions] = SeriesOptions()

    time: AwareDatetime

    @declaration
    def __init_subclass__(
        cls,
        *,
        series: str | None = None,
        tags: Sequence[str] | None = None,
        unique: Sequence[str] | None = None,
        retention: str | timedelta | None = None,
        **unknown: Any,
    ) -> None:
        example = f'class {cls.__name__}(Measurement, series="delays")'
        refuse_unknown(cls, unknown, ("series", "tags", "unique", "retention"), example)
        super().__init_subclass__()
        options = cls.__kmp_series__
        if series is not None:
            check_name(
                f"{cls.__name__}, series", series, SERIES, "1 to 48 of a-z, 0-9 and '_', a letter first", "delays"
            )
            options = dataclasses.replace(options, series=series)
        if tags is not None:
            options = dataclasses.replace(options, tags=field_names(cls, "tags", tags))
        if unique is not None:
            options = dataclasses.replace(options, unique=field_names(cls, "unique", unique))
        if retention is not None:
            kept = duration(retention, field=f"{cls.__name__}, retention")
            if not kept:
                raise InvalidInput(f"{cls.__name__}, retention", "must be longer than nothing", example='"90d"')
            options = dataclasses.replace(options, retention=kept)
        cls.__kmp_series__ = options

    @classmethod
    @declaration
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        check_config(cls)
        if cls.__kmp_series__.series is not None and cls.__pydantic_complete__:
            series_fields(cls)


class Node(_Stored):
    """A thing in a graph, known by its class and its key.

    Every field but the key needs a default: a node may be known only because an edge leads to it. Merging changes only
    the fields that you passed, so `Airport(code="JFK")` never wipes what is known of JFK.
    """

    __kmp_node__: ClassVar[NodeOptions] = NodeOptions()

    @declaration
    def __init_subclass__(cls, *, label: str | None = None, key: str | None = None, **unknown: Any) -> None:
        refuse_unknown(cls, unknown, ("label", "key"), f'class {cls.__name__}(Node, label="Airport", key="code")')
        super().__init_subclass__()
        options = cls.__kmp_node__
        if label is not None:
            check_name(f"{cls.__name__}, label", label, LABEL, "1 to 48 letters, digits and '_'", "Airport")
            options = dataclasses.replace(options, label=label)
        if key is not None:
            options = dataclasses.replace(options, key=key)
        cls.__kmp_node__ = options

    @classmethod
    @declaration
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        check_config(cls)
        if cls.__kmp_node__.label is not None and cls.__pydantic_complete__:
            node_fields(cls)


class Edge(_Stored):
    """A connection from one node to another, known by its class and the keys of its two ends.

    `Route(source="JFK", target="LAX", miles=2475)`; merging it again changes only the fields that you passed.
    """

    __kmp_edge__: ClassVar[EdgeOptions] = EdgeOptions()

    source: str = Field(min_length=1)
    """The key of the node that it leads from."""
    target: str = Field(min_length=1)
    """The key of the node that it leads to."""

    @declaration
    def __init_subclass__(
        cls,
        *,
        type: str | None = None,  # noqa: A002 - the word that graph databases use
        source: type[Node] | None = None,
        target: type[Node] | None = None,
        **unknown: Any,
    ) -> None:
        example = f'class {cls.__name__}(Edge, type="ROUTE", source=Airport, target=Airport)'
        refuse_unknown(cls, unknown, ("type", "source", "target"), example)
        super().__init_subclass__()
        options = cls.__kmp_edge__
        if type is not None:
            check_name(f"{cls.__name__}, type", type, LABEL, "1 to 48 letters, digits and '_'", "ROUTE")
            options = dataclasses.replace(options, name=type)
        if source is not None:
            options = dataclasses.replace(options, source=_node_class(cls, "source", source))
        if target is not None:
            options = dataclasses.replace(options, target=_node_class(cls, "target", target))
        cls.__kmp_edge__ = options

    @classmethod
    @declaration
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        check_config(cls)
        if cls.__kmp_edge__.name is not None and cls.__pydantic_complete__:
            edge_fields(cls)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield None, _Shown(f"{self.source} → {self.target}")
        for name, value in super().__repr_args__():
            if name not in ("source", "target"):
                yield name, value


def key_of(node: Node) -> str:
    """The node's key, whatever its class names the field."""
    name = type(node).__kmp_node__.key
    if name is None:
        raise InvalidInput(
            type(node).__name__, "declares no key", example='class Airport(Node, label="Airport", key="code")'
        )
    return str(getattr(node, name))


def series_fields(model: type[Measurement]) -> dict[str, FieldType]:
    """For providers: the fields of a measurement, checked against its options."""
    options, name = model.__kmp_series__, model.__name__
    if options.series is None:
        raise InvalidInput(name, "declares no series", example=f'class {name}(Measurement, series="delays")')
    fields = fields_of(model)
    if fields["time"].kind != "datetime" or fields["time"].optional:
        raise InvalidInput(f"{name}.time", "is the time of the measurement and stays a datetime")
    for option in ("tags", "unique"):
        for field in getattr(options, option):
            check_selecting(model, option, field, fields)
    for field in options.unique:
        if fields[field].optional:
            raise InvalidInput(f"{name}.{field}", "is part of 'unique' and must not be None", example=f"{field}: str")
    return fields


def node_fields(model: type[Node]) -> dict[str, FieldType]:
    """For providers: the fields of a node, checked against its options."""
    options, name = model.__kmp_node__, model.__name__
    example = f'class {name}(Node, label="{name}", key="code")'
    if options.label is None:
        raise InvalidInput(name, "declares no label", example=example)
    if options.key is None:
        raise InvalidInput(name, "declares no key", example=example)
    fields = fields_of(model)
    key = fields.get(options.key)
    if key is None:
        raise InvalidInput(f"{name}, key", f"{options.key!r} is no field{did_you_mean(options.key, fields)}")
    if key.kind != "str" or key.optional:
        raise InvalidInput(f"{name}.{options.key}", "is the key and must be text", example=f"{options.key}: str")
    for field in fields.values():
        if field.required and field is not key:
            raise InvalidInput(
                f"{name}.{field.name}",
                "needs a default, because a node may be known only by an edge that leads to it",
                example=f"{field.name}: {field.python.__name__} | None = None",
            )
    return fields


def edge_fields(model: type[Edge]) -> dict[str, FieldType]:
    """For providers: the fields of an edge, checked against its options."""
    options, name = model.__kmp_edge__, model.__name__
    example = f'class {name}(Edge, type="ROUTE", source=Airport, target=Airport)'
    for option, declared in (("type", options.name), ("source", options.source), ("target", options.target)):
        if declared is None:
            raise InvalidInput(name, f"declares no {option}", example=example)
    fields = fields_of(model)
    for end in ("source", "target"):
        if fields[end].kind != "str" or fields[end].optional:
            raise InvalidInput(f"{name}.{end}", "is the key of a node and stays text")
    return fields


class _Shown(str):
    """Text that is its own repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _node_class(cls: type, option: str, value: object) -> type[Node]:
    if not isinstance(value, type) or not issubclass(value, Node) or value.__kmp_node__.label is None:
        raise InvalidInput(f"{cls.__name__}, {option}", "must be a Node class with a label", example="Airport")
    return value
