"""A cache in Redis or Valkey: one server, Sentinel, or Cluster, with the keys of each project its own."""

from kmp_storage.redis.cache import RedisCache
from kmp_storage.redis.limits import Allowance
from kmp_storage.settings.redis import RedisSettings

__all__ = ["Allowance", "RedisCache", "RedisSettings"]
