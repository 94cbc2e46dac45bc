"""Where embedded stores keep their file, and the checks of arguments that they share."""

from __future__ import annotations

from pathlib import Path

from kmp_core.errors import ConfigurationError, Fault, InvalidInput
from kmp_core.project import Project
from kmp_core.sqlite import database_path

__all__ = ["embedded_path", "whole_number"]


def embedded_path(url: str, project: Project, directory: Path | None, name: str) -> Path | None:
    """A store's file: None in memory, and `.kmp/<project>/<name>.db` unless the URL or `directory` says else."""
    scheme = url.partition(":")[0]
    if scheme not in ("sqlite", "memory") or ":" not in url:
        raise ConfigurationError(Fault("url", "must begin with 'sqlite:' or 'memory:'", example="sqlite:"))
    return database_path(Path(".kmp") / project if directory is None else directory, url, name)


def whole_number(field: str, value: object, *, least: int, most: int = 2**63 - 1) -> int:
    """The value, where it is an integer in range. Raises `InvalidInput`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(field, f"must be a whole number, not {type(value).__name__}", example=str(least + 1))
    if not least <= value <= most:
        raise InvalidInput(field, f"must lie between {least} and {most}", example=str(least + 1))
    return value
