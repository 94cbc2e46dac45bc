"""Changes to a project's tables beyond what series do by themselves: numbered SQL files, forward only, each once.

    migrations/0001_gates.sql
    migrations/0002_gate_index.sql

    async with TimescaleStore(url, project="skyline") as store:
        applied = await migrate(store, Path("migrations"))

Replicas that start side by side wait for one another. A file that was changed after it was applied, or that is missing,
stops everything before anything is done: what ran in one place must be what runs in the next.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kmp_core.deadlines import Timeout
from kmp_core.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    from kmp_core.postgres import Transaction
    from kmp_storage.timescale import TimescaleStore

__all__ = ["Migration", "migrate", "migrations_in"]

_NAME = re.compile(r"(\d{4})_[a-z0-9_]{1,80}\.sql", re.ASCII)


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: its number, its file's name, and SQL that runs in one transaction with the note that it ran."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Of the text; line ends do not count, since version control changes them."""
        return hashlib.sha256(self.sql.replace("\r\n", "\n").encode()).hexdigest()


def migrations_in(directory: Path) -> list[Migration]:
    """The steps of a directory in their order. Raises `InvalidInput` for a name or a number that does not fit."""
    found: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise InvalidInput(path.name, "is no name of a migration", example="0001_gates.sql")
        found.append(Migration(int(match[1]), path.name, path.read_text(encoding="utf-8")))
    for expected, migration in enumerate(found, start=1):
        if migration.number != expected:
            raise InvalidInput(migration.name, f"should have number {expected:04}: none is left out, and none is twice")
    return found


async def migrate(store: TimescaleStore, source: Path | list[Migration], *, timeout: Timeout = "10m") -> list[str]:
    """Apply what was not applied yet, each step in a transaction of its own, and return the names of those.

    A step that fails is undone, and those before it stay. Raises `Conflict` where what was applied differs.
    """
    steps = migrations_in(source) if isinstance(source, Path) else source
    applied: list[str] = []
    for step in steps:
        async with store.transaction() as transaction:
            if await _apply(transaction, steps, step, timeout):
                applied.append(step.name)
    return applied


async def _apply(transaction: Transaction, steps: list[Migration], step: Migration, timeout: Timeout) -> bool:
    # The lock goes with the transaction; whoever waited for it finds the step done.
    await transaction.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('kmp migrations:' || current_schema(), 0))", timeout=timeout
    )
    await transaction.execute(
        "CREATE TABLE IF NOT EXISTS _kmp_migrations (number int PRIMARY KEY, name text NOT NULL, "
        "checksum text NOT NULL, applied timestamptz NOT NULL DEFAULT now())"
    )
    done = {row["number"]: row for row in await transaction.fetch("SELECT * FROM _kmp_migrations")}
    known = {migration.number: migration for migration in steps}
    for number, row in sorted(done.items()):
        if number not in known:
            raise Conflict(
                f"migration {row['name']} was applied here and is missing now; bring it back", key=row["name"]
            )
        if known[number].checksum != row["checksum"]:
            raise Conflict(
                f"migration {row['name']} was changed after it was applied here; restore it, and write a new one",
                key=row["name"],
            )
    if step.number in done:
        return False
    await transaction.execute(step.sql, timeout=timeout)
    await transaction.execute(
        "INSERT INTO _kmp_migrations (number, name, checksum) VALUES ($1, $2, $3)",
        step.number,
        step.name,
        step.checksum,
    )
    return True
