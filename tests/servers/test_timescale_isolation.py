"""The server keeps projects apart: a neighbour with a driver of its own and its own valid login gets nothing."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import asyncpg
import pytest

import testbed
from kmp_core.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from kmp_core.project import Project
from kmp_core.secrets import Secret
from kmp_storage.models import Measurement
from kmp_storage.timescale import TimescaleSettings, TimescaleStore
from kmp_storage.timescale.provisioning import Access, Placement, Quota, TimescaleProvisioner
from postgres_bed import admin, admin_url, connect, until

REFUSED = asyncpg.InsufficientPrivilegeError
SECRET = "the-victims-own-content"
PLACEMENTS: tuple[Placement, ...] = ("database", "shared")


class Note(Measurement, series="notes", tags=("owner",)):
    owner: str
    text: str


class Memo(Measurement, series="memos"):
    text: str


class Two:
    """A victim with a row, and a neighbour with nothing but its own login."""

    def __init__(self, server: testbed.Server, victim: Access, neighbour: Access) -> None:
        self.server, self.victim, self.neighbour = server, victim, neighbour

    @asynccontextmanager
    async def neighbours_session(self) -> AsyncIterator[Any]:
        connection = await self.login(self.neighbour.database)
        try:
            yield connection
        finally:
            connection.terminate()

    async def login(self, database: str) -> Any:
        assert self.neighbour.password is not None
        return await connect(self.server, self.neighbour.role, self.neighbour.password.reveal(), database)


@pytest.fixture
async def operator(timescaledb: testbed.Server) -> AsyncIterator[TimescaleProvisioner]:
    shared = f"shared_{secrets.token_hex(4)}"
    async with TimescaleProvisioner(admin_url(timescaledb), shared_database=shared) as made:
        yield made
    async with admin(timescaledb) as connection:
        await connection.execute(f"DROP DATABASE IF EXISTS {shared} WITH (FORCE)")


@pytest.fixture(params=PLACEMENTS)
def placement(request: pytest.FixtureRequest) -> Placement:
    found: Placement = request.param
    return found


@pytest.fixture
async def two(timescaledb: testbed.Server, operator: TimescaleProvisioner, placement: Placement) -> AsyncIterator[Two]:
    names = [f"{kind}-{secrets.token_hex(4)}" for kind in ("victim", "neighbour")]
    victim, neighbour = [await operator.provision(name, placement=placement) for name in names]
    made = Two(timescaledb, victim, neighbour)
    async with store_of(victim) as store:
        await store.append(Note(time=datetime(2024, 1, 1, tzinfo=UTC), owner="v", text=SECRET))
    yield made
    for name in names:
        await operator.deprovision(name, placement=placement, force=True)


def store_of(access: Access) -> TimescaleStore:
    return TimescaleStore(access.url.reveal(), project=access.project, settings=TimescaleSettings())


async def test_a_neighbour_cannot_come_into_the_database(
    two: Two, placement: Placement, timescaledb: testbed.Server
) -> None:
    if placement == "database":
        with pytest.raises(REFUSED):
            await two.login(two.victim.database)
    # Nor into what the server itself came with, where something could be left for others.
    async with admin(timescaledb) as connection:
        open_to = await connection.fetch(
            "SELECT datname FROM pg_database WHERE has_database_privilege($1, oid, 'CONNECT') AND datallowconn",
            two.neighbour.role,
        )
    assert {row[0] for row in open_to} == {two.neighbour.database}


# What a neighbour still sees. The page docs/how-to/timescale.md has the same table.

VISIBLE: dict[Literal["database", "shared"], set[str]] = {
    "database": {
        "pg_catalog.pg_database",
        "pg_catalog.pg_roles",
        "pg_catalog.pg_user",
        "pg_catalog.pg_stat_database",
        "pg_catalog.pg_stats",  # of catalogues alone: STATISTICS
        "pg_catalog.pg_stat_database_conflicts",
        "pg_catalog.pg_stat_activity",
        "pg_catalog.pg_db_role_setting",
    },
    "shared": {
        "pg_catalog.pg_database",
        "pg_catalog.pg_roles",
        "pg_catalog.pg_user",
        "pg_catalog.pg_stat_activity",
        "pg_catalog.pg_db_role_setting",
        "pg_catalog.pg_namespace",
        "pg_catalog.pg_tables",
        "pg_catalog.pg_stats",  # of catalogues alone: STATISTICS
        "pg_catalog.pg_indexes",
        "pg_catalog.pg_statio_all_tables",
        "pg_catalog.pg_statio_all_indexes",
        "pg_catalog.pg_statio_user_tables",
        "pg_catalog.pg_statio_user_indexes",
        "pg_catalog.pg_stat_all_tables",
        "pg_catalog.pg_stat_all_indexes",
        "pg_catalog.pg_stat_user_tables",
        "pg_catalog.pg_stat_user_indexes",
        "pg_catalog.pg_stat_xact_all_tables",
        "pg_catalog.pg_stat_xact_user_tables",
        "information_schema.udt_privileges",
        "_timescaledb_catalog.hypertable",
        "_timescaledb_internal.hypertable_chunk_local_size",
        "timescaledb_information.chunks",
        "timescaledb_information.dimensions",
        "timescaledb_information.hypertables",
        "timescaledb_information.hypertable_columnstore_settings",
        "timescaledb_information.hypertable_compression_settings",
    },
}

STATISTICS: dict[Literal["database", "shared"], set[str]] = {
    "database": {"pg_catalog.pg_database", "pg_catalog.pg_db_role_setting"},
    "shared": {
        "pg_catalog.pg_database",
        "pg_catalog.pg_db_role_setting",
        "pg_catalog.pg_namespace",
        "_timescaledb_catalog.hypertable",
    },
}
"""Whose statistics show a neighbour's name once somebody analysed the database: what shows it by itself."""


