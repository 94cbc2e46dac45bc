"""What importing the packages costs and drags in; static layers are import-linter's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ["kmp_core", "kmp_storage", "kmp_messaging"]

DRIVERS = {
    "aiokafka", "aiosqlite", "asyncpg", "fastapi", "httpx", "msgspec", "neo4j", "obstore",
    "opentelemetry.sdk", "psycopg", "pytest", "redis", "sqlite3", "starlette", "uvicorn",
}  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """The names of all modules that a fresh interpreter has after the statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    # Measuring coverage loads SQLite itself.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_no_driver(package: str) -> None:
    assert loaded_by(f"import {package}") & DRIVERS == set()


@pytest.mark.parametrize("package", ["kmp_storage", "kmp_messaging"])
def test_a_sibling_loads_the_core_and_no_other_sibling(package: str) -> None:
    loaded = {name.partition(".")[0] for name in loaded_by(f"import {package}")}
    assert loaded & set(PACKAGES) == {package, "kmp_core"}


def test_nothing_but_the_modules_for_tests_needs_pytest(root: Path) -> None:
    """A service's container has no pytest: it is no dependency of the packages."""
    code = """
import importlib, pkgutil, re, sys
sys.modules["pytest"] = None
for root in sys.argv[1:]:
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, root + "."):
        if not re.search(r"testing|pytest_plugin|__main__", module.name):
            importlib.import_module(module.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *PACKAGES], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_settings_are_listed_where_no_extra_is_installed() -> None:
    """The settings of a server's store tell what could be set; its driver is needed only to use it."""
    missing = sorted(DRIVERS | {"hiredis", "obstore"})
    code = f"import sys\nfor name in {missing!r}:\n    sys.modules[name] = None\n"
    code += "from importlib import metadata\n[point.load() for point in metadata.entry_points(group='kmp.settings')]"
    loaded_by(code.replace("'sqlite3', ", ""))
