"""The fixtures for users' tests, seen from a user's own test directory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(directory: Path, source: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_users.py").write_text(textwrap.dedent(source))
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-W", "error"),
            *("-o", "asyncio_default_fixture_loop_scope=function"),
            *options,
            str(directory),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ) | variables,
    )


def test_settings_are_isolated_from_variables_env_files_and_manifests_upward(tmp_path):
    (tmp_path / "kmp.toml").write_text('project = "stray"\n[settings]\nshutdown_grace = "1s"\n')
    (tmp_path / ".env").write_text("KMP_SERVICE=stray\n")
    directory = tmp_path / "deep"
    directory.mkdir()
    (directory / ".env").write_text("KMP_SERVICE=stray\n")
    done = run(
        directory,
        """
        import os, pytest
        from kmp_core import Service

        @pytest.mark.asyncio
        async def test_isolated(kmp_environment):
            async with Service() as service:
                context = service.context
            assert (context.project, context.service, context.environment) == ("local", "service", "dev")
            assert str(context.directory).startswith(str(kmp_environment.directory))

        @pytest.mark.asyncio
        async def test_the_manifest_and_variables_of_the_test_count(kmp_environment):
            kmp_environment.manifest('project = "acme"')
            kmp_environment.set("KMP_SERVICE", "delays")
            async with Service() as service:
                assert (service.context.project, service.context.service) == ("acme", "delays")

        def test_the_variables_are_back():
            assert os.environ["KMP_PROJECT"] == "stray"
        """,
        KMP_PROJECT="stray",
        KMP_ENVIRONMENT="prod",
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_a_service_with_a_replaced_provider(tmp_path):
    done = run(
        tmp_path,
        """
        import pytest
        from typing import Protocol
        from kmp_core import Provider, Resource, capability

        @capability("test.greeter", default="none:")
        class Greeter(Resource, Protocol):
            async def greet(self) -> str: ...

        class Fixed(Provider):
            async def greet(self):
                self.ensure_open()
                return "hello"
            async def _open(self): ...
            async def _close(self): ...
            async def _check(self): ...

        @pytest.mark.asyncio
        async def test_greets(kmp_service):
            kmp_service.replace(Greeter).by(Fixed())
            async with kmp_service as service:
                assert await (await service.get(Greeter)).greet() == "hello"
        """,
    )
    assert "1 passed" in done.stdout, done.stdout


def test_sync_tests_need_no_plugin_for_async_ones(tmp_path):
    done = run(
        tmp_path,
        """
        def test_tokens(kmp_authority, kmp_clock):
            assert kmp_authority.issue(project="skyline", service="departures", audience="delays").count(".") == 2
            kmp_clock.advance("1h")

        def test_service(kmp_service):
            import asyncio
            async def main():
                async with kmp_service as service:
                    assert service.context.project == "local"
            asyncio.run(main())
        """,
        *("-p", "no:asyncio", "-p", "no:anyio", "-W", "ignore::pytest.PytestConfigWarning"),
    )
    assert "2 passed" in done.stdout, done.stdout


def test_the_plugin_costs_a_run_that_does_not_use_it_nothing_heavy(tmp_path):
    done = run(
        tmp_path,
        """
        import sys
        def test_light():
            heavy = {"structlog", "tenacity", "cryptography", "jwt", "httpx", "opentelemetry", "pydantic_settings"}
            assert not heavy & set(sys.modules)
            assert "kmp_core.pytest_plugin" in sys.modules
        """,
        *("-p", "no:anyio"),
    )
    assert "1 passed" in done.stdout, done.stdout


async def test_identities_and_tokens_on_demand_follow_the_clock(kmp_authority, kmp_clock):
    from kmp_core.errors import Unauthenticated

    verifier = kmp_authority.verifier(audience="delays")
    token = kmp_authority.issue(project="skyline", service="departures", audience="delays")
    principal = await verifier.verify(token)
    assert (principal.project, principal.service) == ("skyline", "departures")
    kmp_clock.advance("1h")
    with pytest.raises(Unauthenticated):
        await verifier.verify(token)


async def test_the_clock_stands_still_until_it_is_advanced(kmp_clock):
    woken = []

    async def sleep(seconds: float) -> None:
        await kmp_clock.sleep(seconds)
        woken.append(seconds)

    before = kmp_clock.now()
    tasks = [asyncio.create_task(sleep(seconds)) for seconds in (30, 10, 20)]
    await asyncio.sleep(0)
    assert kmp_clock.sleeping == 3
    kmp_clock.advance("25s")
    await asyncio.sleep(0)
    assert woken == [10, 20]
    kmp_clock.advance("1h")
    await asyncio.gather(*tasks)
    assert woken == [10, 20, 30]
    assert (kmp_clock.now() - before).total_seconds() == 3625
    assert kmp_clock.monotonic() == kmp_clock.time() == kmp_clock.now().timestamp()
