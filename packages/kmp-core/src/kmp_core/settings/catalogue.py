"""Every setting that the installed packages declare, so that a misspelt one is noticed instead of ignored.

Packages announce their settings classes in the entry point group `kmp.settings`, under the class's prefix. A class is
imported only when a name has to be explained that its prefix fits, or that nothing else explains.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import Field

from kmp_core.capability import declared
from kmp_core.errors import Fault
from kmp_core.settings import Settings
from kmp_core.settings.sources import Key, Sources, Table

__all__ = [
    "GROUP",
    "SourceSettings",
    "broken_plugins",
    "capabilities",
    "import_capabilities",
    "installed_classes",
    "misspelt",
]

GROUP = "kmp.settings"

_SECRET = re.compile(r"KMP_SECRET_(?!DIR\Z)")  # read by EnvironmentSecrets; the exception is a likely slip


class SourceSettings(Settings, prefix=""):
    """Where all other settings are read from.

    These are read from the environment, and the last two from an env file as well; in `kmp.toml` they have no effect.
    """

    env_file: Path | None = Field(None, examples=["deploy/local.env"])
    """A file of lines `KMP_…=value`; without it `.env` in the working directory, where there is one."""

    secrets_dir: Path | None = Field(None, examples=["/run/secrets"])
    """A directory with one file per variable, as container platforms mount secrets."""

    manifest: Path | None = Field(None, examples=["deploy/kmp.toml"])
    """The project's `kmp.toml`; without it the nearest one, from the working directory upward."""


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


@cache
def capabilities() -> tuple[str, ...]:
    """The capabilities that some installed package provides, such as `storage.timeseries`."""
    groups = {group.removeprefix("kmp.") for group in entry_points().groups if group.startswith("kmp.")}
    return tuple(sorted(groups - {"settings"}))


def import_capabilities() -> None:
    """Import the modules that declare the capabilities, so that their defaults are known. What fails is left out."""
    known = {spec.name for spec in declared()}
    for name in capabilities():
        for entry in entry_points(group=f"kmp.{name}") if name not in known else ():
            with suppress(Exception):  # a stranger's module may raise anything
                entry.load()


@cache
def _load(entry: EntryPoint) -> type[Settings] | Fault:
    where = f"settings class {entry.value}" + (f" of {entry.dist.name}" if entry.dist else "")
    try:
        found = entry.load()
    except Exception as error:  # a stranger's module may raise anything, and must not disable the others
        return Fault(where, f"cannot be imported ({type(error).__name__})", f"python -c 'import {entry.module}'")
    if not (isinstance(found, type) and issubclass(found, Settings)):
        return Fault(where, "is not a subclass of kmp_core.settings.Settings", "kmp_storage.embedded:CacheSettings")
    return found


def installed_classes() -> tuple[type[Settings], ...]:
    """The settings classes of all installed packages, the core's first."""
    from kmp_core.service.settings import ServiceSettings

    loaded = (_load(entry) for entry in sorted(_entry_points(), key=lambda entry: entry.name))
    others = (one for one in loaded if not isinstance(one, Fault))
    return tuple(dict.fromkeys((ServiceSettings, SourceSettings, *others)))


def broken_plugins() -> tuple[Fault, ...]:
    """Announced classes that cannot be loaded; the others are not touched by it."""
    return tuple(one for one in map(_load, _entry_points()) if isinstance(one, Fault))


def misspelt(sources: Sources, settings_class: type[Settings]) -> list[Fault]:
    """Names that are set, that nothing reads, and that resemble a setting of `settings_class`.

    The service's own class stands for everything that is installed.
    """
    own = list(_keys((settings_class,)))
    variables = sources.variables.keys() - {key.variable for key in own}
    entries = list(_table_keys(sources, {key.variable for key in own}))
    whole = settings_class.key("").path == ()
    if not whole:
        prefix = settings_class.key("").variable
        variables = {name for name in variables if _resembling(name.upper(), own, prefix)}
        entries = [
            (key, table) for key, table in entries if _resembling(key.variable, own, prefix) or _tables_below(key, own)
        ]
    unknown = sorted(name for name in variables if not _SECRET.match(name) and not _explained(name))
    strange = [(key, table) for key, table in entries if not _explained(key.variable)]
    if not unknown and not strange:
        return []
    known = [*_keys(installed_classes()), *_capability_keys()] if whole else own
    return [*_variable_faults(unknown, sources, known), *_table_faults(strange, known)]


