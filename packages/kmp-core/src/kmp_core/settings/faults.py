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
from kmp_core.settings.wording import bounds, is_written_by_hand, shown, words

if TYPE_CHECKING:
    from kmp_core.settings import Settings

__all__ = ["example_of", "is_secret", "validation_faults"]

_SECRET_WORDS = frozenset(("password", "passphrase", "secret", "token", "credential", "credentials", "dsn"))
_SHORTEST_SECRET = 3
_ANY = "any text"
_EXAMPLES: tuple[tuple[type, str], ...] = (
    (bool, "true"),
    (ByteSize, "64MiB"),
    (int, "10"),
    (float, "0.5"),
    (timedelta, "30s"),
    (Path, "/var/lib/kmp"),
    (ConnectionUrl, "sqlite:"),
    (SecretStr, _ANY),
    (SecretBytes, _ANY),
    (str, _ANY),
)


def validation_faults(
    settings_class: type[Settings], error: ValidationError, sources: Sources, arguments: Mapping[str, Any]
) -> list[Fault]:
    """One fault for each thing that pydantic found wrong."""
    secrets = tuple(_secret_texts(settings_class, sources, arguments))
    details = error.errors(include_url=False, include_input=False)
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
        return Fault(f"{prefix}*", _problem(detail, None, secrets, quotable=True))
    if field is None:
        return Fault(name, f"is no setting of {settings_class.__name__}{_meant(name, settings_class.model_fields)}")
    key = settings_class.key(name)
    found = sources.find(key)
    source = "argument" if name in arguments else found.source if found is not None else None
    problem = _problem(detail, field, secrets, quotable=not is_secret(name, field))
    return Fault(key.variable, problem, example_of(field), source)


def _problem(detail: ErrorDetails, field: FieldInfo | None, secrets: tuple[str, ...], *, quotable: bool) -> str:
    message = words(detail, field)
    # A custom validator of a secret field may quote a part of the secret, which no comparison would find.
    if any(secret in message for secret in secrets) or (not quotable and is_written_by_hand(detail)):
        return "is not accepted"
    return message


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
    """A value that the field accepts: the one it declares (`Field(examples=…)`), or one of its type.

    Where that may lie out of bounds, and for a text, its default.
    """
    if field.examples:
        return str(field.examples[0])
    if get_origin(field.annotation) is Literal:
        return str(get_args(field.annotation)[0])
    annotation = next((a for a in (get_args(field.annotation) or (field.annotation,)) if a is not type(None)), None)
    if not isinstance(annotation, type):
        return None
    if issubclass(annotation, Enum):
        return str(next(iter(annotation)).value)
    if isinstance(own := getattr(annotation, "example", None), str):
        return own
    return _default(annotation, field) or next((text for kind, text in _EXAMPLES if issubclass(annotation, kind)), None)


def _default(annotation: type, field: FieldInfo) -> str | None:
    default: Any = field.default
    if bounds(field) and isinstance(default, int | float | timedelta):
        return shown(ByteSize(default) if annotation is ByteSize else default, secret=False)  # type: ignore[arg-type]
    return default if annotation is str and isinstance(default, str) else None


def _meant(name: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""
