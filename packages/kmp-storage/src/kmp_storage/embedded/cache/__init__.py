"""A cache that needs no server."""

from kmp_storage.embedded.cache.provider import SqliteCache
from kmp_storage.embedded.cache.settings import CacheSettings

__all__ = ["CacheSettings", "SqliteCache"]
