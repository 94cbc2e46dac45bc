"""What a package declares to need is what it imports, so that nobody installs what is not used, or misses what is."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

PACKAGES = ("kmp-core", "kmp-messaging", "kmp-storage")


def declared(root: Path, package: str) -> tuple[set[str], set[str]]:
    """The modules of the dependencies, and those of the extras."""
    content = tomllib.loads((root / "packages" / package / "pyproject.toml").read_text())
    hook = content["tool"]["hatch"].get("metadata", {}).get("hooks", {}).get("uv-dynamic-versioning", {})
    always = [*content["project"].get("dependencies", ()), *hook.get("dependencies", ())]
    optional = content["project"].get("optional-dependencies") or hook.get("optional-dependencies", {})
    extras = [one for some in optional.values() for one in some]
    # An extra may ask for an extra of the core, or of a driver: `redis[hiredis]`.
    extras += [inner for one in extras for inner in inside(one)]
    return modules(always), modules(extras)


def inside(requirement: str) -> list[str]:
    """What the extras in a requirement's brackets bring, as far as they are named like a module or are the core's."""
    match = re.fullmatch(r"([\w-]+)\[(\w+)\].*", requirement)
    if match is None:
        return []
    core = tomllib.loads((Path(__file__).parents[2] / "packages/kmp-core/pyproject.toml").read_text())
    known: list[str] = core["project"]["optional-dependencies"].get(match[2], [match[2]])
    return known


def modules(requirements: list[str]) -> set[str]:
    names = {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}
    by_distribution = {
        (normal(distribution), module)
        for module, distributions in metadata.packages_distributions().items()
        for distribution in distributions
    }
    ours = {name.replace("-", "_") for name in names if name.startswith("kmp-")}
    # One distribution may bring several modules; the one that speaks its name is meant.
    named = {module for name in names for distribution, module in by_distribution if distribution == name}
    return ours | {module for module in named if not module.startswith("_")}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(root: Path, package: str) -> set[str]:
    found: set[str] = set()
    for file in (root / "packages" / package / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {package.replace("-", "_")}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_dependency_is_imported_and_every_import_is_declared(root: Path, package: str) -> None:
    always, extras = declared(root, package)
    used = imported(root, package)
    assert always - used == set()
    # Siblings are pinned to the core and have what it has; pydantic's core comes with it; pytest loads its own plugin.
    known = declared(root, "kmp-core")[0] | {"pydantic_core", "pytest"}
    assert used - always - extras - known == set()