async def seen(session: Any, needle: str) -> set[str]:
    """Every relation of the database in which a text is shown to this role."""
    relations = await session.fetch(
        "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f') "
        "AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') ORDER BY 1"
    )
    found = set()
    for (relation,) in relations:
        try:
            if await session.fetchval(f"SELECT bool_or(strpos(t::text, $1) > 0) FROM {relation} t", needle):
                found.add(relation)
        except asyncpg.PostgresError as error:
            if needle in str(error):
                found.add(relation)
    return found


async def test_what_stays_visible_is_what_the_docs_list(two: Two, placement: Placement) -> None:
    async with store_of(two.victim) as store, two.neighbours_session() as session:
        # Often enough to be a column's most common value, which statistics keep as it is.
        moment = datetime(2024, 1, 1, tzinfo=UTC)
        await store.append(*[Note(time=moment, owner="v", text=SECRET)] * 20, Memo(time=moment, text=SECRET))
        for database in {two.victim.database, two.neighbour.database}:
            async with admin(two.server, database) as connection:
                await connection.execute("ANALYZE")
        async with store.connection() as connection:
            assert await connection.fetch_value(
                "SELECT bool_or(strpos(s::text, $1) > 0) FROM pg_stats s WHERE tablename = 'notes'", SECRET
            ), "there is something to hide"
            await connection.fetch_value(f"SELECT '{SECRET}'::text")
            assert await seen(session, SECRET) == set(), "no content, and no text of a running statement"
            names = await seen(session, two.victim.role)
        analysed = await session.fetch(
            "SELECT DISTINCT schemaname || '.' || tablename FROM pg_stats s WHERE strpos(s::text, $1) > 0",
            two.victim.role,
        )
    assert names <= VISIBLE[placement], f"also visible: {sorted(names - VISIBLE[placement])}"
    assert "pg_catalog.pg_database" in {row[0] for row in analysed} <= STATISTICS[placement]
    assert STATISTICS[placement] <= VISIBLE[placement], "no statistic tells what does not show by itself"


# Provisioning


async def test_provisioning_again_changes_nothing_that_is_stored(two: Two, operator: TimescaleProvisioner) -> None:
    again = await operator.provision(two.victim.project, placement=two.victim.placement)
    assert again.password is None, "the role keeps its own"
    async with store_of(two.victim) as store:
        assert [note.text async for note in store.read(Note)] == [SECRET]


