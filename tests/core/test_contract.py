"""The contract suite goes green for a provider that keeps it, and red for one that breaks any promise."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SUITE = """
    import asyncio, pytest
    from kmp_core import Provider
    from kmp_core.project import Project
    from kmp_core.sqlite import Database
    from kmp_core.telemetry import Telemetry
    from kmp_core.testing import ProviderContract

    class Notes(Provider):
        def __init__(self, path, project="acme"):
            self.path = path / project / "notes.db"
            self.project = project
            self.telemetry = Telemetry("db", "sqlite", project=project, scope="notes")
            self.database = Database(
                self.path,
                project=Project(project),
                capability="storage.notes",
                migrations=["CREATE TABLE note (x) "],
            )

        async def write(self):
            self.ensure_open()
            with self.telemetry.call("write"):
                await self.database.write(lambda c: c.execute("INSERT INTO note VALUES (1)").rowcount)

        async def wrote(self):
            self.ensure_open()
            return bool(await self.database.read(lambda c: c.execute("SELECT 1 FROM note").fetchall()))

        async def _open(self):
            await self.database.open()

        async def _close(self):
            await self.database.close()

        async def _check(self):
            await self.wrote()

    {broken}

    class TestNotes(ProviderContract):
        @pytest.fixture
        def make(self, tmp_path):
            return lambda project="acme": {name}(tmp_path, project)

        async def write(self, provider):
            await provider.write()

        async def wrote(self, provider):
            return await provider.wrote()
"""

BREAKS = {
    "test_refuses_use_before_open": "async def write(self): ...",
    "test_refuses_use_after_close": "async def write(self): ...",
    "test_refuses_use_in_a_forked_child": "async def write(self): ...",
    "test_refuses_use_in_another_event_loop": (
        "async def write(self):\n    self._loop = asyncio.get_running_loop()\n    await super().write()"
    ),
    "test_refuses_to_reopen": (
        "async def open(self):\n    self._state = 'new'\n    self.__init__(self.path.parent.parent)\n"
        "    await super().open()"
    ),
    "test_refuses_to_open_twice": "async def open(self):\n    if self._state == 'new': await super().open()",
    "test_closes_as_often_as_asked": (
        "async def close(self):\n    if self._state == 'closed': raise RuntimeError('twice')\n    await super().close()"
    ),
    "test_warns_when_close_was_forgotten": "def __del__(self): ...",
    "test_projects_do_not_see_each_other": (
        "def __init__(self, path, project='acme'):\n    super().__init__(path, 'acme')"
    ),
    "test_a_call_is_one_span_and_one_point": (
        "async def write(self):\n    with self.telemetry.call('again'):\n        await super().write()"
    ),
    "test_ends_when_the_time_is_over_and_works_again": (
        "async def write(self):\n    self.ensure_open()\n    try:\n        await super().write()\n"
        "    except BaseException: pass"
    ),
    "test_works_after_a_cancellation_at_any_point": (
        "async def write(self):\n    self.ensure_open()\n    try:\n        await super().write()\n"
        "    except asyncio.CancelledError:\n        await self.database.close()\n        raise"
    ),
    "test_closes_beside_a_running_call": (
        "async def write(self):\n    self.ensure_open()\n    await asyncio.sleep(0.05)\n"
        "    if self.state != 'open': raise OSError('gone')"
    ),
    "test_opens_answers_and_closes": "async def _check(self): raise OSError('away')",
    "test_a_failed_call_tells_its_error_type": (
        "async def write(self):\n    self.ensure_open()\n"
        "    with self.telemetry.call('ok'): pass\n    await self.database.write(lambda c: None)\n"
    ),
}


def run_suite(
    directory: Path, broken: str = "", mode: str = "strict", only: str = ""
) -> subprocess.CompletedProcess[str]:
    name = "Notes"
    if broken:
        name = "Broken"
        broken = "class Broken(Notes):\n" + textwrap.indent(broken, "    ")
    source = textwrap.dedent(SUITE).format(broken=broken, name=name)
    (directory / "test_notes.py").write_text(source)
    options = ["-p", "no:cacheprovider", "-q", "--no-header", "-W", "error", "-o", f"asyncio_mode={mode}"]
    options += ["-o", "asyncio_default_fixture_loop_scope=function"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(["-k", only] if only else []), str(directory)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("KMP_")},
    )


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_a_provider_that_keeps_the_contract_passes_in_every_mode_of_pytest_asyncio(tmp_path, mode):
    done = run_suite(tmp_path, mode=mode)
    assert done.returncode == 0, done.stdout
    assert f"{len(BREAKS)} passed" in done.stdout


@pytest.mark.parametrize(("test", "broken"), BREAKS.items(), ids=BREAKS)
def test_a_provider_that_breaks_a_promise_fails_the_test_of_that_promise(tmp_path, test, broken):
    done = run_suite(tmp_path, broken, only=test)
    assert done.returncode == 1, done.stdout
    assert f"FAILED test_notes.py::TestNotes::{test}" in done.stdout
