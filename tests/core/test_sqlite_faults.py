"""Files that cannot be used: each is a clear error, nothing is lost, and the file is left as it is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kmp_core.errors import ConfigurationError, Corrupt, PermissionDenied, Unavailable
from kmp_core.project import Project
from kmp_core.sqlite import Database
from kmp_core.sqlite.files import Owner, claim, refuse_strangers
from small_disks import mounted, remount

ACME = Project("acme")
SCHEMA = ["CREATE TABLE note (text TEXT) STRICT"]


def make(path: Path, project: str = "acme", migrations=SCHEMA, capability: str = "storage.notes") -> Database:
    return Database(path, project=Project(project), capability=capability, migrations=migrations)


async def refused(database: Database, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as raised:
        await database.open()
    assert len(str(raised.value).splitlines()) <= 5
    await database.close()


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "n.db"
    path.write_bytes(b"a letter to my mother, which is no database " * 100)
    before = path.read_bytes()
    await refused(make(path), Corrupt, "n.db is damaged or no SQLite file")
    assert path.read_bytes() == before


async def test_a_damaged_file_is_refused_or_its_damage_found_when_it_is_read(tmp_path):
    path = tmp_path / "n.db"
    database = make(path)
    await database.open()
    await database.write(lambda c: c.executemany("INSERT INTO note VALUES (?)", [("x" * 500,)] * 200))
    await database.close()
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    damaged = make(path)
    with pytest.raises(Corrupt, match=r"n\.db"):
        await damaged.open()
        await damaged.read(lambda c: c.execute("SELECT sum(length(text)) FROM note").fetchall())
    await damaged.close()
    assert path.read_bytes() == bytes(content)


async def test_another_capabilitys_file_is_refused_by_name_and_not_migrated(tmp_path):
    path = tmp_path / "n.db"
    database = make(path)
    await database.open()
    await database.close()
    before = path.read_bytes()
    others = [*SCHEMA, "CREATE TABLE letter (text TEXT) STRICT"]
    with pytest.raises(ConfigurationError, match=r"n\.db: is a file of storage\.notes, not of messaging\.letters"):
        await make(path, migrations=others, capability="messaging.letters").open()
    assert path.read_bytes() == before


async def test_another_applications_database_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "n.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    await refused(make(path), ConfigurationError, "belongs to another application")
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["n.db"]


async def test_another_projects_file_is_refused(tmp_path):
    path = tmp_path / "n.db"
    database = make(path)
    await database.open()
    await database.close()
    before = path.read_bytes()
    await refused(make(path, "acme2"), PermissionDenied, "belongs to another project")
    assert path.read_bytes() == before


async def test_a_later_versions_file_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "n.db"
    database = make(path, migrations=[*SCHEMA, "CREATE TABLE later (x TEXT) STRICT"])
    await database.open()
    await database.close()
    before = path.read_bytes()
    await refused(make(path), ConfigurationError, "later version of KMP .schema 2, this one knows 1")
    assert path.read_bytes() == before


async def test_a_file_without_its_owner_is_damaged(tmp_path):
    path = tmp_path / "n.db"
    database = make(path)
    await database.open()
    await database.write(lambda c: c.execute("DROP TABLE kmp_owner"))
    await database.close()
    await refused(make(path), Corrupt, "names the owner")


async def test_a_directory_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "n.db").mkdir()
    await refused(make(tmp_path / "n.db"), ConfigurationError, "cannot be opened")


async def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "acme").write_text("in the way")
    await refused(make(tmp_path / "acme" / "n.db"), ConfigurationError, "cannot be created")


async def test_a_read_only_place_is_refused(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        remount(disk, "ro")
        await refused(make(disk / "acme" / "n.db"), ConfigurationError, "cannot be created")
        await refused(make(disk / "n.db"), ConfigurationError, "cannot be written")


async def test_a_place_that_becomes_read_only_is_reported_and_used_again_when_it_can_be_written(tmp_path):
    with mounted(tmp_path / "disk", "size=4m") as disk:
        (disk / "acme").mkdir()
        database = make(disk / "acme" / "n.db")
        await database.open()
        await database.close()
        remount(disk, "ro")
        await refused(make(disk / "acme" / "n.db"), ConfigurationError, "cannot be written")
        remount(disk, "rw")
        again = make(disk / "acme" / "n.db")
        await again.open()
        await again.write(lambda c: c.execute("INSERT INTO note VALUES ('x')"))
        await again.close()


async def test_a_full_disk_is_reported_loses_nothing_and_is_used_again_when_there_is_room(tmp_path):
    with mounted(tmp_path / "disk", "size=256k") as disk:
        database = make(disk / "n.db")
        await database.open()
        written = 0
        with pytest.raises(Unavailable, match="disk") as raised:
            for _ in range(1000):
                await database.write(lambda c: c.execute("INSERT INTO note VALUES (?)", ("x" * 2000,)))
                written += 1
        assert not raised.value.outcome_unknown
        assert written > 0
        count = "SELECT count(*) FROM note"
        assert await database.read(lambda c: c.execute(count).fetchone()[0]) == written
        remount(disk, "size=4m")
        await database.write(lambda c: c.execute("INSERT INTO note VALUES ('room')"))
        assert await database.read(lambda c: c.execute(count).fetchone()[0]) == written + 1
        await database.close()


async def test_a_disk_that_is_full_from_the_beginning_is_reported(tmp_path):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        (disk / "ballast").write_bytes(b"x" * 65536)
        await refused(make(disk / "n.db"), Unavailable, "disk")


async def test_a_file_that_a_neighbour_makes_in_the_same_moment_is_no_strangers(tmp_path):
    path = tmp_path / "n.db"

    class Overtaken(sqlite3.Connection):
        """Between its first look and its second, a neighbour claims the file."""

        claimed = False

        def execute(self, sql, *parameters):
            answer = super().execute(sql, *parameters)
            if sql == "PRAGMA application_id" and not self.claimed:
                self.claimed = True
                with closing(sqlite3.connect(path, isolation_level=None)) as neighbour:
                    neighbour.execute("BEGIN IMMEDIATE")
                    claim(neighbour, path, Owner(ACME, "storage.notes"), SCHEMA)
                    neighbour.execute("COMMIT")
            return answer

    with closing(sqlite3.connect(path)) as first:
        first.execute("PRAGMA journal_mode = WAL")  # readers and a writer side by side, as every opened file has it
        with closing(sqlite3.connect(path, isolation_level=None, factory=Overtaken)) as late:
            assert refuse_strangers(late, path, Owner(ACME, "storage.notes")) == 0
            assert late.claimed
            assert refuse_strangers(late, path, Owner(ACME, "storage.notes")) == 1
