"""Where settings come from, read once, so that one start of a service sees one state of the world.

In order, the first that has a value wins (arguments, before all of these, and defaults, after them, are pydantic's):

1. the environment: `KMP_STORAGE_TIMESCALE_POOL_SIZE=5`. An empty variable counts as not set.
2. an env file: the one named by `KMP_ENV_FILE`, else `.env` in the working directory. Values are taken as they are:
   `$` is not expanded, as in `docker run --env-file`.
3. mounted secrets: the directory named by `KMP_SECRETS_DIR`, one file per variable.
4. `[env.<environment>.settings.storage.timescale]` of `kmp.toml`.
5. `[settings.storage.timescale]` of `kmp.toml`.

A source that cannot be read is a fault among the others; it does not hide them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kmp_core.errors import ConfigurationError, Fault
from kmp_core.settings.files import UnreadableFile, expand, read_text_file
from kmp_core.settings.manifest import Manifest, find_manifest, read_manifest

__all__ = ["DEFAULT_ENVIRONMENT", "Found", "Key", "Sources", "current_sources"]

DEFAULT_ENVIRONMENT = "dev"


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: the path of its class, and its own name."""

    path: tuple[str, ...]
    name: str

    @property
    def variable(self) -> str:
        return "_".join(("KMP", *self.path, self.name)).upper()

    def within(self, table: str) -> str:
        return f"[{'.'.join((table, *self.path))}] {self.name}"


@dataclass(frozen=True, slots=True)
class Found:
    """A value as its source holds it, not yet validated, and the source in words."""

    value: Any
    source: str
    is_text: bool


class Layer(Protocol):
    """One source, once it is read."""

    def find(self, key: Key) -> Found | None: ...


@dataclass(frozen=True, slots=True)
class Variables:
    """Texts under the names of variables: the environment, an env file, or a directory of secrets."""

    values: Mapping[str, str]
    source: str

    def find(self, key: Key) -> Found | None:
        value = self.values.get(key.variable)
        return None if value is None else Found(value, self.source, is_text=True)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of `kmp.toml`."""

    values: Mapping[str, Any]
    file: Path
    name: str

    def find(self, key: Key) -> Found | None:
        table: Any = self.values
        for part in key.path:
            table = table.get(part) if isinstance(table, Mapping) else None
        if not isinstance(table, Mapping) or key.name not in table:
            return None
        return Found(table[key.name], f"{self.file} {key.within(self.name)}", is_text=False)


@dataclass(frozen=True, slots=True)
class Sources:
    """All sources at one moment. `faults` tells of those that could not be read."""

    layers: tuple[Layer, ...]
    faults: tuple[Fault, ...] = ()
    environment: str = DEFAULT_ENVIRONMENT
    manifest: Manifest | None = None

    def find(self, key: Key) -> Found | None:
        """The value that counts, or None where only the default is left."""
        return next((found for layer in self.layers if (found := layer.find(key)) is not None), None)

    @property
    def variables(self) -> dict[str, str]:
        """Every `KMP_…` variable that is set in any letter case, with the source that sets it."""
        layers = [layer for layer in self.layers if isinstance(layer, Variables)]
        return {name: layer.source for layer in reversed(layers) for name in layer.values}

    @property
    def names_something(self) -> bool:
        """Whether anything at all is set, so that there could be something misspelt."""
        return any(layer.values for layer in self.layers if isinstance(layer, Variables | Table))

    @classmethod
    def read(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        directory: Path | None = None,
        environment: str | None = None,
    ) -> Sources:
        """Read the environment and the files it points to; `environment`, as an argument, beats `KMP_ENVIRONMENT`."""
        return _Reading(os.environ if environ is None else environ, directory or Path(), environment).sources()

    @contextmanager
    def used(self) -> Iterator[Sources]:
        """Inside this block every settings class of this task loads from these sources."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)


_current: ContextVar[Sources | None] = ContextVar("kmp_settings_sources", default=None)


def current_sources() -> Sources:
    """The sources that `Sources.used` put in place, else the real ones, read now."""
    return _current.get() or Sources.read()