async def test_provisioning_again_takes_back_what_somebody_granted_by_hand(
    two: Two, operator: TimescaleProvisioner
) -> None:
    role = f'"{two.victim.role}"'
    async with admin(two.server) as connection:
        await connection.execute(f"ALTER ROLE {role} CREATEDB CREATEROLE BYPASSRLS CONNECTION LIMIT -1")
        quota = Quota(statement_time=timedelta(seconds=77))
        await operator.provision(two.victim.project, quota, placement=two.victim.placement)
        row = await connection.fetchrow(
            "SELECT rolcreatedb, rolcreaterole, rolbypassrls, rolsuper, rolconnlimit FROM pg_roles WHERE rolname = $1",
            two.victim.role,
        )
        assert tuple(row) == (False, False, False, False, quota.connections)
    async with store_of(two.victim) as store, store.connection() as session:
        assert await session.fetch_value("SHOW statement_timeout") == "77s"


async def test_what_a_project_left_outside_its_schema_goes_with_it(two: Two, operator: TimescaleProvisioner) -> None:
    async with store_of(two.victim) as store, store.connection() as session:
        number = await session.fetch_value("SELECT lo_from_bytea(0, 'left over'::bytea)")
    assert await operator.deprovision(two.victim.project, placement=two.victim.placement, force=True)
    if two.victim.placement == "shared":
        async with admin(two.server, two.victim.database) as connection:
            assert not await connection.fetchval("SELECT count(*) FROM pg_largeobject_metadata WHERE oid = $1", number)


async def test_quotas_bind(operator: TimescaleProvisioner, timescaledb: testbed.Server, placement: Placement) -> None:
    name = f"small-{secrets.token_hex(4)}"
    access = await operator.provision(name, Quota(connections=2, temp_file_bytes=1 << 20), placement=placement)
    try:
        assert access.password is not None
        login = (timescaledb, access.role, access.password.reveal(), access.database)
        one, other = await connect(*login), await connect(*login)
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await connect(*login)
        with pytest.raises(asyncpg.ConfigurationLimitExceededError):
            await one.execute("SET work_mem = '64kB'")
            await one.fetchval(
                "SELECT count(*) FROM (SELECT md5(x::text) FROM generate_series(1, 500000) x ORDER BY 1) y"
            )
        # Taking leave waits until the server let go, which a cut would not: the session would count for a while.
        await one.close(timeout=10)
        await other.close(timeout=10)
        await operator.provision(name, Quota(connections=3), placement=placement)
        sessions = [await connect(*login) for _ in range(3)]
        for session in sessions:
            session.terminate()
    finally:
        await operator.deprovision(name, placement=placement, force=True)


async def test_a_statement_beyond_its_time_is_ended_though_the_role_lifted_its_limit(
    operator: TimescaleProvisioner, timescaledb: testbed.Server, placement: Placement
) -> None:
    name = f"slow-{secrets.token_hex(4)}"
    access = await operator.provision(name, Quota(statement_time=timedelta(seconds=1)), placement=placement)
    try:
        assert access.password is not None
        login = (timescaledb, access.role, access.password.reveal(), access.database)
        running, sitting, quick = [await connect(*login) for _ in range(3)]
        await running.execute("SET statement_timeout = 0")
        asking = asyncio.ensure_future(running.execute("SELECT pg_sleep(120)"))
        await sitting.execute("BEGIN; SELECT 1")
        ended = 0

        async def both_ended() -> bool:
            nonlocal ended
            assert await quick.fetchval("SELECT 1") == 1
            ended += await operator.enforce()
            return ended == 2

        await until(both_ended)
        with pytest.raises(asyncpg.QueryCanceledError):
            await asking
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
            await sitting.execute("SELECT 1")
        assert await quick.fetchval("SELECT 1") == 1
        for session in (running, sitting, quick):
            session.terminate()
    finally:
        await operator.deprovision(name, placement=placement, force=True)


