"""Measurements on TimescaleDB, or on PostgreSQL without the extension: a project's own tables in its own role."""

from kmp_core.plugins import extra

with extra("asyncpg", install="kmp-storage[timescale]"):
    import kmp_core.postgres as _postgres  # noqa: F401 - before all that needs it, so that the extra named is this one

from kmp_storage.settings.timescale import TimescaleSettings
from kmp_storage.timescale.schema import Tier
from kmp_storage.timescale.store import TimescaleStore

__all__ = ["Tier", "TimescaleSettings", "TimescaleStore"]
