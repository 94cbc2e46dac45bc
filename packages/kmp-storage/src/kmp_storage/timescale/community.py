"""What only TimescaleDB's Community edition does. Experimental: no CI run executes it until an image of it is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from kmp_core.errors import InvalidInput, Unsupported
from kmp_core.postgres import Connection
from kmp_storage.series.shape import quoted
from kmp_storage.series.time_buckets import Every
from kmp_storage.timescale.codec import TimescaleCodec
from kmp_storage.timescale.schema import Place

__all__ = ["create_aggregate", "enable_compression"]

_VIEW = re.compile(r"[a-z][a-z0-9_]{0,47}", re.ASCII)
_FUNCTIONS = {"mean": "avg", "stddev": "stddev_samp"}


async def enable_compression(
    connection: Connection, place: Place, codec: TimescaleCodec[Any], older_than: timedelta
) -> None:
    """Compress chunks of that age, rows of the same tags together."""
    table = place.table(codec.series)
    by = ", ".join(map(quoted, codec.tags))
    segments = f", timescaledb.compress_segmentby = '{by}'" if by else ""
    await connection.execute(f"ALTER TABLE {table} SET (timescaledb.compress{segments})")
    await connection.execute(
        f"SELECT {place.function('add_compression_policy')}($1::regclass, $2::interval, if_not_exists => true)",
        table,
        older_than,
    )


async def create_aggregate(
    connection: Connection,
    place: Place,
    codec: TimescaleCodec[Any],
    name: str,
    *,
    every: Every,
    pairs: Sequence[tuple[str, str]],
    by: Sequence[str],
) -> None:
    """A view that the server keeps up to date."""
    if _VIEW.fullmatch(name) is None:
        raise InvalidInput("name", "must have 1 to 48 of a-z, 0-9 and '_', a letter first", example='"hourly_delays"')
    if every.unit != "clock":
        raise Unsupported("continuous aggregates of months", provider="this version", instead="days are supported")
    selected = [f"{place.function('time_bucket')}('{every.size} microseconds'::interval, \"time\") AS bucket"]
    selected += map(quoted, by)
    for field, aggregation in pairs:
        column, alias = quoted(field), quoted(f"{field}_{aggregation}")
        time = ', "time"' if aggregation in ("first", "last") else ""
        selected.append(f"{_FUNCTIONS.get(aggregation, aggregation)}({column}{time}) AS {alias}")
    groups = ", ".join(str(number) for number in range(1, len(by) + 2))
    await connection.execute(
        f"CREATE MATERIALIZED VIEW IF NOT EXISTS {quoted(place.schema)}.{quoted(name)} "  # noqa: S608
        f"WITH (timescaledb.continuous) AS SELECT {', '.join(selected)} FROM {place.table(codec.series)} "
        f"GROUP BY {groups} WITH NO DATA"
    )