def _variable_faults(unknown: Iterable[str], sources: Sources, known: list[Key]) -> Iterator[Fault]:
    for name in unknown:
        meant = _closest(name.upper(), known)
        if meant is not None:
            yield Fault(name, f"is no setting; did you mean {meant.variable}?", source=sources.variables[name])


def _table_faults(strange: Iterable[tuple[Key, Table]], known: list[Key]) -> Iterator[Fault]:
    for key, table in strange:
        name = key.within(table.name)
        if below := _tables_below(key, known):
            yield Fault(name, "must be a table", f"[{'.'.join((table.name, *below))}]", str(table.file))
            continue
        meant = _closest(key.variable, known)
        if meant is not None:
            yield Fault(name, f"is no setting; did you mean {meant.within(table.name)}?", source=str(table.file))


def _tables_below(key: Key, known: Iterable[Key]) -> tuple[str, ...]:
    """The path of the first class, if any, whose settings stand in the table of this name or in one below it."""
    path = (*key.path, key.name)
    return min((one.path for one in known if one.path[: len(path)] == path), default=())


def _explained(variable: str) -> bool:
    from kmp_core.service.settings import ServiceSettings

    if variable in {key.variable for key in (*_keys((ServiceSettings, SourceSettings)), *_capability_keys())}:
        return True
    for entry in _entry_points():
        if variable.startswith(Key(tuple(entry.name.split(".")), "").variable):
            loaded = _load(entry)
            if isinstance(loaded, Fault) or variable in {key.variable for key in _keys((loaded,))}:
                return True
    # A class may be announced under another name than its prefix.
    return variable in {key.variable for key in _keys(installed_classes())}


def _closest(variable: str, known: Iterable[Key]) -> Key | None:
    by_variable = {key.variable: key for key in known}
    if variable in by_variable:  # written in other letter case, or below another table
        return by_variable[variable]
    if f"{variable}_URL" in by_variable:
        return by_variable[f"{variable}_URL"]
    prefixes = sorted({key.variable.removesuffix(key.name.upper()) for key in by_variable.values()}, key=len)
    for prefix in reversed(prefixes):
        inside = [key for key in by_variable.values() if key.variable.removesuffix(key.name.upper()) == prefix]
        if variable.startswith(prefix) and (found := _resembling(variable, inside, prefix)) is not None:
            return found
    close = difflib.get_close_matches(variable, by_variable, n=1, cutoff=0.9)
    return by_variable[close[0]] if close else None


def _resembling(variable: str, keys: list[Key], prefix: str) -> Key | None:
    """The key of one class that the variable resembles, by its own name or with nearly the prefix of the class."""
    if variable.startswith(prefix):
        rest = variable.removeprefix(prefix)
        names = {key.name.upper(): key for key in keys}
        shortened = [name for name in names if len(rest) >= 3 and name.startswith(rest)]
        close = difflib.get_close_matches(rest, names, n=1, cutoff=0.75) or shortened
        return names[close[0]] if close else None
    by_variable = {key.variable: key for key in keys}
    close = difflib.get_close_matches(variable, by_variable, n=1, cutoff=0.9)
    return by_variable[close[0]] if close else None


def _keys(classes: Iterable[type[Settings]]) -> Iterator[Key]:
    return (one.key(name) for one in classes for name in one.model_fields)


def _capability_keys() -> Iterator[Key]:
    return (Key(tuple(name.split(".")), "url") for name in capabilities())


def _table_keys(sources: Sources, known: set[str]) -> Iterator[tuple[Key, Table]]:
    for layer in sources.layers:
        if isinstance(layer, Table):
            for key in _walk(layer.values, (), known):
                yield key, layer


def _walk(table: Mapping[str, Any], path: tuple[str, ...], known: set[str]) -> Iterator[Key]:
    for name, value in table.items():
        key = Key(path, name)
        if key.variable in known:
            continue
        if isinstance(value, Mapping):  # a table below, or a setting that is a table itself
            yield from _walk(value, (*path, name), known)
        else:
            yield key
