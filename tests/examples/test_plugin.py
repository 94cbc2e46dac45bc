"""A third party's provider: built, installed as a wheel, chosen by its URL, and proved by the contract where it is."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"

SERVICE = """
import asyncio, sys
import directory_cache
from kmp_core import Service
from kmp_storage import Cache

async def main():
    async with Service("hello", project="acme") as service:
        cache = await service.get(Cache)
        print(type(cache).__name__, await cache.increment("runs"), directory_cache.__file__)

asyncio.run(main())
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KMP_", "PYTHON", "COV", "CI"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the plugin's wheel, which sees what is installed here behind it."""
    place = tmp_path_factory.mktemp("plugin")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", place, PLUGIN, cwd=place)
    (wheel,) = place.glob("directory_cache-*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        wheel,
        cwd=place,
    )
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip()
    # `addsitedir`, not a plain path, so that packages installed in place here are seen too.
    here = sysconfig.get_path("purelib")
    (Path(site) / "zz-behind.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    return python


def test_an_installed_plugin_answers_to_its_scheme(python: Path, tmp_path: Path) -> None:
    for number in ("1", "2"):
        name, count, file = run(python, "-c", SERVICE, cwd=tmp_path, KMP_STORAGE_CACHE_URL="directory:").split()
        assert (name, count) == ("DirectoryCache", number)
        assert Path(file).is_relative_to(python.parents[1]), "not the wheel that was installed"
    assert (tmp_path / ".kmp").is_dir()


def test_without_its_url_the_embedded_provider_answers(python: Path, tmp_path: Path) -> None:
    assert run(python, "-c", SERVICE, cwd=tmp_path).startswith("SqliteCache ")


def test_a_misspelt_scheme_names_the_plugins_own(python: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="directory"):
        run(python, "-c", SERVICE, cwd=tmp_path, KMP_STORAGE_CACHE_URL="directry:")


def test_the_installed_plugin_keeps_the_contract(python: Path, tmp_path: Path) -> None:
    # In a directory without our configuration of pytest: the suite carries its own marks.
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    tests = PLUGIN / "tests" / "test_directory_cache.py"
    (tmp_path / "test_it.py").write_text(tests.read_text())
    summary = run(python, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", cwd=tmp_path).splitlines()[-1]
    assert "passed" in summary
    assert "failed" not in summary
