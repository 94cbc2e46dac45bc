"""The fault stage of each capability: what a provider keeps while its server stalls, vanishes, dies and comes back.

```python
class TestMyCacheFaults(CacheFaults):
    @pytest.fixture
    def server(self, my_container):              # anything with host, port, pause, resume, kill, restart
        return my_container

    @pytest.fixture
    def make(self):
        return lambda host, port: MyCache(f"my://{host}:{port}", project="acme", pool_size=10)
```
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from kmp_core.errors import Unavailable
from kmp_core.testing.faults import ProviderFaults
from kmp_core.testing.wire import mark
from kmp_storage.protocols import Bucket, Cache, GraphStore, TimeSeriesStore
from kmp_storage.testing.graph import City, Flies
from kmp_storage.testing.timeseries import Flight, Reading

__all__ = ["BucketFaults", "CacheFaults", "GraphFaults", "TimeSeriesFaults", "redis_places"]

Calls = Mapping[str, Callable[[], Awaitable[object]]]

_REDIS_NODE = re.compile(rb"(\$\d+\r\n127\.0\.0\.1\r\n:)(\d+)\r\n")
_REDIS_PRIMARY = re.compile(rb"(\$\d+\r\n127\.0\.0\.1\r\n)\$\d+\r\n(\d+)\r\n")
_REDIS_ELSEWHERE = re.compile(rb"(-(?:MOVED|ASK) \d+ 127\.0\.0\.1:)(\d+)\r\n")

_START = datetime(2024, 1, 1, tzinfo=UTC)


class TimeSeriesFaults(ProviderFaults):
    """The fault stage of `TimeSeriesStore`."""

    capability: ClassVar[Any] = TimeSeriesStore

    async def write(self, provider: Any, number: int) -> None:
        when = _START + timedelta(seconds=number)
        await provider.append(Flight(time=when, flight=mark(number), origin=mark(number), minutes=float(number)))

    async def read(self, provider: Any, number: int) -> int | None:
        found = await provider.latest(Flight, where={"origin": mark(number)})
        return int(found[0].minutes) if found else None

    def calls(self, provider: Any, seconds: float) -> Calls:
        store: TimeSeriesStore = provider
        reading = Reading(time=_START, site="a", value=1.0)
        flight = Flight(time=_START, flight="new", origin="a", minutes=1.0)
        return {
            "append": lambda: store.append(reading, timeout=seconds),
            "append unique": lambda: store.append(flight, timeout=seconds),
            "append_all": lambda: store.append_all([reading] * 10, timeout=seconds),
            "read": lambda: _all(store.read(Flight, timeout=seconds)),
            "aggregate": lambda: store.aggregate(Flight, values={"minutes": "mean"}, every="1h", timeout=seconds),
            "latest": lambda: store.latest(Flight, by=("origin",), timeout=seconds),
            "erase": lambda: store.erase(Flight, where={"origin": "nowhere"}, timeout=seconds),
        }


class GraphFaults(ProviderFaults):
    """The fault stage of `GraphStore`."""

    capability: ClassVar[Any] = GraphStore

    async def write(self, provider: Any, number: int) -> None:
        await provider.merge(City(code=mark(number), people=number))

    async def read(self, provider: Any, number: int) -> int | None:
        found = await provider.get(City, mark(number))
        return None if found is None else int(found.people)

    def calls(self, provider: Any, seconds: float) -> Calls:
        store: GraphStore = provider
        city, other = City(code="A"), City(code="B")
        return {
            "merge": lambda: store.merge(city, timeout=seconds),
            "merge_all": lambda: store.merge_all([city, other], timeout=seconds),
            "get": lambda: store.get(City, "A", timeout=seconds),
            "delete": lambda: store.delete(City, "nowhere", timeout=seconds),
            "neighbours": lambda: store.neighbours(city, via=Flies, timeout=seconds),
            "edges": lambda: store.edges(Flies, timeout=seconds),
            "paths": lambda: store.paths(city, other, via=Flies, timeout=seconds),
        }


class CacheFaults(ProviderFaults):
    """The fault stage of `Cache`. What it calls acknowledged is what the server's persistence setting promises."""

    capability: ClassVar[Any] = Cache

    async def write(self, provider: Any, number: int) -> None:
        if not await provider.set(mark(number), b"%d" % number):
            raise Unavailable("an outage is a miss to this cache", backend="cache")

    async def read(self, provider: Any, number: int) -> int | None:
        return int(await provider.increment(mark(number), 0))  # an exchange of its own, and no outage is a miss to it

    async def read_beside(self, provider: Any, number: int) -> int | None:
        found = await provider.get(mark(number))
        return None if found is None else int(found)

    def calls(self, provider: Any, seconds: float) -> Calls:
        cache: Cache = provider
        return {
            "get": lambda: cache.get("key", timeout=seconds),
            "set": lambda: cache.set("key", b"1", timeout=seconds),
            "set if absent": lambda: cache.set("key", b"1", if_absent=True, timeout=seconds),
            "delete": lambda: cache.delete("key", timeout=seconds),
            "increment": lambda: cache.increment("counter", timeout=seconds),
            "get_or_load": lambda: cache.get_or_load("key", _load, ttl=60, timeout=seconds),
            "lock": lambda: _hold(cache, seconds),
        }


