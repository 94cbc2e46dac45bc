"""Where embedded stores keep their file."""

from __future__ import annotations

from pathlib import Path

from kmp_core.errors import ConfigurationError, Fault
from kmp_core.project import Project
from kmp_core.sqlite import database_path

__all__ = ["embedded_path"]


def embedded_path(url: str, project: Project, directory: Path | None, name: str) -> Path | None:
    """A store's file: None in memory, and `.kmp/<project>/<name>.db` unless the URL or `directory` says else."""
    scheme = url.partition(":")[0]
    if scheme not in ("sqlite", "memory") or ":" not in url:
        raise ConfigurationError(Fault("url", "must begin with 'sqlite:' or 'memory:'", example="sqlite:"))
    return database_path(Path(".kmp") / project if directory is None else directory, url, name)
