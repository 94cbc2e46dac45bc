"""Every setting of the installed packages: its names, its value, where that comes from, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ByteSize, SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kmp_core.capability import declared
from kmp_core.deadlines import Duration
from kmp_core.errors import ConfigurationError, Fault
from kmp_core.project import Environment, Project, ServiceName
from kmp_core.service.settings import Configuration, ServiceSettings, undecided
from kmp_core.settings import Settings
from kmp_core.settings.catalogue import broken_plugins, capabilities, import_capabilities, installed_classes
from kmp_core.settings.faults import example_of, is_secret
from kmp_core.settings.sources import Key, Sources
from kmp_core.settings.url import ConnectionUrl, redact_url

__all__ = ["Report", "Row", "Section", "report"]

MASK = "**********"
WRONG = "(wrong)"
NOT_SET = "(not set)"

_URL = "Where the capability's backend is; the scheme selects the provider. May hold credentials."
_DURATION = TypeAdapter(Duration)
_CONNECTION_URL = TypeAdapter(ConnectionUrl)
_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (ByteSize, "bytes"),
    (int, "integer"),
    (float, "number"),
    (timedelta, "duration"),
    (Path, "path"),
    (ConnectionUrl, "URL"),
    (SecretStr, "secret"),
    (SecretBytes, "secret"),
    (Project, "name"),
    (ServiceName, "name"),
    (Environment, "name"),
    (str, "text"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One setting. `value` and `default` are fit to be shown: secrets are masked, and so is what may be one."""

    variable: str
    key: str
    type: str
    default: str
    value: str
    source: str
    description: str
    example: str | None
    is_secret: bool


@dataclass(frozen=True, slots=True)
class Section:
    """The settings under one prefix."""

    prefix: str
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All settings, and all that is wrong with them."""

    sections: tuple[Section, ...]
    faults: tuple[Fault, ...]
    environment: str
    manifest: Path | None

    def under(self, prefix: str) -> Report:
        """The report of one prefix only, faults included, since they may concern it."""
        if not prefix:
            return self
        narrowed = (
            replace(section, rows=tuple(row for row in section.rows if f"{row.key}.".startswith(f"{prefix}.")))
            for section in self.sections
        )
        return replace(self, sections=tuple(section for section in narrowed if section.rows))


def report(sources: Sources) -> Report:
    """Look at everything that is installed, from one reading of the sources."""
    import_capabilities()
    sections, faults = [], list(sources.faults)
    with sources.used():
        for settings_class in installed_classes():
            section, wrong = _section(settings_class, sources)
            sections.append(section)
            faults += wrong
        faults += _url_faults(sources)
    sections.append(Section("", "Capabilities", tuple(_url_rows(sources))))
    manifest = None if sources.manifest is None else sources.manifest.path
    unique = tuple(dict.fromkeys((*faults, *broken_plugins())))
    return Report(tuple(sections), unique, sources.environment, manifest)


def _section(settings_class: type[Settings], sources: Sources) -> tuple[Section, tuple[Fault, ...]]:
    settings: Settings | None = None
    faults: tuple[Fault, ...] = ()
    try:
        settings = settings_class.load()
    except ConfigurationError as error:
        faults = error.faults
    wrong = {fault.field for fault in faults}
    rows = tuple(
        _row(settings_class.key(name), field, settings, sources=sources, wrong=wrong)
        for name, field in settings_class.model_fields.items()
    )
    title = (settings_class.__doc__ or settings_class.__name__).strip().partition("\n")[0]
    return Section(".".join(settings_class.key("").path), title, rows), faults


def _row(key: Key, field: FieldInfo, settings: Settings | None, *, sources: Sources, wrong: Iterable[str]) -> Row:
    secret = is_secret(key.name, field)
    default = field.get_default(call_default_factory=True)
    found = sources.find(key)
    if key.variable in wrong:
        value = WRONG
    elif settings is not None:
        value = _shown(getattr(settings, key.name), secret=secret)
    else:
        value = _shown(default if found is None else found.value, secret=secret)
    return Row(
        variable=key.variable,
        key=".".join((*key.path, key.name)),
        type=_type_of(field),
        default="(required)" if default is PydanticUndefined else _shown(default, secret=secret),
        value=value,
        source="default" if found is None else found.source,
        description=" ".join((field.description or "").split()),
        example=example_of(field),
        is_secret=secret,
    )


def _url_faults(sources: Sources) -> list[Fault]:
    try:
        settings = ServiceSettings.load()
    except ConfigurationError:
        settings = undecided(sources)  # its own faults are told already
    return Configuration(settings, sources).faults()


def _url_rows(sources: Sources) -> Iterator[Row]:
    defaults = {spec.name: spec.default for spec in declared()}
    for name in sorted({*capabilities(), *defaults}):
        key = Key(tuple(name.split(".")), "url")
        default, found = defaults.get(name, NOT_SET), sources.find(key)
        value = default if found is None else _url(found.value)
        source = "default" if found is None else found.source
        yield Row(key.variable, f"{name}.url", "URL", default, value, source, _URL, defaults.get(name), is_secret=True)


def _url(value: Any) -> str:
    # What is no URL may be anything, a password that went into the wrong variable included.
    try:
        return str(_CONNECTION_URL.validate_python(value))
    except ValidationError:
        return WRONG


def _shown(value: Any, *, secret: bool) -> str:
    if value is None or value is PydanticUndefined:
        return NOT_SET
    if isinstance(value, ConnectionUrl):
        return str(value)
    if secret or isinstance(value, SecretStr | SecretBytes):
        return MASK
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(_shown(item, secret=False) for item in value)
    return _plain(value.value if isinstance(value, Enum) else value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return str(_DURATION.dump_python(value, mode="json"))
    if isinstance(value, ByteSize):
        return _bytes(value)
    text = str(value)
    return redact_url(text) if "://" in text or "@" in text else text


def _bytes(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return f"{size}B"


def _type_of(field: FieldInfo) -> str:
    kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind is not type(None)]
    if get_origin(field.annotation) is Literal:
        return " or ".join(f"`{kind}`" for kind in kinds)
    origin = get_origin(field.annotation)
    if origin in (list, tuple, set, frozenset):
        return "list, `a,b` or JSON"
    kind = kinds[0]
    name = next((text for known, text in _TYPES if isinstance(kind, type) and issubclass(kind, known)), "JSON")
    return name + _bounds(field)


_BOUNDS = (("ge", "from"), ("gt", "more than"), ("le", "to"), ("lt", "less than"))


def _bounds(field: FieldInfo) -> str:
    limits = [
        f"{word} {_shown(ByteSize(limit) if _holds(field, ByteSize) else limit, secret=False)}"
        for attribute, word in _BOUNDS
        for constraint in field.metadata
        if (limit := getattr(constraint, attribute, None)) is not None
    ]
    return f", {' '.join(limits)}" if limits else ""


def _holds(field: FieldInfo, kind: type) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, kind)
