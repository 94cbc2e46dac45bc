"""Find the secrets in a model: as JSON they are a mask, so what keeps models as JSON must refuse them."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

__all__ = ["secret_field"]

_SECRETS = (SecretStr, SecretBytes, Secret)


def secret_field(model: type[BaseModel]) -> str | None:
    """The dotted name of a field that holds a secret, at whatever depth; None where there is none."""
    model.model_rebuild(raise_errors=False)  # a class that names another which is defined below it
    return next(_found(model, model.__name__, set()), None)


def _found(annotation: Any, name: str, seen: set[type]) -> Iterator[str]:
    # Of `X | None`, `list[X]`, `Secret[X]` and `type Y = X`.
    parts = (*get_args(annotation), get_origin(annotation), getattr(annotation, "__value__", None))
    for part in parts:
        yield from _found(part, name, seen) if part is not None else ()
    if not isinstance(annotation, type) or annotation in seen:
        return
    if issubclass(annotation, _SECRETS):
        yield name
        return
    seen.add(annotation)
    for field, kind in _fields(annotation).items():
        yield from _found(kind, f"{name}.{field}", seen)


def _fields(annotation: type) -> Mapping[str, Any]:
    if issubclass(annotation, BaseModel):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    # Data classes, named tuples, and typed dictionaries of either origin.
    if is_dataclass(annotation) or hasattr(annotation, "_fields") or hasattr(annotation, "__total__"):
        return typing.get_type_hints(annotation)
    return {}
