"""`rediss:` encrypts, and talks to no server whose certificate does not hold."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from kmp_core.errors import ConfigurationError, Unavailable
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.testing.cache import eventually
from redis_ways import Certified


@pytest.fixture
def certified(redis_over_tls: Certified) -> Certified:
    return redis_over_tls


def cache_at(certified: Certified, *, host: str = "localhost", scheme: str = "rediss", **settings: Any) -> RedisCache:
    url = f"{scheme}://default:{certified.server.password}@{host}:{certified.server.port}"
    # Patient: on a busy machine a handshake takes its time, and what is too slow is an outage, which is a miss.
    loaded = RedisSettings.load(**{"timeout": "20s", "connect_timeout": "20s", **settings})
    return RedisCache(url, project="private", settings=loaded)


async def test_it_works_over_tls(certified: Certified) -> None:
    async with cache_at(certified, tls_ca_file=certified.authority, near_max_bytes=1 << 20) as cache:
        assert await cache.set("key", b"1")
        assert await cache.get("key") == b"1"
        (channel,) = cache._connections._idle
        assert isinstance(channel._transport.get_extra_info("ssl_object"), ssl.SSLObject)


async def test_a_server_of_another_authority_is_refused(certified: Certified) -> None:
    for settings in ({"tls_ca_file": certified.stranger}, {}):
        with pytest.raises(Unavailable, match="certificate"):  # though an outage would be a miss
            await cache_at(certified, **settings).open()

    async def closed() -> bool:
        sockets: Any = asyncio.get_running_loop()
        return len(sockets._selector.get_map()) == 1  # the loop's own

    await eventually(closed)  # asyncio closes what failed to shake hands a little later
    await asyncio.sleep(0)  # and lets go of it in the turn after that


def test_a_file_of_authorities_that_is_not_there_is_a_fault_of_the_configuration() -> None:
    with pytest.raises(ConfigurationError, match=r"KMP_STORAGE_REDIS_TLS_CA_FILE: .*; for example"):
        RedisSettings.load(tls_ca_file="/nowhere/authority.pem")


async def test_a_server_of_another_name_is_refused(certified: Certified) -> None:
    with pytest.raises(Unavailable, match="certificate"):
        await cache_at(certified, host="127.0.0.1", tls_ca_file=certified.authority).open()


async def test_a_plain_connection_to_a_server_with_tls_ends_in_time(certified: Certified) -> None:
    with pytest.raises(Unavailable):
        await cache_at(certified, scheme="redis", outage="error").open()
