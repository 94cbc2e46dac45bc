"""One table per series in the project's schema: a hypertable where the extension is, evolved by addition alone.

The catalogue `_kmp_series` tells what a table holds, so that a class which does not fit is refused with advice before
anything is written. Whoever changes a table holds the schema's advisory lock, so replicas may start side by side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from kmp_core.postgres import Connection
from kmp_storage.columns import kept_kind
from kmp_storage.series.shape import Series, check, declared_fields, quoted
from kmp_storage.timescale.codec import SQL_TYPES, TimescaleCodec

__all__ = ["Place", "Tier", "detect", "find", "make_catalogue", "prepare"]

Tier = Literal["community", "apache", "plain"]
"""What the server can do: TimescaleDB Community, TimescaleDB's Apache-2 edition, PostgreSQL without the extension."""

_LOCK_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a project's tables are, and what the server there can do."""

    schema: str
    tier: Tier
    extension_schema: str

    def table(self, series: str) -> str:
        """The table of a series, for SQL, under its own name: ours begin with an underscore, and none of them."""
        return f"{quoted(self.schema)}.{quoted(series)}"

    @property
    def catalogue(self) -> str:
        """The table that tells what there is."""
        return f"{quoted(self.schema)}._kmp_series"

    def function(self, name: str) -> str:
        """A function of the extension, for SQL."""
        return f"{quoted(self.extension_schema)}.{name}"


async def detect(connection: Connection, schema: str) -> Place:
    """Ask the server what it can do."""
    row = await connection.fetch_row(
        "SELECT n.nspname, current_setting('timescaledb.license', true) AS license "
        "FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'timescaledb'"
    )
    if row is None:
        return Place(schema, "plain", "public")
    return Place(schema, "community" if row["license"] == "timescale" else "apache", row["nspname"])


async def make_catalogue(connection: Connection, place: Place) -> None:
    """Make the schema, where the role may, and the catalogue. Inside a transaction."""
    there = await connection.fetch_value("SELECT to_regclass($1) IS NOT NULL", place.catalogue)
    if there:
        return
    await lock(connection, place)
    if not await connection.fetch_value("SELECT to_regnamespace($1) IS NOT NULL", quoted(place.schema)):
        await connection.execute(f"CREATE SCHEMA {quoted(place.schema)}")
    await connection.execute(
        f"CREATE TABLE IF NOT EXISTS {place.catalogue} ("
        "name text PRIMARY KEY, fields text NOT NULL, tags text NOT NULL, unique_fields text NOT NULL, "
        "retention interval, hypertable boolean NOT NULL)"
    )


async def lock(connection: Connection, place: Place) -> None:
    """Hold everybody else's changes to the tables up until the transaction ends."""
    await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"kmp:{place.schema}")


async def find(connection: Connection, place: Place, series: str) -> Series | None:
    """What is known of a series, or None before its first use."""
    row = await connection.fetch_row(
        f"SELECT fields, tags, unique_fields, retention FROM {place.catalogue} WHERE name = $1",  # noqa: S608 - allow-listed
        series,
    )
    if row is None:
        return None
    kept = None if row[3] is None else row[3] // timedelta(microseconds=1)
    fields = {name: (kind, missing) for name, (kind, missing) in json.loads(row[0]).items()}
    return Series(fields, tuple(json.loads(row[1])), tuple(json.loads(row[2])), kept)


async def prepare(connection: Connection, place: Place, codec: TimescaleCodec[Any], chunk_interval: timedelta) -> None:
    """Make or extend the table, inside a transaction. Raises `Conflict` where the class does not fit what is stored."""
    await lock(connection, place)
    stored = await find(connection, place, codec.series)
    declared = declared_fields(codec)
    if stored is None:
        await _create(connection, place, codec, chunk_interval)
        await _save(connection, place, codec, declared)
        return
    check(codec, stored)
    for name, (kind, _) in declared.items():
        if name not in stored.fields:
            column = f"{quoted(name)} {SQL_TYPES[kind]}"
            await connection.execute(f"ALTER TABLE {place.table(codec.series)} ADD COLUMN {column}")
    await _index_tags(connection, place, codec)
    # A field of another version of the class stays known. None becomes stricter, or it would have been refused.
    await _save(connection, place, codec, {**stored.fields, **declared})


async def _create(connection: Connection, place: Place, codec: TimescaleCodec[Any], chunk_interval: timedelta) -> None:
    columns = ", ".join(
        f"{quoted(field.name)} {SQL_TYPES[kept_kind(field)]}{' NOT NULL' if field.name == 'time' else ''}"
        for field in codec.fields.values()
    )
    table = place.table(codec.series)
    await connection.execute(f"CREATE TABLE {table} ({columns})")
    if place.tier != "plain":
        if codec.retention is not None:
            chunk_interval = max(timedelta(minutes=1), min(chunk_interval, codec.retention / 8))
        await connection.execute(
            f"SELECT {place.function('create_hypertable')}"
            "($1::regclass, 'time'::name, chunk_time_interval => $2::interval, create_default_indexes => false)",
            table,
            chunk_interval,
        )
    if codec.unique:
        key = ", ".join(map(quoted, ("time", *codec.unique)))
        await connection.execute(f"CREATE UNIQUE INDEX ON {table} ({key})")
    else:
        await connection.execute(f'CREATE INDEX ON {table} ("time")')
    await _index_tags(connection, place, codec)


async def _index_tags(connection: Connection, place: Place, codec: TimescaleCodec[Any]) -> None:
    for tag in codec.tags:
        # A name of at most 63 bytes that tells the pair: series and tag may have 48 and 63.
        digest = await connection.fetch_value("SELECT md5($1)", f"{codec.series}.{tag}")
        name = quoted(f"tag_{codec.series[:20]}_{digest[:12]}")
        await connection.execute(
            f'CREATE INDEX IF NOT EXISTS {name} ON {place.table(codec.series)} ({quoted(tag)}, "time")'
        )


async def _save(
    connection: Connection, place: Place, codec: TimescaleCodec[Any], fields: dict[str, tuple[str, bool]]
) -> None:
    await connection.execute(
        f"INSERT INTO {place.catalogue} VALUES ($1, $2, $3, $4, $5, $6) "  # noqa: S608 - allow-listed
        "ON CONFLICT (name) DO UPDATE SET fields = excluded.fields, tags = excluded.tags, "
        "unique_fields = excluded.unique_fields, retention = excluded.retention",
        codec.series,
        json.dumps(fields),
        json.dumps(codec.tags),
        json.dumps(codec.unique),
        codec.retention,
        place.tier != "plain",
    )
