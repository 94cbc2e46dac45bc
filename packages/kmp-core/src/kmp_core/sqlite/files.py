"""SQLite files as KMP keeps them: where they lie, to whom they belong, and what is said when one cannot be used."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from kmp_core.errors import ConfigurationError, Corrupt, Fault, KmpError, PermissionDenied, Unavailable
from kmp_core.project import Project

__all__ = [
    "BUSY",
    "Owner",
    "Synchronous",
    "claim",
    "connect",
    "database_path",
    "local_path",
    "make_private_directory",
    "patiently",
    "primary",
    "refuse_strangers",
    "translate",
    "unusable",
]

Synchronous = Literal["full", "normal"]
"""`full` survives a power cut; `normal` survives a killed process, and may lose the last moments in a power cut."""

BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_APPLICATION_ID = 0x4B4D5031  # "KMP1", shown by `file`
_BUSY_SECONDS = 0.02
_WRITABLE = "a directory that this user may write, with room on its disk, in KMP_DIRECTORY or the URL"


def database_path(directory: Path, url: str, name: str) -> Path | None:
    """Where an embedded provider keeps its file.

    None for `memory:`, `<directory>/<name>.db` for `sqlite:`, else the URL's path, `%20` and the like decoded.
    Raises `ConfigurationError` for a URL that names a host.
    """
    if url.partition(":")[0] == "memory":
        return None
    return local_path(url) or directory / f"{name}.db"


def local_path(url: str) -> Path | None:
    """The path that a URL names on this machine, None where it names none.

    Raises `ConfigurationError` for a host: in `sqlite://data/x.db`, `data` would be the name of a machine.
    """
    scheme, _, rest = url.partition(":")
    if rest.startswith("//") and rest[2:3] not in ("", "/"):
        forms = f"{scheme}:///absolute/path or {scheme}:relative/path"
        raise ConfigurationError(Fault("url", "names a host before its path, and files are local", example=forms))
    path = unquote(rest.removeprefix("//"))
    return Path(path) if path else None


def make_private_directory(directory: Path) -> None:
    """Make it, and what is missing above it, with mode 0700.

    Raises `ConfigurationError` where nothing can be written there.
    """
    try:
        # `mkdir(parents=True)` gives the mode to the last one only.
        for missing in reversed([each for each in (directory, *directory.parents) if not each.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(exist_ok=True)  # refuses what is there and is no directory
    except OSError as error:
        problem = f"cannot be created ({os.strerror(error.errno or 0)})"
        raise ConfigurationError(Fault(str(directory), problem, example=_WRITABLE)) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigurationError(Fault(str(directory), "cannot be written", example=_WRITABLE))


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a file is, and what it is for."""

    project: Project
    capability: str


