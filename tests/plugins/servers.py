"""Fixtures for the real servers, each started once a session, in parallel, and only where a collected test needs it.

A test asks for `timescaledb`, `neo4j`, `redis_server`, `kafka`, `s3` or `azurite` and gets a `testbed.Server`. Where no
container engine answers the tests that need one are skipped, and the summary says in one line how many and how to have
them; in CI that is a failure. What the tests leave on a server fails the run.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import engine
import pytest

import faults
import leftovers
import server_leftovers
import testbed

FIXTURES = {
    "timescaledb": "timescaledb",
    "neo4j": "neo4j",
    "second_neo4j": "neo4j",
    "redis_server": "redis",
    "redis_cluster": "redis_cluster",
    "kafka": "kafka",
    "s3": "s3",
    "azurite": "azurite",
}
"""The name of a fixture, and the recipe that it is started by."""

NO_ENGINE = "no container engine answers"
HOW = "install Docker, or run `python3 dev.py servers` as root, which installs and starts Debian's"
WITHOUT = "without an engine"
"""What pytest counts the tests as that were skipped because no engine answers."""

READY_SECONDS = 40
"""How long at most all servers should take together, once their images exist. Printed, and not asserted."""

_needed = pytest.StashKey[list[str]]()
_notes = pytest.StashKey[list[str]]()


@pytest.hookimpl(trylast=True)  # when it is known which tests stay
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[_needed] = sorted({name for item in items for name in names_in(item) if name in FIXTURES})


def names_in(item: pytest.Item) -> list[object]:
    """The fixtures that a test asks for, by argument or by a parameter that names one."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return [*getattr(item, "fixturenames", ()), *(value for value in parameters if isinstance(value, str))]


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[testbed.Server]]]:
    """Everything that this run needs, each on its way."""
    if not engine.answers():
        message = f"{NO_ENGINE}: {HOW}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    testbed.remove_orphans()
    names = request.config.stash[_needed]
    began, seconds = time.monotonic(), dict[str, float]()

    def start(name: str) -> testbed.Server:
        server = testbed.start(name, testbed.RECIPES[FIXTURES[name]])
        seconds[name] = time.monotonic() - began
        return server

    with ThreadPoolExecutor(max(1, len(names))) as pool:
        started = {name: pool.submit(start, name) for name in names}
        try:
            yield started
        finally:
            running = {name: future.result() for name, future in started.items() if future.exception() is None}
            left = [server_leftovers.left_on(server, FIXTURES[name]) for name, server in running.items()]
            request.config.stash[leftovers.elsewhere] = [line for lines in left for line in lines]
            request.config.stash[_notes] = notes(running, seconds)
            for server in running.values():
                server.stop()


def notes(running: dict[str, testbed.Server], seconds: dict[str, float]) -> list[str]:
    """What the summary tells of the servers."""
    lines = []
    if seconds:
        last = max(seconds.values())
        late = (
            "" if last <= READY_SECONDS else f", later than {READY_SECONDS} s: images were made, or the machine is busy"
        )
        each = ", ".join(f"{name} {taken:.0f}" for name, taken in seconds.items())
        lines.append(f"servers started side by side, all ready after {last:.0f} s{late} ({each})")
    import postgres_bed

    if "timescaledb" in running and not asyncio.run(postgres_bed.is_community(running["timescaledb"])):
        lines.append(
            "TimescaleDB Community did not run, so that tier stays experimental: KMP_TEST_IMAGE_TIMESCALEDB names no "
            "image that has it"
        )
    return lines


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
    """Count what was skipped for want of an engine apart, so that the summary has one line for all of it."""
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    return (WITHOUT, "s", "SKIPPED") if NO_ENGINE in reason else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_notes, []):
        terminalreporter.write_line(line)
    if skipped := len(terminalreporter.stats.get(WITHOUT, [])):
        terminalreporter.write_line(f"{skipped} tests were skipped, since {NO_ENGINE}: {HOW}", yellow=True)


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
azurite = _fixture("azurite")
