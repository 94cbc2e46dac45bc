"""The Redis cache keeps the contract against the real server, with and without a near cache.

It runs as each project's own user, whom the server lets do nothing but what the cache needs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest

import testbed
from kmp_core.secrets import Secret
from kmp_core.testing import Make
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.shared_cache import SharedCacheContract

PASSWORD = Secret("correct horse")


@pytest.fixture
async def server(redis_server: testbed.Server) -> AsyncIterator[str]:
    """The address of a Redis on which both projects of the contract have their own users, and nothing stored."""
    async with RedisProvisioner(f"redis://default:{redis_server.password}@{redis_server.address}") as admin:
        for project in ("acme", "acme2"):
            await admin.provision(project, password=PASSWORD)
        yield redis_server.address
        for project in ("acme", "acme2"):
            await admin.deprovision(project, force=True)


def url(server: str, project: str = "acme") -> str:
    return f"redis://{project}:{quote(PASSWORD.reveal())}@{server}"


class TestRedisCache(SharedCacheContract):
    @pytest.fixture
    def make(self, server: str) -> Make:
        return lambda project="acme": RedisCache(url(server, project), project=project)

    @pytest.fixture
    def address(self, server: str) -> str:
        return url(server)


class TestRedisCacheWithANearOne(SharedCacheContract):
    @pytest.fixture
    def make(self, server: str) -> Make:
        settings = RedisSettings.load(near_max_bytes=1 << 20)
        return lambda project="acme": RedisCache(url(server, project), project=project, settings=settings)

    @pytest.fixture
    def address(self, server: str, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("KMP_STORAGE_REDIS_NEAR_MAX_BYTES", str(1 << 20))
        return url(server)
