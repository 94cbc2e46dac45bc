"""Give a project its place on a PostgreSQL server, and take it away; with rights that no service process ever has.

    admin = TimescaleProvisioner("timescale://postgres:…@db.internal/postgres?sslrootcert=/etc/ssl/db-ca.pem")
    async with admin:
        access = await admin.provision("skyline", Quota(connections=30, temp_file_bytes=2 << 30))
        print(access.url)           # for the project's secret; shows its password to nobody who does not reveal it

Placements, weakest to strongest: `shared` (a schema and a role in one database for many projects), `database` (the
default: a database and a role). `dedicated` is a server of its own, which is provisioned as `database`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, TypeVar
from urllib.parse import quote

from kmp_core.errors import Conflict, InvalidInput, NotFound
from kmp_core.postgres import Address, Connection, Password, PoolOptions, PostgresPool
from kmp_core.project import Project, backend_name
from kmp_core.resource import Provider
from kmp_core.secrets import Secret
from kmp_core.settings.url import ConnectionUrl
from kmp_storage.series.shape import quoted

__all__ = ["Access", "Placement", "Quota", "TimescaleProvisioner"]

T = TypeVar("T")

Placement = Literal["database", "shared"]
BackupHook = Callable[[Project], Awaitable[None]]

_ENFORCE = """
    WITH bound AS (
        SELECT r.rolname, substring(c from '=([0-9]+)ms$')::bigint * interval '1 millisecond' AS most
        FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) c
        WHERE s.setdatabase = 0 AND c LIKE 'statement_timeout=%ms'
    ), beyond AS (
        SELECT a.pid, a.state FROM pg_stat_activity a JOIN bound b ON a.usename = b.rolname
        WHERE a.state <> 'idle'
        AND clock_timestamp() - CASE a.state WHEN 'active' THEN a.query_start ELSE a.state_change END > b.most
    )
    SELECT count(*) FILTER (
        WHERE CASE state WHEN 'active' THEN pg_cancel_backend(pid) ELSE pg_terminate_backend(pid) END
    ) FROM beyond
"""

_LOCK = 0x6B6D70  # "kmp": one provisioning at a time
_PASSWORD = re.compile(r"[\x21-\x7e]{16,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Quota:
    """What a project may use, as far as the server can bind it: a role may `SET` away every other limit."""

    connections: int = 50
    temp_file_bytes: int = 10 << 30
    statement_time: timedelta = timedelta(minutes=30)
    """Bound by `TimescaleProvisioner.enforce`; before that only the session's own default, which a project may lift."""

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= 10_000:
            raise InvalidInput("quota, connections", "must be between 1 and 10000", example="50")
        if not 1 << 20 <= self.temp_file_bytes <= 1 << 40:
            raise InvalidInput("quota, temp_file_bytes", "must be between 1 MiB and 1 TiB", example=str(10 << 30))
        if not timedelta(seconds=1) <= self.statement_time <= timedelta(days=7):
            raise InvalidInput("quota, statement_time", "must be between a second and a week", example='"30m"')


@dataclass(frozen=True, slots=True)
class Access:
    """What a project's services need. `password` is None where the role was there before and kept its own."""

    project: Project
    placement: Placement
    role: str
    database: str
    schema: str
    url: ConnectionUrl
    password: Secret | None