async def test_what_is_not_empty_is_not_removed_unless_forced(two: Two, operator: TimescaleProvisioner) -> None:
    name, placement = two.victim.project, two.victim.placement
    with pytest.raises(Conflict, match="notes"):
        await operator.deprovision(name, placement=placement)
    async with store_of(two.victim) as store:  # still there, and lets its owner in
        assert [note.text async for note in store.read(Note)] == [SECRET]
    asked: list[Project] = []

    async def backup(project: Project) -> None:
        asked.append(project)
        raise OSError("no room for a backup")

    with pytest.raises(OSError, match="no room"):
        await operator.deprovision(name, placement=placement, force=True, backup=backup)
    assert asked == [name]
    async with store_of(two.victim) as store:
        assert [note.text async for note in store.read(Note)] == [SECRET]
        await store.erase(Note, where={"owner": "v"})
    assert await operator.deprovision(name, placement=placement), "an empty one goes without force"
    assert not await operator.deprovision(name, placement=placement)
    async with admin(two.server) as connection:
        assert not await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", two.victim.role)


async def test_a_rotated_password_counts_for_new_sessions(two: Two, operator: TimescaleProvisioner) -> None:
    await operator.set_password(two.victim.project, Secret("another-password-1"))
    with pytest.raises(Unauthenticated):
        await store_of(two.victim).open()
    with pytest.raises(NotFound):
        await operator.set_password("nobody-here", Secret("another-password-1"))
    with pytest.raises(InvalidInput, match="password") as short:
        await operator.set_password(two.victim.project, Secret("short"))
    assert "'short'" not in str(short.value)


async def test_no_password_is_in_the_servers_log(operator: TimescaleProvisioner, timescaledb: testbed.Server) -> None:
    name, password = f"logged-{secrets.token_hex(4)}", secrets.token_hex(16)
    async with admin(timescaledb) as connection:
        await connection.execute("ALTER SYSTEM SET log_statement = 'all'")
        await connection.execute("ALTER SYSTEM SET log_min_duration_statement = 0")
        await connection.execute("SELECT pg_reload_conf()")
        try:
            async with TimescaleProvisioner(admin_url(timescaledb)) as late:  # whose sessions log from the beginning
                access = await late.provision(name, password=Secret(password))
                await late.set_password(name, Secret(f"{password}-2"))
                await late.deprovision(name, force=True)
        finally:
            await connection.execute("ALTER SYSTEM RESET log_statement")
            await connection.execute("ALTER SYSTEM RESET log_min_duration_statement")
            await connection.execute("SELECT pg_reload_conf()")
    log = timescaledb.container.get_wrapped_container().logs(tail=2000).decode(errors="replace")
    assert f'ALTER ROLE "{access.role}" LOGIN' in log, "it is written"
    assert password not in log


async def test_nobody_comes_in_while_a_project_is_removed(
    operator: TimescaleProvisioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = await operator.provision(f"going-{secrets.token_hex(4)}")
    emptied = operator._empty

    async def meanwhile(*arguments: Any, **options: Any) -> None:
        with pytest.raises(Unauthenticated):
            await store_of(access).open()
        await emptied(*arguments, **options)

    monkeypatch.setattr(operator, "_empty", meanwhile)
    assert await operator.deprovision(access.project)


async def test_projects_whose_names_resemble_each_other_stay_apart(
    operator: TimescaleProvisioner, timescaledb: testbed.Server
) -> None:
    names = [f"a{secrets.token_hex(3)}"]
    names += [f"{names[0]}2", f"{names[0]}-x", "user", "public"]
    try:
        accesses = [await operator.provision(name) for name in names]
        assert len({access.database for access in accesses}) == len(names)
        for access in accesses:
            for other in accesses:
                assert access.password is not None
                login = connect(timescaledb, access.role, access.password.reveal(), other.database)
                if other is access:
                    (await login).terminate()
                else:
                    with pytest.raises(REFUSED):
                        await login
    finally:
        for name in names:
            await operator.deprovision(name, force=True)


async def test_a_wrong_wish_is_refused_by_field(operator: TimescaleProvisioner) -> None:
    with pytest.raises(InvalidInput, match="connections"):
        Quota(connections=0)
    with pytest.raises(InvalidInput, match="temp_file_bytes"):
        Quota(temp_file_bytes=1)
    with pytest.raises(InvalidInput, match="project"):
        await operator.provision("Not A Project")
    with pytest.raises(InvalidInput, match="placement"):
        await operator.provision("acme9", placement="everywhere")  # type: ignore[arg-type]
