"""Fixtures for users' tests, there as soon as kmp-core is installed.

    async def test_records_a_departure(kmp_service):
        kmp_service.replace(Cache).by(SqliteCache("memory:"))
        async with kmp_service as service:
            ...

pytest imports this module in every run, so nothing is imported here before a fixture is used, and the fixtures are
plain functions: they work with pytest-asyncio, with anyio's plugin, and in tests that are not asynchronous.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kmp_core.service import Service
    from kmp_core.testing import IsolatedEnvironment, ManualClock
    from kmp_core.tokens.authority import DevelopmentAuthority


def pytest_configure(config: pytest.Config) -> None:
    """Let `kmp_core.testing` be imported where pytest-asyncio, whose mark the contract suites carry, is not there."""
    if not config.pluginmanager.hasplugin("asyncio"):
        config.addinivalue_line("markers", "asyncio: needs pytest-asyncio")


@pytest.fixture
def kmp_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedEnvironment]:
    """Settings from nowhere: no `KMP_…` variable of yours, no `.env`, no `kmp.toml` upward; data in a new directory."""
    from kmp_core.testing import IsolatedEnvironment

    with pytest.MonkeyPatch.context() as monkeypatch:
        yield IsolatedEnvironment(monkeypatch, tmp_path_factory.mktemp("kmp"))


@pytest.fixture
def kmp_service(kmp_environment: IsolatedEnvironment) -> Service:
    """A service, not open yet, with every capability embedded and its data in a new directory."""
    from kmp_core.service import Service

    return Service("test")


@pytest.fixture
def kmp_clock() -> ManualClock:
    """A clock that stands still until `advance`."""
    from kmp_core.testing import ManualClock

    return ManualClock()


@pytest.fixture
def kmp_authority(kmp_clock: ManualClock) -> DevelopmentAuthority:
    """An authority on `kmp_clock`: `issue(project=…, service=…, audience=…)` gives a token for any identity.

    Verify with `kmp_authority.verifier(audience=…)`, which reads the same clock.
    """
    from kmp_core.tokens.authority import DevelopmentAuthority

    return DevelopmentAuthority(environment="test", clock=kmp_clock.time)
