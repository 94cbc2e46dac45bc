"""The leak test of TimescaleDB and plain PostgreSQL, for a database of one's own or a schema."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from kmp_core.plugins import extra
from kmp_storage.testing.leaks.suite import Attempt, Attempts, LeakTest, Login

with extra("asyncpg", install="kmp-storage[timescale]"):
    import asyncpg

__all__ = ["TimescaleLeaks"]

_NOT_FOR_YOU: tuple[type[Exception], ...] = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidPasswordError,
    asyncpg.InvalidRoleSpecificationError,
    # From where a neighbour stands it is not there.
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedObjectError,
    asyncpg.UndefinedFunctionError,
    asyncpg.InvalidSchemaNameError,
    # dblink, which lends nobody the server's identity, and was not let in with the neighbour's
    asyncpg.ProhibitedSQLStatementAttemptedError,
    asyncpg.ClientCannotConnectError,
)

_SEEN = """
    SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f')
    AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') ORDER BY 1
"""


class TimescaleLeaks(LeakTest):
    """Tables, chunks read directly, large objects, roles, search paths, dblink, and what a running statement shows.

    Names (of databases, roles, with schemas also of tables) are no content: which of them the catalogues show is
    listed in the documentation, not refused here.
    """

    table: ClassVar[str] = "kmp_leak_test"

    _chunks: Sequence[str] = ()
    _large_object: int = 0

    def refused(self, error: Exception) -> bool:
        return isinstance(error, _NOT_FOR_YOU)

    async def plant(self, victim: Login) -> None:
        name = self._name(victim)
        async with _session(victim, victim.place) as session:
            if await session.fetchval("SELECT to_regclass($1)", name) is None:
                await session.execute(f"CREATE TABLE {name} (time timestamptz NOT NULL, secret text, object oid)")
                if await session.fetchval("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"):
                    await session.execute("SELECT create_hypertable($1::regclass, 'time')", name)
                await session.execute(
                    f"INSERT INTO {name} VALUES ('2024-01-01', $1::text, lo_from_bytea(0, $1::text::bytea))",
                    self.secret,
                )
            self._large_object = await session.fetchval(f"SELECT object FROM {name} WHERE object IS NOT NULL")
            chunks = await session.fetch(
                "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass", name
            )
            self._chunks = [chunk[0] for chunk in chunks]

    async def untouched(self, victim: Login) -> bool:
        async with _session(victim, victim.place) as session:
            rows = await session.fetch(f"SELECT secret, convert_from(lo_get(object), 'UTF8') FROM {self._name(victim)}")
            return [tuple(row) for row in rows] == [(self.secret, self.secret)]

    def connect(self, victim: Login, neighbour: Login) -> Attempts:
        attempts: dict[str, Attempt] = {
            f"connect to {database}": _statement(neighbour, database, "SELECT 1")
            for database in ("postgres", "template1")
        }
        if victim.place != neighbour.place:
            attempts["connect to the victim's database"] = _statement(neighbour, victim.place, "SELECT 1")
            own = f"host=127.0.0.1 dbname={victim.place} user={neighbour.user}"
            for name, target in {"dblink": f"{own} password={neighbour.password}", "dblink as the server": own}.items():
                attempts[name] = _statement(neighbour, neighbour.place, _dblink(target, "SELECT 1"))
        return attempts

    def read(self, victim: Login, neighbour: Login) -> Attempts:
        schema, place = victim.schema, victim.place
        attempts: dict[str, Attempt] = {}
        for number, table in enumerate(self._tables(victim)):
            what = f"chunk {number}" if number else "the table"
            attempts[f"SELECT from {what}"] = _statement(neighbour, place, f"SELECT secret FROM {table}")
            attempts[f"COPY {what}"] = _statement(neighbour, place, f"COPY {table} TO STDOUT", rows=False)
            attempts[f"lock {what}"] = _statement(neighbour, place, f"SELECT secret FROM {table} FOR UPDATE")
        attempts["through the search path"] = _statement(
            neighbour, place, f"SELECT secret FROM {self.table}", before=f'SET search_path = "{schema}", public'
        )
        attempts["a large object"] = _statement(neighbour, place, f"SELECT lo_get({self._large_object})")
        return attempts

    def write(self, victim: Login, neighbour: Login) -> Attempts:
        statements = [f'CREATE TABLE "{victim.schema}".planted (x int)', f'DROP SCHEMA "{victim.schema}" CASCADE']
        if victim.place != neighbour.place or victim.schema != "public":
            statements.append("CREATE TABLE public.trap (x int)")
        for table in self._tables(victim):
            statements += [
                f"INSERT INTO {table} (time, secret) VALUES (now(), 'planted')",
                f"UPDATE {table} SET secret = 'changed'",
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
                f"ALTER TABLE {table} ADD COLUMN planted int",
                f"CREATE INDEX ON {table} (time)",
                f"BEGIN; LOCK TABLE {table}",
                f"DROP TABLE {table}",
            ]
        statements += [f"SELECT lo_put({self._large_object}, 0, 'x')", f"SELECT lo_unlink({self._large_object})"]
        statements += [f"SELECT drop_chunks('{self._name(victim)}', older_than => now())"]
        attempts: dict[str, Attempt] = {
            text: _statement(neighbour, victim.place, text, rows=False) for text in statements
        }
        attempts["end the victim's session"] = lambda: self._end_a_session(victim, neighbour)
        return attempts

    def browse(self, victim: Login, neighbour: Login) -> Attempts:
        attempts: dict[str, Attempt] = {
            "content anywhere in its own database": lambda: self._seen(victim, neighbour, neighbour.place),
            "the server's files": _statement(neighbour, neighbour.place, "SELECT pg_ls_dir('.')"),
            "all large objects": _statement(neighbour, victim.place, "SELECT data FROM pg_largeobject"),
            "passwords": _statement(neighbour, neighbour.place, "SELECT rolpassword FROM pg_authid"),
        }
        if victim.place != neighbour.place:
            attempts["content anywhere in the victim's"] = lambda: self._seen(victim, neighbour, victim.place)
        return attempts

    def guess(self, victim: Login, neighbour: Login) -> Attempts:
        return {
            f"the victim's user with {what}": _statement(
                Login(victim.host, victim.port, victim.user, text, victim.place), victim.place, "SELECT 1"
            )
            for what, text in {
                "no password": "",
                "its name as password": victim.user,
                "the neighbour's password": neighbour.password,
                "a usual password": "postgres",
            }.items()
        }

    def widen(self, victim: Login, neighbour: Login) -> Attempts:
        me, other = f'"{neighbour.user}"', f'"{victim.user}"'
        statements = (
            f"SET ROLE {other}",
            f"SET SESSION AUTHORIZATION {other}",
            "SET ROLE postgres",
            f"GRANT {other} TO {me}",
            f"ALTER ROLE {other} PASSWORD 'mine'",
            f"ALTER ROLE {me} CONNECTION LIMIT -1",
            f"ALTER ROLE {me} SUPERUSER",
            f'GRANT ALL ON SCHEMA "{victim.schema}" TO {me}',
            "CREATE ROLE mine",
            "CREATE DATABASE mine",
            "CREATE EXTENSION postgres_fdw",
            "SET temp_file_limit = -1",
            "SELECT pg_read_file('/etc/passwd')",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "ALTER SYSTEM SET log_statement = 'all'",
        )
        return {text: _statement(neighbour, neighbour.place, text, rows=False) for text in statements}

    def _name(self, victim: Login) -> str:
        return f'"{victim.schema}".{self.table}'

    def _tables(self, victim: Login) -> Iterable[str]:
        return (self._name(victim), *self._chunks)

    async def _seen(self, victim: Login, neighbour: Login, database: str) -> list[str]:
        """Every relation in which the victim's content is shown, also the text of a statement that it runs."""
        async with _session(victim, victim.place) as busy, _session(neighbour, database) as session:
            await busy.execute(f"SELECT '{self.secret}'")
            found: list[str] = []
            for (relation,) in await session.fetch(_SEEN):
                try:
                    if await session.fetchval(
                        f"SELECT bool_or(strpos(t::text, $1) > 0) FROM {relation} t", self.secret
                    ):
                        found.append(relation)
                except asyncpg.PostgresError as error:
                    if self.secret in str(error):
                        found.append(relation)
            return found

    async def _end_a_session(self, victim: Login, neighbour: Login) -> bool:
        async with _session(victim, victim.place) as busy, _session(neighbour, neighbour.place) as session:
            return bool(await session.fetchval(f"SELECT pg_terminate_backend({busy.get_server_pid()})"))


@asynccontextmanager
async def _session(login: Login, database: str) -> AsyncGenerator[Any, None]:
    connection = await asyncpg.connect(
        host=login.host,
        port=login.port,
        user=login.user,
        password=login.password,
        database=database,
        ssl="prefer",
        timeout=10,
        command_timeout=10,
    )
    try:
        yield connection
    finally:
        connection.terminate()


def _statement(login: Login, database: str, text: str, *, before: str = "", rows: bool = True) -> Attempt:
    async def attempt() -> object:
        async with _session(login, database) as session:
            if before:
                await session.execute(before)
            return await session.fetch(text) if rows else (await session.execute(text) or "done")

    return attempt


def _dblink(target: str, statement: str) -> str:
    return f"SELECT * FROM dblink('{target}', '{statement}') AS t(x int)"
