"""Find and read `kmp.toml`, the one file that says what a project is, so that every tool and service reads the same.

The nearest file upward from the working directory counts; `KMP_MANIFEST` names another one. This module knows the two
tables that hold settings (`[settings]`, and `[env.<environment>.settings]`, which goes over it) and `project`;
everything else belongs to the manifest and is left as it is, unless it looks like one of these, misspelt.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmp_core.errors import ConfigurationError, Fault
from kmp_core.settings.files import UnreadableFile, expand, read_text_file

__all__ = ["MANIFEST_NAME", "Manifest", "find_manifest", "read_manifest"]

MANIFEST_NAME = "kmp.toml"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that was read: its place, and its content as plain TOML values."""

    path: Path
    data: Mapping[str, Any]

    @property
    def project(self) -> str | None:
        """The project as it stands in the file, not yet validated, so that its fault can be told with the others."""
        return self.data.get("project")

    @property
    def settings(self) -> Mapping[str, Any]:
        """The table `[settings]`."""
        settings: Mapping[str, Any] = self.data.get("settings", {})
        return settings

    @property
    def environments(self) -> tuple[str, ...]:
        """The environments that have a table of their own."""
        return tuple(self.data.get("env", {}))

    def overlay(self, environment: str) -> Mapping[str, Any]:
        """The table `[env.<environment>.settings]`, empty where the file has none."""
        settings: Mapping[str, Any] = self.data.get("env", {}).get(environment, {}).get("settings", {})
        return settings


def find_manifest(start: Path, named: str | None = None) -> Path | None:
    """The manifest that counts in `start`: the one that is `named`, else the nearest upward, else None."""
    if named:
        return expand(start, named)
    try:
        start = Path(os.path.abspath(start))  # noqa: PTH100 - resolve() would leave the tree that the user sees
    except OSError:  # the working directory was removed
        return None
    candidates = (directory / MANIFEST_NAME for directory in (start, *start.parents))
    return next((path for path in candidates if os.path.lexists(path)), None)


def read_manifest(path: Path) -> Manifest:
    """Read and check the layout. Raises `ConfigurationError` that names the file, the line, and what would be right."""
    text = _read_text(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        end = f"at line {len(text.splitlines())}, the end of the file"
        problem = f"is not TOML: {error}".replace("at end of document", end)
        raise _wrong(path, problem, 'project = "skyline"') from None
    except RecursionError:
        raise _wrong(path, "is nested too deeply", 'project = "skyline"') from None
    faults = _layout_faults(path, data)
    if faults:
        raise ConfigurationError(*faults)
    return Manifest(path, data)


def _read_text(path: Path) -> str:
    try:
        return read_text_file(path)
    except UnreadableFile as error:
        raise _wrong(path, error.problem, error.example) from None


def _layout_faults(path: Path, data: Mapping[str, Any]) -> list[Fault]:
    faults = []
    if not isinstance(data.get("project", ""), str):
        faults.append(Fault("project", "must be text", 'project = "skyline"', str(path)))
    for name in ("settings", "env"):
        if not isinstance(data.get(name, {}), dict):
            faults.append(Fault(name, "must be a table", f"[{_EXAMPLES[name]}]", str(path)))
    environments = data.get("env", {})
    for name, table in environments.items() if isinstance(environments, dict) else ():
        if not isinstance(table, dict) or not isinstance(table.get("settings", {}), dict):
            faults.append(Fault(f"env.{name}", "must be a table", f"[env.{name}.settings.storage.cache]", str(path)))
    return faults + [fault for name in data if (fault := _misspelt(path, name)) is not None]


def _misspelt(path: Path, name: str) -> Fault | None:
    import difflib  # most starts have no use for it

    known = ("project", *_EXAMPLES)
    meant = [] if name in known else difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)
    if not meant:
        return None
    example = f"[{_EXAMPLES[meant[0]]}]" if meant[0] in _EXAMPLES else 'project = "skyline"'
    return Fault(name, f"is no key of a manifest; did you mean {meant[0]}?", example, str(path))


_EXAMPLES = {"settings": "settings.storage.cache", "env": "env.prod.settings.storage.cache"}


def _wrong(path: Path, problem: str, example: str) -> ConfigurationError:
    return ConfigurationError(Fault(str(path), problem, example))
