"""Fixtures for the real servers, each started once a session, in parallel, and only where a collected test needs it.

A test asks for `timescaledb`, `neo4j`, `redis_server`, `kafka` or `s3` and gets a `testbed.Server`. Where no container
engine answers the tests that need one are skipped, and the summary says in one line how to have them; in CI that is a
failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import engine
import pytest

import faults
import testbed

FIXTURES = {
    "timescaledb": "timescaledb",
    "neo4j": "neo4j",
    "second_neo4j": "neo4j",
    "redis_server": "redis",
    "redis_cluster": "redis_cluster",
    "kafka": "kafka",
    "s3": "s3",
}
"""The name of a fixture, and the recipe that it is started by."""

HOW = "install Docker, or run `python3 dev.py servers` as root, which installs and starts Debian's"

_needed = pytest.StashKey[set[str]]()
_running = pytest.StashKey[dict[str, "Future[testbed.Server]"]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[_needed] = {name for item in items for name in names_in(item) if name in FIXTURES}


def names_in(item: pytest.Item) -> list[object]:
    """The fixtures that a test asks for, by argument or by a parameter that names one."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return [*getattr(item, "fixturenames", ()), *(value for value in parameters if isinstance(value, str))]


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[testbed.Server]]]:
    """Everything that this run needs, each on its way."""
    if not engine.answers():
        message = f"no container engine answers: {HOW}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    testbed.remove_orphans()
    names = request.config.stash[_needed]
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        started = {name: pool.submit(testbed.start, name, testbed.RECIPES[FIXTURES[name]]) for name in sorted(names)}
        try:
            yield started
        finally:
            for future in started.values():
                if future.exception() is None:
                    future.result().stop()


@pytest.fixture(scope="session")
def proxies(servers: dict[str, Future[testbed.Server]]) -> Iterator[faults.Proxies]:
    """Proxies that slow, cut or swallow what goes to a server."""
    started = faults.Proxies()
    started.start()
    yield started
    started.stop()


def _fixture(name: str) -> object:
    @pytest.fixture(scope="session", name=name)
    def server(servers: dict[str, Future[testbed.Server]]) -> testbed.Server:
        return servers[name].result()

    server.__doc__ = f"A running {FIXTURES[name]}."
    return server


timescaledb = _fixture("timescaledb")
neo4j = _fixture("neo4j")
second_neo4j = _fixture("second_neo4j")
redis_server = _fixture("redis_server")
redis_cluster = _fixture("redis_cluster")
kafka = _fixture("kafka")
s3 = _fixture("s3")