class TimescaleProvisioner(Provider):
    """Makes and removes projects on one server. Opened by an operator's tool, never by a service."""

    def __init__(
        self,
        url: str,
        *,
        password: Password = None,
        shared_database: str = "kmp_shared",
        extension: bool = True,
    ) -> None:
        if re.fullmatch(r"[a-z][a-z0-9_]{0,62}", shared_database, re.ASCII) is None:
            raise InvalidInput("shared_database", "must be 1 to 63 of a-z, 0-9 and '_'", example='"kmp_shared"')
        self._address = Address.of(url, password=password)
        self._shared = shared_database
        self._extension = extension
        self._pool = self._pool_for(self._address)

    async def _open(self) -> None:
        await self._pool.open()

    async def _close(self) -> None:
        await self._pool.close()

    async def _check(self) -> None:
        await self._pool.check()

    async def provision(
        self,
        project: str,
        quota: Quota | None = None,
        *,
        placement: Placement = "database",
        password: Secret | None = None,
    ) -> Access:
        """Make the project's role and place, or bring what is there up to date; as often as you like.

        A new role gets `password`, or a random one; a role that is there keeps its own unless `password` is given.
        """
        self.ensure_open()
        owner, limits = Project(project), quota or Quota()
        if placement not in ("database", "shared"):
            raise InvalidInput("placement", "is unknown", example='"database"')
        name = backend_name(owner, "postgres")
        database = name if placement == "database" else self._shared

        async def make(connection: Connection) -> Secret | None:
            given = await self._make_role(connection, name, limits, password)
            await self._make_database(connection, database)
            await connection.execute(f"GRANT CONNECT, TEMPORARY ON DATABASE {quoted(database)} TO {quoted(name)}")
            return given

        given = await self._locked(self._pool, make)
        async with self._pool_for(replace(self._address, database=database)) as inside:
            await self._locked(inside, lambda connection: self._make_schema(connection, database, name))
        return self._access(owner, placement, name, database, given)

    async def deprovision(
        self,
        project: str,
        *,
        placement: Placement = "database",
        force: bool = False,
        backup: BackupHook | None = None,
    ) -> bool:
        """Remove the project's role and all it has; False where there was none.

        `backup` is called first, and whatever it raises stops the removal. Raises `Conflict` where rows are left,
        unless `force`.
        """
        self.ensure_open()
        owner = Project(project)
        name = backend_name(owner, "postgres")
        database = name if placement == "database" else self._shared
        if not await self._exists("pg_roles", "rolname", name):
            return False
        if backup is not None:
            await backup(owner)
        # Nobody of the project comes in any more, so that empty stays empty.
        await self._on_server(f"ALTER ROLE {quoted(name)} NOLOGIN")
        try:
            if await self._exists("pg_database", "datname", database):
                await self._empty(owner, name, database, force=force)
        except BaseException:
            await self._on_server(f"ALTER ROLE {quoted(name)} LOGIN")
            raise
        if placement == "database" and await self._exists("pg_database", "datname", name):
            await self._on_server(f"DROP DATABASE {quoted(name)} WITH (FORCE)")
        elif placement == "shared":
            await self._on_server(f"REVOKE ALL ON DATABASE {quoted(database)} FROM {quoted(name)}")
        await self._on_server(f"DROP ROLE {quoted(name)}")
        return True

    async def set_password(self, project: str, password: Secret) -> None:
        """Rotate the role's password. Sessions go on; new ones need the new one."""
        self.ensure_open()
        name = backend_name(Project(project), "postgres")
        if not await self._exists("pg_roles", "rolname", name):
            raise NotFound(f"the project {project} is not provisioned here", key=project)
        async with self._pool.acquire() as connection:
            await self._set_password(connection, name, password)

    async def enforce(self) -> int:
        """Look once for what runs beyond its project's statement time, end it, and return how many there were.

        A statement is cancelled; a session that sits in an open transaction as long is ended. A role may lift its own
        `statement_timeout`, so call this every few seconds from an operator's process.
        """
        self.ensure_open()
        async with self._pool.acquire() as connection:
            return int(await connection.fetch_value(_ENFORCE))

    # Making

    async def _make_role(
        self, connection: Connection, name: str, quota: Quota, password: Secret | None
    ) -> Secret | None:
        role = quoted(name)
        if not await connection.fetch_value("SELECT count(*) FROM pg_roles WHERE rolname = $1", name):
            password = password or Secret(secrets.token_urlsafe(32))
            await connection.execute(f"CREATE ROLE {role}")
        # Written anew each time, so that what somebody granted by hand does not stay.
        await connection.execute(
            f"ALTER ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
            f"CONNECTION LIMIT {quota.connections}"
        )
        await connection.execute(f"ALTER ROLE {role} SET temp_file_limit = '{quota.temp_file_bytes >> 10}kB'")
        milliseconds = quota.statement_time // timedelta(milliseconds=1)
        await connection.execute(f"ALTER ROLE {role} SET statement_timeout = '{milliseconds}ms'")
        await connection.execute(f"ALTER ROLE {role} SET search_path = {role}, public")
        if password is not None:
            await self._set_password(connection, name, password)
        return password

    @staticmethod
    async def _set_password(connection: Connection, name: str, password: Secret) -> None:
        text = password.reveal()
        if _PASSWORD.fullmatch(text) is None:
            raise InvalidInput("password", "must be 16 to 128 printable ASCII characters without spaces")
        # ALTER ROLE takes no parameters; the server's own function quotes, and its log is silent for this session.
        await connection.execute("SET log_statement = 'none'; SET log_min_duration_statement = -1")
        literal = await connection.fetch_value("SELECT quote_literal($1::text)", text)
        await connection.execute(f"ALTER ROLE {quoted(name)} PASSWORD {literal}")

    async def _make_database(self, connection: Connection, database: str) -> None:
        if not await connection.fetch_value("SELECT count(*) FROM pg_database WHERE datname = $1", database):
            await connection.execute(f"CREATE DATABASE {quoted(database)}")
        # The databases that every server comes with are open to all, and so a place to leave things for others.
        for closed in (database, "postgres", "template1"):
            await connection.execute(f"REVOKE ALL ON DATABASE {quoted(closed)} FROM PUBLIC")

    async def _make_schema(self, connection: Connection, database: str, name: str) -> None:
        if self._extension:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb SCHEMA public")
        role = quoted(name)
        await connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {role} AUTHORIZATION {role}")
        await connection.execute(f"REVOKE ALL ON SCHEMA {role} FROM PUBLIC")

    # Removing

    async def _empty(self, owner: Project, name: str, database: str, *, force: bool) -> None:
        inside = self._pool_for(replace(self._address, database=database))
        async with inside, inside.acquire() as connection:
            await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", name)
            filled = [] if force else await self._filled(connection, name)
            if filled:
                shown = ", ".join(filled[:5])
                raise Conflict(
                    f"the project {owner} still has rows, in {shown}; keep them, or remove them with force=True",
                    project=owner,
                )
            # What the role owns elsewhere in this database too, large objects included.
            await connection.execute(f"DROP SCHEMA IF EXISTS {quoted(name)} CASCADE")
            await connection.execute(f"DROP OWNED BY {quoted(name)} CASCADE")

    @staticmethod
    async def _filled(connection: Connection, name: str) -> list[str]:
        tables = await connection.fetch(
            "SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner "
            "WHERE r.rolname = $1 AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' "
            "AND c.relname NOT LIKE '\\_kmp\\_%' AND n.nspname <> '_timescaledb_internal' ORDER BY 1",
            name,
        )
        return [
            row["name"]
            for row in tables
            if await connection.fetch_value(f"SELECT EXISTS (SELECT FROM {row['name']})")  # noqa: S608 - %I quotes
        ]

    # Inside

    def _pool_for(self, address: Address) -> PostgresPool:
        return PostgresPool(address, options=PoolOptions(size=2, application="kmp provisioning"))

    async def _locked(self, pool: PostgresPool, work: Callable[[Connection], Awaitable[T]]) -> T:
        # No transaction: a database is not made inside one. Every step can be repeated instead.
        async with pool.acquire() as connection:
            await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
            return await work(connection)

    async def _on_server(self, statement: str) -> None:
        async with self._pool.acquire() as connection:
            await connection.execute(statement)

    async def _exists(self, catalogue: str, column: str, name: str) -> bool:
        async with self._pool.acquire() as connection:
            sql = f"SELECT count(*) > 0 FROM {catalogue} WHERE {column} = $1"  # noqa: S608 - our own names
            return bool(await connection.fetch_value(sql, name))

    def _access(
        self, project: Project, placement: Placement, name: str, database: str, password: Secret | None
    ) -> Access:
        address = self._address
        inside = "" if password is None else f":{quote(password.reveal(), safe='')}"
        query = "sslmode=verify-full" if address.encrypted else "sslmode=disable"
        if address.authority is not None:
            query += f"&sslrootcert={quote(address.authority, safe='/')}"
        url = f"timescale://{name}{inside}@{address.host}:{address.port}/{database}?{query}"
        return Access(project, placement, name, database, name, ConnectionUrl(url), password)
