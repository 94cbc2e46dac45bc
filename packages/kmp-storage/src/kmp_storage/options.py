"""What a stored class may declare, and the checks of it: each error names the class, the option and what was meant."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from kmp_core.errors import InvalidInput
from kmp_storage.fields import FieldType, did_you_mean

if TYPE_CHECKING:
    from kmp_storage.models import Node

__all__ = [
    "LABEL",
    "SERIES",
    "EdgeOptions",
    "NodeOptions",
    "SeriesOptions",
    "check_config",
    "check_name",
    "check_selecting",
    "field_names",
    "refuse_unknown",
]

SERIES = re.compile(r"[a-z][a-z0-9_]{0,47}", re.ASCII)
LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,47}", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class SeriesOptions:
    """What a measurement declares: the series' name, what selects and groups, the key, and how long it is kept."""

    series: str | None = None
    tags: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()
    retention: timedelta | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node declares: its label, and the field that tells it from others of the label."""

    label: str | None = None
    key: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class EdgeOptions:
    """What an edge declares: its type's name, and the classes of its two ends."""

    name: str | None = None
    source: type[Node] | None = None
    target: type[Node] | None = None


def refuse_unknown(cls: type, unknown: dict[str, Any], known: tuple[str, ...], example: str) -> None:
    """Raise for a class keyword that is none."""
    for name in unknown:
        raise InvalidInput(cls.__name__, f"has no class keyword {name!r}{did_you_mean(name, known)}", example=example)


def check_name(where: str, value: object, pattern: re.Pattern[str], rule: str, example: str) -> None:
    """Raise for a name that could not stand in a statement of some backend."""
    # An allow-list, because backends take such names into statements where no parameter can stand.
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise InvalidInput(where, f"must have {rule}", example=f'"{example}"')


def field_names(cls: type, option: str, value: object) -> tuple[str, ...]:
    """A sequence of different names, as a tuple."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise InvalidInput(f"{cls.__name__}, {option}", "must be a sequence of field names", example='("origin",)')
    if len(set(value)) != len(value):
        raise InvalidInput(f"{cls.__name__}, {option}", "names a field twice")
    return tuple(value)


def check_selecting(model: type[BaseModel], option: str, field: str, fields: dict[str, FieldType]) -> None:
    """Raise for a field that cannot select, group or be part of a key."""
    where = f"{model.__name__}, {option}"
    if field not in fields:
        raise InvalidInput(where, f"{field!r} is no field{did_you_mean(field, fields)}")
    if field == "time":
        raise InvalidInput(where, "the time selects and is part of the key without being named")
    if fields[field].kind in ("float", "bytes"):
        raise InvalidInput(where, f"{field!r} is a {fields[field].kind}, which is no good to be selected by")


def check_config(model: type[BaseModel]) -> None:
    """Raise for a model that takes fields which it does not declare."""
    if model.model_config.get("extra") == "allow":
        raise InvalidInput(model.__name__, 'extra="allow" cannot be stored: only declared fields are')