class _Reading:
    """Reads source after source and keeps what was wrong."""

    def __init__(self, environ: Mapping[str, str], directory: Path, environment: str | None) -> None:
        self.faults: list[Fault] = []
        self.directory = directory
        self.layers: list[Layer] = []
        if environment is not None:
            self.layers.append(Variables({"KMP_ENVIRONMENT": environment}, "argument"))
        self.layers.append(Variables(self._ours(environ), "environment"))

    def sources(self) -> Sources:
        self._read_env_file()
        self._read_secrets()
        manifest = self._read_manifest()
        if manifest is not None:
            base = dict(manifest.settings)
            if manifest.project is not None:
                base["project"] = manifest.project
            self.layers.append(Table(base, manifest.path, "settings"))
        environment = str(self._ask("environment") or DEFAULT_ENVIRONMENT)
        if manifest is not None and (overlay := manifest.overlay(environment)):
            table = Table(overlay, manifest.path, f"env.{environment}.settings")
            self.layers.insert(len(self.layers) - 1, table)
        return Sources(tuple(self.layers), tuple(self.faults), environment, manifest)

    def _ask(self, name: str) -> Any:
        key = Key((), name)
        return next((found.value for layer in self.layers if (found := layer.find(key)) is not None), None)

    def _ours(self, values: Mapping[str, str]) -> dict[str, str]:
        # Containers and compose files set variables to nothing when they mean "not set".
        ours = {name: value for name, value in values.items() if name[:4].upper() == "KMP_" and value != ""}
        for name in [name for name, value in ours.items() if not _is_unicode(value)]:
            del ours[name]
            self.faults.append(Fault(name, "is not UTF-8", "text in UTF-8"))
        return ours

    def _read_env_file(self) -> None:
        named = self._ask("env_file")
        path = expand(self.directory, named or ".env")
        if not named and not path.is_file():
            return
        text = self._read_text("KMP_ENV_FILE" if named else str(path), path)
        if text is not None:
            self.layers.append(Variables(self._ours(self._parse_env_file(path, text)), str(path)))

    def _parse_env_file(self, path: Path, text: str) -> dict[str, str]:
        from dotenv.parser import parse_stream

        values = {}
        for binding in parse_stream(io.StringIO(text)):
            if binding.error:
                blank = binding.original.string[: -len(binding.original.string.lstrip())].count("\n")
                problem = f"line {binding.original.line + blank} is not of the form NAME=value"
                self.faults.append(Fault(str(path), problem, "KMP_PROJECT=skyline"))
            elif binding.key is not None and binding.value is not None:
                values[binding.key] = binding.value
        return values

    def _read_secrets(self) -> None:
        named = self._ask("secrets_dir")
        if not named:
            return
        directory = expand(self.directory, named)
        try:
            names = sorted(path.name for path in directory.iterdir() if path.name.startswith("KMP_"))
        except (OSError, ValueError) as error:
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not a path"
            problem = f"{directory} cannot be listed ({reason})"
            self.faults.append(Fault("KMP_SECRETS_DIR", problem, "/run/secrets"))
            return
        texts = {name: self._read_text(name, directory / name) for name in names}
        values = {name: text.rstrip("\r\n") for name, text in texts.items() if text is not None}
        self.layers.append(Variables(self._ours(values), str(directory)))

    def _read_manifest(self) -> Manifest | None:
        path = find_manifest(self.directory, self._ask("manifest"))
        if path is None:
            return None
        try:
            return read_manifest(path)
        except ConfigurationError as error:
            self.faults.extend(error.faults)
            return None

    def _read_text(self, field: str, path: Path) -> str | None:
        try:
            return read_text_file(path)
        except UnreadableFile as error:
            self.faults.append(Fault(field, f"{path} {error.problem}", error.example))
            return None


def _is_unicode(text: str) -> bool:
    # Python hands over bytes of the environment that are not UTF-8 as lone surrogates.
    return not any("\ud800" <= character <= "\udfff" for character in text)