class BucketFaults(ProviderFaults):
    """The fault stage of `Bucket`."""

    capability: ClassVar[Any] = Bucket

    large_bytes: ClassVar[int] = 7 << 20
    """The size of a put that a provider sends in several requests."""

    async def write(self, provider: Any, number: int) -> None:
        await provider.put(mark(number), b"%d" % number, metadata={"number": str(number)})

    async def read(self, provider: Any, number: int) -> int | None:
        if number % 2:  # a list is another request than a get, and with some providers another client's
            found = [entry async for entry in provider.list(mark(number))]
            return int(found[0].metadata["number"]) if found else None
        entry = await provider.head(mark(number))
        content = b"" if entry is None else await provider.get(mark(number))
        return None if entry is None else int(content) if entry.metadata["number"] == content.decode() else -1

    def calls(self, provider: Any, seconds: float) -> Calls:
        bucket: Bucket = provider
        return {
            "put": lambda: bucket.put("key", b"2", timeout=seconds),
            "put if absent": lambda: bucket.put("new", b"2", if_absent=True, timeout=seconds),
            "put of a stream": lambda: bucket.put("large", _pieces(self.large_bytes), timeout=seconds),
            "get": lambda: bucket.get("key", timeout=seconds),
            "stream": lambda: _all(bucket.stream("key", timeout=seconds)),
            "head": lambda: bucket.head("key", timeout=seconds),
            "list": lambda: _all(bucket.list(timeout=seconds)),
            "copy": lambda: bucket.copy("key", "copy", timeout=seconds),
            "delete": lambda: bucket.delete("key", timeout=seconds),
        }


def redis_places(said: bytes, ports: Mapping[int, int]) -> bytes:
    """What the nodes of a Redis Cluster at 127.0.0.1, or Sentinels, say of where to go on: `translate` of a `Wire`."""

    def there(found: re.Match[bytes]) -> bytes:
        return b"%d" % ports.get(int(found[2]), int(found[2]))

    said = _REDIS_NODE.sub(lambda found: found[1] + there(found) + b"\r\n", said)
    said = _REDIS_ELSEWHERE.sub(lambda found: found[1] + there(found) + b"\r\n", said)
    return _REDIS_PRIMARY.sub(lambda found: b"%s$%d\r\n%s\r\n" % (found[1], len(there(found)), there(found)), said)


async def _all(items: AsyncIterator[object]) -> None:
    async for _ in items:
        continue


async def _load() -> bytes:
    return b"loaded"


async def _hold(cache: Cache, seconds: float) -> None:
    async with cache.lock("job", timeout=seconds):
        pass


async def _pieces(size: int) -> AsyncIterator[bytes]:
    for piece in _cut(size):
        yield piece


def _cut(size: int) -> Iterator[bytes]:
    for start in range(0, size, 1 << 20):
        yield b"x" * min(1 << 20, size - start)
