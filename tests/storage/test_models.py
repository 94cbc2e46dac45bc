"""What a model declares is checked when its class is defined, and told in one line."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, ClassVar, Generic, Literal, NewType, Optional, TypeVar
from uuid import UUID

import pytest
from pydantic import AwareDatetime, Field, NaiveDatetime, SecretStr, ValidationError

from kmp_core.errors import InvalidInput
from kmp_storage import Edge, Measurement, Node, key_of
from kmp_storage.fields import fields_of
from kmp_storage.models import series_fields

T = TypeVar("T")


class Airport(Node, label="Airport", key="code"):
    code: str
    name: str | None = None


class Route(Edge, type="ROUTE", source=Airport, target=Airport):
    miles: int | None = None


class Delay(Measurement, series="delays", tags=("origin",), unique=("flight",), retention="90d"):
    flight: str
    origin: str
    minutes: float | None


def measurement(fields: dict[str, Any], **options: Any) -> type[Measurement]:
    """Define a class as a `class` statement would, with options that no type checker would let pass."""
    namespace = {"__module__": __name__, "__annotations__": fields}
    return type(Measurement)("Wrong", (Measurement,), namespace, **options)


def node(fields: dict[str, Any], defaults: dict[str, Any], **options: Any) -> type[Node]:
    namespace = {"__module__": __name__, "__annotations__": fields, **defaults}
    return type(Node)("Wrong", (Node,), namespace, **options)


def edge(**options: Any) -> type[Edge]:
    return type(Edge)("Wrong", (Edge,), {"__module__": __name__, "__annotations__": {"miles": int}}, **options)


def test_options_are_kept_and_inherited():
    class Base(Measurement, tags=("origin",), retention="1h"):
        origin: str

    class Late(Base, series="late"):
        minutes: float

    class Later(Late, retention=timedelta(days=1)):
        gate: str | None = None

    assert Late.__kmp_series__.tags == ("origin",)
    assert Late.__kmp_series__.retention == timedelta(hours=1)
    assert (Later.__kmp_series__.series, Later.__kmp_series__.retention) == ("late", timedelta(days=1))
    assert Base.__kmp_series__.series is None
    with pytest.raises(InvalidInput, match="declares no series"):
        series_fields(Base)


def test_generic_bases_need_no_options():
    class Reading(Measurement, Generic[T], tags=("site",)):
        site: str
        value: T

    class Temperature(Reading[float], series="temperatures"):
        pass

    assert fields_of(Temperature)["value"].kind == "float"
    assert Temperature.__kmp_series__.tags == ("site",)
    with pytest.raises(InvalidInput, match="cannot be stored"):

        class Wrong(Reading[list[int]], series="wrong"):
            pass


def test_a_field_may_have_the_name_of_an_option():
    class Odd(Measurement, series="odd", tags=("series", "label"), unique=("unique",)):
        series: str
        label: str
        unique: int
        tags: int
        retention: float
        model_year: int

    class Thing(Node, label="Thing", key="key"):
        key: str
        label: str = ""
        type: str = ""

    assert Odd.__kmp_series__.series == "odd"
    assert key_of(Thing(key="k", label="l")) == "k"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sereis": "x"}, "Wrong: .*'sereis'; did you mean 'series'\\? For example class Wrong"),
        ({"series": "x", "tag": ("a",)}, "'tag'; did you mean 'tags'"),
        ({"series": "x", "tags": ("flihgt",)}, "'flihgt' is no field; did you mean 'flight'"),
        ({"series": "x", "unique": ("flihgt",)}, "'flihgt' is no field; did you mean 'flight'"),
        ({"series": "x", "tags": "flight"}, "Wrong, tags: must be a sequence"),
        ({"series": "x", "tags": ("flight", "flight")}, "names a field twice"),
        ({"series": "x", "tags": ("time",)}, "the time selects"),
        ({"series": "x", "tags": ("value",)}, "'value' is a float"),
        ({"series": "x", "unique": ("gate",)}, "must not be None"),
        ({"series": "x", "retention": "soon"}, "Wrong, retention: is not a duration"),
        ({"series": "x", "retention": 0}, "longer than nothing"),
        ({"series": 'x"; DROP TABLE series; --'}, "Wrong, series: must have"),
        ({"series": "x" * 49}, "Wrong, series: must have"),
        ({"series": "Delays"}, "Wrong, series: must have"),
        ({"series": "d\u0435lays"}, "Wrong, series: must have"),
        ({"series": "a\n"}, "Wrong, series: must have"),
        ({"series": ""}, "Wrong, series: must have"),
        ({"series": 3}, "Wrong, series: must have"),
    ],
)
def test_a_wrong_option_of_a_measurement_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(InvalidInput, match=message):
        measurement({"flight": str, "value": float, "gate": str | None}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lable": "X", "key": "code"}, "did you mean 'label'"),
        ({"label": "X", "key": "cod"}, "'cod' is no field; did you mean 'code'"),
        ({"label": "X"}, "declares no key"),
        ({"label": "X", "key": "size"}, "must be text"),
        ({"label": "X`) DETACH DELETE (n", "key": "code"}, "Wrong, label: must have"),
        ({"label": "X", "key": "name"}, "needs a default"),
    ],
)
def test_a_wrong_option_of_a_node_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(InvalidInput, match=message):
        node({"code": str, "name": str, "size": int}, {"name": "", "size": 0}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"typ": "X", "source": Airport, "target": Airport}, "did you mean 'type'"),
        ({"type": "X", "source": Airport}, "declares no target"),
        ({"type": "X", "source": "Airport", "target": Airport}, "Wrong, source: must be a Node class"),
        ({"type": "X", "source": Airport, "target": Node}, "Wrong, target: must be a Node class"),
        ({"type": "X-Y", "source": Airport, "target": Airport}, "Wrong, type: must have"),
    ],
)
def test_a_wrong_option_of_an_edge_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(InvalidInput, match=message):
        edge(**options)


class Text(Enum):
    A = "a"


class Number(IntEnum):
    A = 1


class Mixed(Enum):
    A = "a"
    B = 1


class Code(str):
    __slots__ = ()


UserId = NewType("UserId", str)


@pytest.mark.parametrize(
    ("annotation", "kind", "optional"),
    [
        (bool, "bool", False),
        (int | None, "int", True),
        (Optional[float], "float", True),  # noqa: UP045 - another spelling of users
        (Annotated[int, Field(gt=0)], "int", False),
        (Annotated[int, Field(gt=0)] | None, "int", True),
        (bytes, "bytes", False),
        (datetime, "datetime", False),
        (AwareDatetime, "datetime", False),
        (date, "date", False),
        (UUID, "uuid", False),
        (Text, "enum", False),
        (Number | None, "enum", True),
        (Literal["a", "b"], "str", False),
        (Literal[1, None], "int", True),
        (UserId, "str", False),
    ],
)
def test_supported_types(annotation: Any, kind: str, optional: bool):
    field = fields_of(measurement({"value": annotation}, series="x"))["value"]
    assert (field.kind, field.optional) == (kind, optional)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Decimal, "cents"),
        (timedelta, "seconds in a float"),
        (NaiveDatetime, "aware"),
        (SecretStr, "SecretStore"),
        (Any, "name the type"),
        (list[int], "fields of its own"),
        (dict[str, int], "fields of its own"),
        (Airport, "fields of its own"),
        (int | str, "one type"),
        (int | str | None, "one type"),
        (Mixed, "all text or all integers"),
        (Literal["a", 1], "all text or all integers"),
        (Literal[True], "all text or all integers"),
        (complex, "fields of its own"),
    ],
)
def test_a_type_that_cannot_be_stored_is_refused(annotation: Any, message: str):
    with pytest.raises(InvalidInput, match=message) as refused:
        measurement({"value": annotation}, series="x")
    assert refused.value.field == "Wrong.value"


@pytest.mark.parametrize("name", ["gr\u00f6sse", "x" * 64])
def test_a_field_name_that_databases_do_not_take_is_refused(name: str):
    with pytest.raises(InvalidInput, match="stored field's name"):
        measurement({name: int}, series="x")


def test_fields_that_differ_in_case_alone_are_refused():
    with pytest.raises(InvalidInput, match="case alone"):
        measurement({"gate": str, "Gate": str}, series="x")


def test_the_inherited_fields_keep_their_types():
    with pytest.raises(InvalidInput, match="stays a datetime"):
        measurement({"time": str}, series="x")
    with pytest.raises(InvalidInput, match="stays text"):
        type(Edge)(
            "Wrong",
            (Edge,),
            {"__module__": __name__, "__annotations__": {"source": int}},
            type="X",
            source=Airport,
            target=Airport,
        )


def test_extra_fields_would_be_lost_and_are_refused():
    with pytest.raises(InvalidInput, match="extra"):

        class Wrong(Measurement, series="x", extra="allow"):
            value: int


def test_a_class_that_names_a_later_one_is_checked_when_it_is_complete():
    class Early(Measurement, series="early"):
        value: Later

    assert not Early.__pydantic_complete__

    class Later(str):
        __slots__ = ()

        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            return handler(str)

    assert Early.model_rebuild()
    assert series_fields(Early)["value"].kind == "str"


def test_instances_are_frozen_aware_finite_and_strict_about_names():
    row = Delay(time=datetime(2013, 1, 1, tzinfo=UTC), flight="UA1", origin="JFK", minutes=None)
    with pytest.raises(ValidationError):
        row.minutes = 3.0  # type: ignore[misc]
    naive = row.time.replace(tzinfo=None)
    for change in ({"time": naive}, {"minutes": float("nan")}, {"gate": "B2"}):
        with pytest.raises(ValidationError):
            Delay(**{**row.model_dump(), **change})
    assert Route.__kmp_edge__.source is Airport
    with pytest.raises(ValidationError):
        Route(source="", target="LAX")


def test_reprs_are_short():
    row = Delay(time=datetime(2013, 1, 1, tzinfo=UTC), flight="UA1", origin="JFK", minutes=2.0)
    assert repr(row) == "Delay(time=2013-01-01T00:00:00+00:00, flight='UA1', origin='JFK', minutes=2.0)"
    assert repr(Route(source="JFK", target="LAX", miles=2475)) == "Route(JFK \u2192 LAX, miles=2475)"
    assert repr(Airport(code="JFK")) == "Airport(code='JFK', name=None)"


def test_a_node_without_a_class_of_its_own_has_no_key():
    class Base(Node):
        note: ClassVar[str] = "collects fields"

    with pytest.raises(InvalidInput, match="declares no key"):
        key_of(Base())
