"""The Redis cache keeps the contract against the real server, with and without a near cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

import testbed
from kmp_core.testing import Make
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.testing.shared_cache import SharedCacheContract


@pytest.fixture
def url(redis_server: testbed.Server) -> Iterator[str]:
    with redis.Redis(port=redis_server.port, password=redis_server.password) as administrator:
        administrator.flushall()
    yield f"redis://default:{redis_server.password}@{redis_server.address}"


class TestRedisCache(SharedCacheContract):
    @pytest.fixture
    def make(self, url: str) -> Make:
        return lambda project="acme": RedisCache(url, project=project)

    @pytest.fixture
    def address(self, url: str) -> str:
        return url


class TestRedisCacheWithANearOne(SharedCacheContract):
    @pytest.fixture
    def make(self, url: str) -> Make:
        settings = RedisSettings.load(near_max_bytes=1 << 20)
        return lambda project="acme": RedisCache(url, project=project, settings=settings)

    @pytest.fixture
    def address(self, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("KMP_STORAGE_REDIS_NEAR_MAX_BYTES", str(1 << 20))
        return url
