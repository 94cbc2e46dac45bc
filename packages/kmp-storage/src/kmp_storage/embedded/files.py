"""Where embedded stores keep their file, and the checks of arguments that they share."""

from __future__ import annotations

from pathlib import Path

from kmp_core.errors import ConfigurationError, Fault, InvalidInput
from kmp_core.project import Project
from kmp_core.sqlite import Database, database_path

__all__ = ["embedded_path", "refuse_other_contents", "whole_number"]


def embedded_path(url: str, project: Project, directory: Path | None, name: str) -> Path | None:
    """A store's file: None in memory, and `.kmp/<project>/<name>.db` unless the URL or `directory` says else."""
    scheme = url.partition(":")[0]
    if scheme not in ("sqlite", "memory") or ":" not in url:
        raise ConfigurationError(Fault("url", "must begin with 'sqlite:' or 'memory:'", example="sqlite:"))
    return database_path(Path(".kmp") / project if directory is None else directory, url, name)


async def refuse_other_contents(database: Database, table: str) -> None:
    """Raise `ConfigurationError` where the file is another capability's, which a URL may name by mistake."""
    sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?"
    (count,) = await database.read(lambda connection: connection.execute(sql, (table,)).fetchone())
    if not count:
        raise ConfigurationError(
            Fault(str(database.path), "belongs to another capability", example="sqlite: (each has its own file)")
        )


def whole_number(field: str, value: object, *, least: int, most: int = 2**63 - 1) -> int:
    """The value, where it is an integer in range. Raises `InvalidInput`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(field, f"must be a whole number, not {type(value).__name__}", example=str(least + 1))
    if not least <= value <= most:
        raise InvalidInput(field, f"must lie between {least} and {most}", example=str(least + 1))
    return value
