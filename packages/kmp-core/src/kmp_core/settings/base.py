"""Typed settings: declare a class, and its fields can be set by arguments, variables, files and `kmp.toml` alike.

    class TimescaleSettings(Settings, prefix="storage.timescale"):
        pool_size: int = Field(10, ge=1, le=1000)
        \"\"\"Connections that one process keeps open at most.\"\"\"

    settings = TimescaleSettings.load()          # KMP_STORAGE_TIMESCALE_POOL_SIZE, or [settings.storage.timescale]

The prefix is the path. `kmp_core.settings.sources` lists the sources in their order. Whatever is wrong is reported at
once, in one `ConfigurationError`, that never shows a value.
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar, Never, Self

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from kmp_core.errors import ConfigurationError, Fault, InvalidInput
from kmp_core.importing import declaration
from kmp_core.settings.sources import Found, Key, Sources, current_sources

__all__ = ["Settings", "load_all"]

_PREFIX = re.compile(r"(?:[a-z][a-z0-9]*(?:\.[a-z][a-z0-9]*)*)?", re.ASCII)


class Settings(BaseSettings):
    """Base of every settings class. Instances are frozen; every field needs a default or becomes required.

    Announce the class, so that `python -m kmp_core settings` and "did you mean" know it:

        [project.entry-points."kmp.settings"]
        "storage.timescale" = "kmp_storage.timescale:TimescaleSettings"
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )
    __kmp_path__: ClassVar[tuple[str, ...] | None] = None

    @declaration
    def __init_subclass__(cls, *, prefix: str | None = None, **misspelt: Never) -> None:
        for keyword in misspelt:
            raise InvalidInput(keyword, "is no keyword of a settings class", example='prefix="storage.cache"')
        if prefix is not None:
            cls.__kmp_path__ = _path(prefix)
        super().__init_subclass__()

    @classmethod
    @declaration
    def __pydantic_init_subclass__(cls, *, prefix: str | None = None, **_: Never) -> None:
        if cls.__kmp_path__ is None:
            raise InvalidInput("prefix", f"is missing in class {cls.__name__}", example='prefix="storage.cache"')
        # For tools that know pydantic-settings; our own sources build the names themselves.
        cls.model_config["env_prefix"] = "_".join(("KMP", *cls.__kmp_path__, "")).upper()

    def __init__(self, **arguments: Any) -> None:
        from kmp_core.settings.faults import validation_faults

        sources = current_sources()
        faults = list(sources.faults)
        with sources.used():
            try:
                super().__init__(**arguments)
            except ValidationError as error:
                faults += validation_faults(type(self), error, sources, arguments)
        faults += _misspelt(sources, type(self))
        # Raised outside the handler: as its context, pydantic's error would carry every input along.
        if faults:
            raise ConfigurationError(*faults)

    @classmethod
    def load(cls, **arguments: Any) -> Self:
        """Read all sources; arguments beat them. Raises `ConfigurationError` with every fault, and never a value."""
        return cls(**arguments)

    @classmethod
    def key(cls, field: str) -> Key:
        """The names under which a field can be set."""
        return Key(cls.__kmp_path__ or (), field)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _OurSource(settings_cls)


class _OurSource(PydanticBaseSettingsSource):
    """All of our sources as one source of pydantic-settings."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        key = Key(getattr(self.settings_cls, "__kmp_path__", None) or (), field_name)
        found = current_sources().find(key)
        if found is None:
            return None, field_name, False
        return _decode(found, self.field_is_complex(field)), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


def load_all(*classes: type[Settings], sources: Sources | None = None) -> dict[type[Settings], Settings]:
    """Load several classes from one reading of the sources, and report the faults of all of them at once."""
    loaded: dict[type[Settings], Settings] = {}
    faults: dict[Fault, None] = {}
    with (sources or current_sources()).used():
        for settings_class in classes:
            try:
                loaded[settings_class] = settings_class.load()
            except ConfigurationError as error:
                faults.update(dict.fromkeys(error.faults))
    if faults:
        raise ConfigurationError(*faults)
    return loaded


def _decode(found: Found, is_complex: bool) -> Any:
    # A list in a variable is written `a,b` or as JSON. What is neither goes on as it is, and validation refuses it.
    if not (found.is_text and is_complex):
        return found.value
    text: str = found.value.strip()
    if not text.startswith(("[", "{")):
        return [part.strip() for part in text.split(",")]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _misspelt(sources: Sources, settings_class: type[Settings]) -> list[Fault]:
    if not sources.names_something:
        return []
    from kmp_core.settings.catalogue import misspelt

    return misspelt(sources, settings_class)


def _path(prefix: str) -> tuple[str, ...]:
    if _PREFIX.fullmatch(prefix) is None:
        raise InvalidInput("prefix", "must be lower-case words joined by dots", example='"storage.cache"')
    return tuple(prefix.split(".")) if prefix else ()
