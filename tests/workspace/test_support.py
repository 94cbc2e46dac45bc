"""The page of what is supported says what the packages' metadata says, and names the Python that runs the tests."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def page(root: Path) -> str:
    return (root / "docs" / "reference" / "support.md").read_text()


def test_the_drivers_lower_bounds_are_those_of_the_packages(root: Path, page: str) -> None:
    written = {
        (package, extra, driver): bound
        for extras, driver, bound in re.findall(r"^\| (`.*`) \| (\S+) \| ([\d.]+) \|$", page, re.MULTILINE)
        for package, extra in re.findall(r"`(\S+)\[(\w+)\]`", extras)
    }
    assert written == {
        (package, extra, driver): bound
        for package in ("kmp-core", "kmp-storage")
        for extra, needed in extras_of(root, package).items()
        for driver, bound in needed.items()
    }


def extras_of(root: Path, package: str) -> dict[str, dict[str, str]]:
    """For each extra its drivers with their lower bounds, those of a sibling's extra included."""
    metadata: dict[str, Any] = tomllib.loads((root / "packages" / package / "pyproject.toml").read_text())
    dynamic = metadata["tool"].get("hatch", {}).get("metadata", {}).get("hooks", {}).get("uv-dynamic-versioning", {})
    extras = metadata["project"].get("optional-dependencies") or dynamic["optional-dependencies"]
    found: dict[str, dict[str, str]] = {}
    for extra, requirements in extras.items():
        if extra == "testing":
            continue
        found[extra] = {}
        for requirement in requirements:
            if sibling := re.match(r"(kmp-core)\[(\w+)\]", requirement):
                found[extra] |= extras_of(root, sibling[1])[sibling[2]]
            elif match := re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement):
                found[extra][match[1]] = match[2]
    return found


def test_the_python_that_runs_this_is_named_as_supported(root: Path, page: str) -> None:
    told = dict(re.findall(r"^\| (3\.[\d., ]+) \| (.*) \|$", page, re.MULTILINE))
    running = ".".join(map(str, sys.version_info[:2]))
    supported = [version for version, words in told.items() if words == "supported"]
    named = {version for versions in told for version in versions.split(", ")}
    assert running in named
    metadata = tomllib.loads((root / "packages" / "kmp-core" / "pyproject.toml").read_text())["project"]
    assert metadata["requires-python"] == f">={supported[0]}"
    classified = re.findall(r"Python :: (3\.\d+)", " ".join(metadata["classifiers"]))
    assert named == set(classified)
