"""What is wrong with a configuration, said so that it can be put right and without ever showing a value.

A pydantic error holds its inputs, and a message written by a validator may quote one. So a message is taken over only
when no secret of the class occurs in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ByteSize, Secret, SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kmp_core.errors import Fault
from kmp_core.settings.sources import Sources
from kmp_core.settings.url import ConnectionUrl

if TYPE_CHECKING:
    from kmp_core.settings import Settings

__all__ = ["example_of", "is_secret", "validation_faults"]

_SECRET_WORDS = frozenset(("password", "passphrase", "secret", "token", "credential", "credentials", "dsn"))
_SHORTEST_SECRET = 3
_EXAMPLES: tuple[tuple[type, str], ...] = (
    (bool, "true"),
    (ByteSize, "64MiB"),
    (int, "10"),
    (float, "0.5"),
    (timedelta, "30s"),
    (Path, "/var/lib/kmp"),
    (ConnectionUrl, "sqlite:"),
)


def validation_faults(
    settings_class: type[Settings], error: ValidationError, sources: Sources, arguments: Mapping[str, Any]
) -> list[Fault]:
    """One fault for each thing that pydantic found wrong."""
    secrets = tuple(_secret_texts(settings_class, sources, arguments))
    details = error.errors(include_url=False, include_input=False, include_context=False)
    return list(dict.fromkeys(_fault(settings_class, one, sources, arguments, secrets) for one in details))


def _fault(
    settings_class: type[Settings],
    detail: ErrorDetails,
    sources: Sources,
    arguments: Mapping[str, Any],
    secrets: tuple[str, ...],
) -> Fault:
    name = str(detail["loc"][0]) if detail["loc"] else None
    field = settings_class.model_fields.get(name) if name else None
    if name is None:
        prefix = settings_class.key("").variable
        return Fault(f"{prefix}*", _problem(detail, secrets, quotable=True))
    if field is None:
        return Fault(name, f"is no setting of {settings_class.__name__}{_meant(name, settings_class.model_fields)}")
    key = settings_class.key(name)
    found = sources.find(key)
    source = "argument" if name in arguments else found.source if found is not None else None
    problem = (
        "is missing" if detail["type"] == "missing" else _problem(detail, secrets, quotable=not is_secret(name, field))
    )
    return Fault(key.variable, problem, example_of(field), source)


def _problem(detail: ErrorDetails, secrets: tuple[str, ...], *, quotable: bool) -> str:
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    # A custom validator of a secret field may quote a part of the secret, which no comparison would find.
    if any(secret in message for secret in secrets) or (not quotable and detail["type"] in _WRITTEN_BY_HAND):
        return "is not accepted"
    return message.partition("; for example ")[0].replace("Input should", "must", 1)


_WRITTEN_BY_HAND = ("value_error", "assertion_error")


def _secret_texts(settings_class: type[Settings], sources: Sources, arguments: Mapping[str, Any]) -> Iterable[str]:
    for name, field in settings_class.model_fields.items():
        if is_secret(name, field):
            found = sources.find(settings_class.key(name))
            for value in (arguments.get(name), None if found is None else found.value):
                yield from (text for text in _texts(value) if len(text) >= _SHORTEST_SECRET)


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, SecretStr | SecretBytes | Secret):
        value = value.get_secret_value()
    if isinstance(value, ConnectionUrl):
        value = value.reveal()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _texts(item)
    elif value is not None:
        yield str(value)


def is_secret(name: str, field: FieldInfo) -> bool:
    """Whether a value of the field must never be shown: by its type, and to be safe by its name."""
    if _mentions(field.annotation, (SecretStr, SecretBytes, Secret, ConnectionUrl)):
        return True
    words = frozenset(name.split("_"))
    named = bool(words & _SECRET_WORDS) or (name.endswith("_key") and "public" not in words)
    return named and _mentions(field.annotation, (str, bytes))


def _mentions(annotation: Any, types: tuple[type, ...]) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, types):
        return True
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, types):
        return True
    return origin is not Literal and any(_mentions(argument, types) for argument in get_args(annotation))


def example_of(field: FieldInfo) -> str | None:
    """A value that the field accepts: the one it declares (`Field(examples=…)`), else its default, else by type."""
    if field.examples:
        return str(field.examples[0])
    annotation = next((a for a in (get_args(field.annotation) or (field.annotation,)) if a is not type(None)), None)
    if get_origin(field.annotation) is Literal:
        return str(get_args(field.annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return str(next(iter(annotation)).value)
    if isinstance(own := getattr(annotation, "example", None), str):
        return own
    return next(
        (text for kind, text in _EXAMPLES if isinstance(annotation, type) and issubclass(annotation, kind)), None
    )


def _meant(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""
