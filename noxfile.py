"""Every check of this repository, by the name a newcomer expects. `python3 dev.py` lists them and runs one.

Sessions run in the environment that `dev.py` made; `wheels` and `minimum` make one of their own.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nox

ROOT = Path(__file__).parent
PACKAGES = sorted(file.parent for file in ROOT.glob("packages/*/pyproject.toml"))
EXAMPLES = sorted(file.parent for file in ROOT.glob("examples/*/pyproject.toml"))
SOURCES = [
    "packages",
    "examples",
    "benchmarks",
    "docs/conf.py",
    "tests/plugins",
    "tests/workspace",
    ".ci",
    "noxfile.py",
    "dev.py",
]

ENDS_ITSELF: dict[str, Any] = {"interrupt_timeout": 60, "terminate_timeout": 10}
"""Ctrl-C belongs to the program: it ends and removes what it started before nox loses patience."""

nox.options.default_venv_backend = "none"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["tests", "lint", "types", "layers", "docs"]


def python(session: nox.Session, *arguments: str | Path) -> None:
    """Run Python with these arguments in the session's environment."""
    session.run("python" if session.virtualenv.bin_paths else sys.executable, *map(str, arguments))


@nox.session
def demo(session: nox.Session) -> None:
    """Watch three services exchange a year of flights; `--limit 20000` is a quick look, `--servers` has real stores."""
    program, arguments = ["-m", "skyline"], list(session.posargs)
    if "--servers" in arguments:
        arguments.remove("--servers")
        program = ["tests/plugins/stack.py", "--demo"]
    session.run(sys.executable, *program, *arguments, env={"PYTHONPATH": "examples"}, **ENDS_ITSELF)


@nox.session
def servers(session: nox.Session) -> None:
    """Start real servers for hand work and print the variables to paste; `dev.py servers --stop` removes them."""
    session.run(sys.executable, "tests/plugins/stack.py", *session.posargs, **ENDS_ITSELF)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, and show which lines they reached."""
    coverage = [sys.executable, "-m", "coverage"]
    session.run(*coverage, "erase")
    try:
        session.run(*coverage, "run", "-m", "pytest", *session.posargs)
    finally:
        session.run(*coverage, "combine", "--quiet", success_codes=[0, 1], silent=True)
        total = session.run(*coverage, "report", "--format=total", success_codes=[0, 1, 2], silent=True)
        session.log(f"lines and branches reached: {str(total).strip()} % (.venv/bin/coverage report tells which not)")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, forbidden text and the pre-commit configuration."""
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "ruff", "format", "--check", ".")
    python(session, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml")
    python(session, ".ci/forbidden.py")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with both checkers, as strictly as users' own code must pass; the tests less strictly."""
    python(session, "-m", "mypy", *SOURCES)
    for folder in product_tests()[:-2]:  # one by one: names of files repeat
        python(session, "-m", "mypy", "--config-file=.ci/mypy-tests.ini", folder)
    python(session, "-m", "pyright", "--warnings", "--pythonpath", sys.executable)


@nox.session
def layers(session: nox.Session) -> None:
    """Check that siblings import the core alone, and that the core loads no driver."""
    # The command, not `-m`: the package has no __main__.
    session.run(str(Path(sys.executable).with_name("lint-imports")))
    python(session, "-m", "pytest", "-q", "tests/workspace/test_layers.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into `site/`; a warning is an error."""
    python(session, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html", "docs", "site")
    session.log(f"open {ROOT / 'site' / 'index.html'}")


@nox.session
def bench(session: nox.Session) -> None:
    """Run every benchmark, or the ones named: rates, and ratios to the bare library."""
    scripts = [Path("benchmarks") / f"{name}.py" for name in session.posargs] or sorted(Path("benchmarks").glob("*.py"))
    for script in scripts:
        python(session, script)


@nox.session(venv_backend="virtualenv", reuse_venv=False)
def wheels(session: nox.Session) -> None:
    """Build every distribution, install the wheels where no sources are, and run the tests against them."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for package in [*PACKAGES, *EXAMPLES]:
        # The wheel is built from the source distribution, so both are known to work.
        session.run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(package),
                    external=True, silent=True)  # fmt: skip
    session.run(sys.executable, ".ci/distributions.py", str(dist), external=True)
    session.install("--quiet", "--require-hashes", "-r", "requirements/development.txt")
    session.install("--quiet", "--no-deps", "--no-index", *map(str, sorted(dist.glob("*.whl"))))
    run_away_from_the_sources(session)


@nox.session(venv_backend="virtualenv", reuse_venv=False)
def minimum(session: nox.Session) -> None:
    """Run the tests with the lowest version allowed of everything that the packages depend on."""
    session.install("--quiet", "--require-hashes", "-r", "requirements/minimum.txt")
    session.install("--quiet", "--no-deps", "--no-build-isolation", *editable())
    python(session, "-m", "pip", "check")
    python(session, "-m", "pytest", *(session.posargs or product_tests()))


@nox.session
def pins(session: nox.Session) -> None:
    """Choose versions anew: the newest for development, the lowest allowed for `minimum`."""
    metadata = [str(package.relative_to(ROOT) / "pyproject.toml") for package in PACKAGES]
    common = ["--quiet", "--universal", "--python-version=3.11", "--generate-hashes", "--no-emit-index-url"]
    common += ["--no-header", "--all-extras", "--no-emit-package=kmp-core"]
    for name, resolution in (("development", "highest"), ("minimum", "lowest-direct")):
        files = [f"--output-file=requirements/{name}.txt", f"requirements/{name}.in", *metadata]
        python(session, "-m", "uv", "pip", "compile", *common, f"--resolution={resolution}", *files, *session.posargs)


def editable() -> list[str]:
    """The arguments that install every distribution of this clone in place."""
    return [word for package in [*PACKAGES, *EXAMPLES] for word in ("-e", str(package))]


def run_away_from_the_sources(session: nox.Session) -> None:
    """Run the tests in a copy of everything but the packages, so that only what is installed can be imported."""
    # Outside the clone, whose configuration what runs in a directory below it would find.
    with tempfile.TemporaryDirectory(prefix="kmp-away-") as directory:
        copy = Path(directory) / "away"
        shutil.copytree(ROOT, copy, ignore=not_the_sources)
        with session.chdir(copy):
            python(session, "-m", "pip", "check")
            python(session, "-m", "pytest", *(session.posargs or product_tests()))


def product_tests() -> list[str]:
    """The tests of what users install, fences included; not the repository's own tools, nor real servers."""
    own = {"plugins", "servers", "workspace"}
    folders = [folder for folder in sorted((ROOT / "tests").iterdir()) if list(folder.glob("test_*.py"))]
    return [*(f"tests/{folder.name}" for folder in folders if folder.name not in own), "docs", "README.md"]


def not_the_sources(directory: str, names: list[str]) -> set[str]:
    """What a copy leaves out: sources, environments, caches and the repository itself."""
    hidden = {name for name in names if name.startswith(".") and name not in {".ci", ".gitignore"}}
    here = {"dist", "site", "node_modules"} if Path(directory) == ROOT else set()
    sources = {"src"} if Path(directory).parent == ROOT / "packages" else set()
    return hidden | here | sources | {"__pycache__"}


os.environ.setdefault("PYTHONUNBUFFERED", "1")