def connect(path: Path | None, synchronous: Synchronous, *, owner: Owner | None = None) -> sqlite3.Connection:
    """A connection with our pragmas. With `owner`, a stranger's file is refused before anything in it is changed."""
    connection = sqlite3.connect(
        ":memory:" if path is None else path,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        if owner is not None:
            refuse_strangers(connection, path, owner)
        for pragma in (
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            "foreign_keys = ON",
            "trusted_schema = OFF",
            "temp_store = MEMORY",
            "cache_size = -16384",
        ):
            patiently(connection, f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def refuse_strangers(connection: sqlite3.Connection, path: Path | None, owner: Owner) -> int:
    """Return the file's schema version, 0 for a new one, or refuse a file of another project or capability.

    All is read in one transaction, the caller's or one made here: a neighbour who claims a new file between two looks
    would otherwise make it look like a stranger's.
    """
    if connection.in_transaction:
        return _version_of_ours(connection, path, owner)
    patiently(connection, "BEGIN")
    try:
        return _version_of_ours(connection, path, owner)
    finally:
        connection.execute("ROLLBACK")


def _version_of_ours(connection: sqlite3.Connection, path: Path | None, owner: Owner) -> int:
    application = patiently(connection, "PRAGMA application_id")
    version = patiently(connection, "PRAGMA user_version")
    foreign = application not in (0, _APPLICATION_ID) or (
        application == 0 and (version or patiently(connection, "SELECT count(*) FROM sqlite_schema"))
    )
    if foreign:
        raise ConfigurationError(
            Fault(str(path), "belongs to another application and was left as it is", example="an empty directory")
        )
    if application == 0:
        return 0
    project = _owner(connection, path, "project")
    if project != owner.project:
        raise PermissionDenied(f"{path} belongs to another project and was left as it is", project=owner.project)
    capability = _owner(connection, path, "capability")
    if capability != owner.capability:
        problem = f"is a file of {capability}, not of {owner.capability}, and was left as it is"
        raise ConfigurationError(Fault(str(path), problem, example="a file for each capability; sqlite: chooses one"))
    assert isinstance(version, int)
    return version


def _owner(connection: sqlite3.Connection, path: Path | None, column: str) -> object:
    try:
        value = patiently(connection, f"SELECT {column} FROM kmp_owner")  # noqa: S608 - a name of ours
    except sqlite3.OperationalError as error:
        if primary(error) != sqlite3.SQLITE_ERROR:
            raise
        value = None
    if value is None:
        raise Corrupt(f"{path}: the table that names the owner is missing; restore a copy, or move the file away")
    return value


def claim(connection: sqlite3.Connection, path: Path | None, owner: Owner, migrations: Sequence[str]) -> None:
    """Inside a transaction: make a new file the owner's own, and bring the schema up to date."""
    version = refuse_strangers(connection, path, owner)
    if version > len(migrations):
        raise ConfigurationError(
            Fault(
                str(path),
                f"was written by a later version of KMP (schema {version}, this one knows {len(migrations)}); "
                "it was left as it is",
                example="an upgraded service, or another directory",
            )
        )
    if patiently(connection, "PRAGMA application_id") == 0:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute("CREATE TABLE kmp_owner (project TEXT NOT NULL, capability TEXT NOT NULL) STRICT")
        connection.execute("INSERT INTO kmp_owner VALUES (?, ?)", (owner.project, owner.capability))
    for number, script in enumerate(migrations[version:], start=version + 1):
        for statement in _statements(script):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")


def primary(error: sqlite3.Error) -> int:
    """The error's primary result code; 0 for one that Python's own module raised."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def patiently(connection: sqlite3.Connection, statement: str, seconds: float = 5.0) -> object:
    """Execute and return the first value, waiting while other processes hold the file.

    The switch to WAL needs the file for itself for a moment, and several processes may open it at once.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            row = connection.execute(statement).fetchone()
        except sqlite3.OperationalError as error:
            if primary(error) not in BUSY or time.monotonic() >= end:
                raise
            time.sleep(0.005)
        else:
            return None if row is None else row[0]


def unusable(error: sqlite3.Error, path: Path | None) -> ConfigurationError | None:
    """What opening says about a file that this user cannot use, where that is what `error` means."""
    problems = {
        sqlite3.SQLITE_READONLY: "cannot be written",
        sqlite3.SQLITE_PERM: "may not be accessed",
        sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    }
    problem = problems.get(primary(error))
    return None if problem is None else ConfigurationError(Fault(str(path), problem, example=_WRITABLE))


def translate(error: sqlite3.Error, path: Path | None) -> KmpError | None:
    """The error of ours that stands for SQLite's, by its code; None for a mistake in our own SQL."""
    code = primary(error)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Corrupt(
            f"{path} is damaged or no SQLite file; it was left as it is. Move it away, and restore a copy or begin anew"
        )
    problems = {
        sqlite3.SQLITE_FULL: "the disk is full; nothing was written",
        sqlite3.SQLITE_IOERR: "the disk reported an error or is full",
        sqlite3.SQLITE_READONLY: "the file cannot be written any more",
        sqlite3.SQLITE_CANTOPEN: "the file cannot be opened any more; see that its directory is there and has room",
        sqlite3.SQLITE_PERM: "the file may not be accessed any more",
        sqlite3.SQLITE_BUSY: "another process holds the file",
        sqlite3.SQLITE_LOCKED: "another process holds the file",
        sqlite3.SQLITE_NOMEM: "SQLite is out of memory",
    }
    return Unavailable(f"{path}: {problems[code]}", backend="sqlite") if code in problems else None


def _statements(script: str) -> list[str]:
    statements, pending = [], ""
    for part in script.split(";"):
        pending += part + ";"
        if sqlite3.complete_statement(pending):
            if pending.strip(" \n;"):
                statements.append(pending.strip())
            pending = ""
    return statements
