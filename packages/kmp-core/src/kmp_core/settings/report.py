"""Every setting of the installed packages: its names, its value, where that comes from, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ByteSize, SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kmp_core.capability import declared
from kmp_core.errors import ConfigurationError, Fault
from kmp_core.project import Environment, Project, ServiceName
from kmp_core.service.settings import Configuration, ServiceSettings, undecided
from kmp_core.settings import Settings
from kmp_core.settings.catalogue import broken_plugins, capabilities, import_capabilities, installed_classes
from kmp_core.settings.faults import example_of, is_secret
from kmp_core.settings.sources import Key, Sources
from kmp_core.settings.url import ConnectionUrl
from kmp_core.settings.wording import NOT_SET, bounds, shown

__all__ = ["Report", "Row", "Section", "report"]

WRONG = "(wrong)"

_URL = "Where the capability's backend is; the scheme selects the provider. May hold credentials."
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
    unique: dict[tuple[str, str], Fault] = {}
    for fault in (*faults, *broken_plugins()):  # several classes may tell the same, each with an example of its own
        unique.setdefault((fault.field, fault.problem), fault)
    return Report(tuple(sections), tuple(unique.values()), sources.environment, manifest)


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
        value = shown(getattr(settings, key.name), secret=secret)
    else:
        value = shown(default if found is None else found.value, secret=secret)
    return Row(
        variable=key.variable,
        key=".".join((*key.path, key.name)),
        type=_type_of(field),
        default="(required)" if default is PydanticUndefined else shown(default, secret=secret),
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
    configuration = Configuration(settings, sources)
    # A service asks for some of the capabilities, and is told when it does; whoever looks wants to know of all.
    return [*configuration.faults(), *configuration.unanswered()]


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


def _type_of(field: FieldInfo) -> str:
    kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind is not type(None)]
    if get_origin(field.annotation) is Literal:
        return " or ".join(f"`{kind}`" for kind in kinds)
    origin = get_origin(field.annotation)
    if origin in (list, tuple, set, frozenset):
        return "list, `a,b` or JSON"
    kind = kinds[0]
    name = next((text for known, text in _TYPES if isinstance(kind, type) and issubclass(kind, known)), "JSON")
    limits = bounds(field)
    return f"{name}, {limits}" if limits else name
