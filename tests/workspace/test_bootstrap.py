"""`dev.py` in small clones of its own: real environments and a real pip, with packages that need no index."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest

BACKEND = """
import os, pathlib, time, zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
    if (gate := os.environ.get("GATE")) is not None:
        pathlib.Path(gate, "reached").touch()
        while not pathlib.Path(gate, "open").exists():
            time.sleep(0.02)
    with pathlib.Path(os.environ["COUNT"]).open("a") as file:
        file.write("x")
    with zipfile.ZipFile(pathlib.Path(directory, "small-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("small-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\n")
        wheel.writestr("small-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("small-1.dist-info/RECORD", "")
    return "small-1-py3-none-any.whl"
"""

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "small"
version = "1"
"""

SESSIONS = ("tests", "lint", "types")

Start = Callable[..., subprocess.Popen[str]]


def wheel(directory: Path) -> Path:
    """A package named nox that prints what it was called with."""
    path = directory / "nox-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nox/__main__.py", "import sys\nprint('session', sys.prefix, *sys.argv[1:])\n")
        archive.writestr("nox-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: nox\nVersion: 1\n")
        archive.writestr("nox-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("nox-1.dist-info/RECORD", "")
    return path


@pytest.fixture
def clone(tmp_path: Path, root: Path) -> Path:
    clone = tmp_path / "clone with a space"
    (clone / "requirements").mkdir(parents=True)
    (clone / "packages" / "small").mkdir(parents=True)
    shutil.copy(root / "dev.py", clone)
    (clone / "noxfile.py").write_text("".join(f"@nox.session\ndef {name}(session): ...\n" for name in SESSIONS))
    digest = hashlib.sha256(wheel(tmp_path).read_bytes()).hexdigest()
    (clone / "requirements" / "development.txt").write_text(f"nox==1 --hash=sha256:{digest}\n")
    (clone / "packages" / "small" / "pyproject.toml").write_text(PROJECT)
    (clone / "packages" / "small" / "backend.py").write_text(BACKEND)
    return clone


@pytest.fixture
def start(clone: Path, tmp_path: Path) -> Start:
    """Start `dev.py` as a user would: with these arguments, this interpreter, and lines of Python before it."""

    def start(
        *arguments: str, python: str | Path = sys.executable, before: str = "", **variables: str
    ) -> subprocess.Popen[str]:
        script = f"import runpy, sys\n{before}\nsys.argv[0] = 'dev.py'\nrunpy.run_path('dev.py', run_name='__main__')"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "COV"))}
        return subprocess.Popen(
            [str(python), "-c", script, *arguments],
            cwd=clone,
            env={
                **kept,
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(tmp_path),
                "COUNT": str(tmp_path / "count"),
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two interpreters as machines have them: with a pip of its own, and without any."""
    directory = tmp_path_factory.mktemp("hosts")
    for name, option in (("pip", "--pip=bundle"), ("bare", "--no-pip")):
        subprocess.run(
            [sys.executable, "-m", "virtualenv", "-q", "--no-download", option, directory / name], check=True
        )
    return {name: directory / name / "bin" / "python" for name in ("pip", "bare")}


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        os.sched_yield()


def count(tmp_path: Path) -> int:
    return len((tmp_path / "count").read_text())


def test_one_command_makes_the_environment_and_runs_the_session_in_it(clone: Path, start: Start) -> None:
    code, out, err = end(start("tests", "-k", "cache"))
    assert code == 0, err
    assert f"session {clone / '.venv'} --noxfile {clone / 'noxfile.py'} --session tests -- -k cache" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["--list"]),
        (["--help"], ["--list"]),
        (["tests"], ["--session", "tests", "--"]),
        (["lint", "types"], ["--session", "lint", "types", "--"]),
        (["tests", "-k", "cache"], ["--session", "tests", "--", "-k", "cache"]),
        (["tests", "tests/core", "-x"], ["--session", "tests", "--", "tests/core", "-x"]),
        (["demo", "--", "--limit", "5"], ["--session", "demo", "--", "--limit", "5"]),
    ],
)
def test_words_are_sessions_until_one_is_not(
    tool: Callable[[str], ModuleType], arguments: list[str], expected: list[str]
) -> None:
    assert tool("dev.py").session_arguments(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["test"], "'test' is no session; did you mean tests?"),
        (["quark"], "'quark' is no session. `python3 dev.py` lists them."),
        (["lint", "tsts"], "'tsts' is no session; did you mean tests?"),
        (["lint", "typs", "-k", "x"], "'typs' is no session; did you mean types?"),
    ],
)
def test_a_misspelt_session_is_told_before_anything_is_installed(
    tool: Callable[[str], ModuleType], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool("dev.py").main(arguments) == 1
    assert capsys.readouterr().err == f"dev.py: {words}\n"


def test_a_second_run_installs_nothing(start: Start, tmp_path: Path) -> None:
    end(start("tests"))
    code, _, err = end(start("tests"))
    assert (code, err, count(tmp_path)) == (0, "", 1)


def test_a_changed_package_is_installed_again_and_the_requirements_are_not(
    clone: Path, start: Start, tmp_path: Path
) -> None:
    end(start("tests"))
    file = clone / "packages" / "small" / "pyproject.toml"
    file.write_text(file.read_text() + "description = 'changed'\n")
    code, _, err = end(start("tests"))
    assert (code, count(tmp_path), "pinned packages" in err) == (0, 2, False)


def test_an_interrupted_installation_is_made_anew(clone: Path, start: Start, tmp_path: Path) -> None:
    end(start("tests"))
    (clone / ".venv" / "kmp-development").write_text("unfinished")
    broken = next((clone / ".venv").glob("lib/*/site-packages/nox/__main__.py"))
    broken.write_text("raise SystemExit('half written')")
    code, out, err = end(start("tests"))
    assert (code, out.startswith("session")) == (0, True), err


def test_of_two_at_once_the_second_waits_for_the_first(start: Start, tmp_path: Path) -> None:
    first = start("tests", GATE=str(tmp_path))
    wait_for(tmp_path / "reached", first)
    second = start("tests")
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    (tmp_path / "open").touch()
    assert [end(first)[0], end(second)[0], count(tmp_path)] == [0, 0, 1]


def test_after_a_kill_the_next_one_waits_until_the_orphaned_pip_has_ended(start: Start, tmp_path: Path) -> None:
    first = start("tests", GATE=str(tmp_path))
    wait_for(tmp_path / "reached", first)
    orphans = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    second = start("tests")
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    (tmp_path / "open").touch()
    code, out, err = end(second)
    assert (code, out.startswith("session")) == (0, True), err
    psutil.wait_procs(orphans, timeout=10)
    end(first)


def test_without_ensurepip_the_pip_beside_the_interpreter_installs(hosts: dict[str, Path], start: Start) -> None:
    code, out, err = end(start("tests", python=hosts["pip"], before="sys.modules['ensurepip'] = None"))
    assert (code, out.startswith("session")) == (0, True), err


def test_without_any_pip_the_advice_names_the_package_to_install(hosts: dict[str, Path], start: Start) -> None:
    code, out, err = end(start("tests", python=hosts["bare"], before="sys.modules['ensurepip'] = None"))
    assert (code, out) == (1, "")
    assert "apt install python3-venv" in err
    assert "Traceback" not in err


def test_settings_that_send_pip_elsewhere_do_not_reach_it(clone: Path, start: Start) -> None:
    code, _, err = end(start("tests", PIP_USER="1", PIP_TARGET=str(clone / "elsewhere"), PYTHONPATH=str(clone / "x")))
    assert code == 0, err
    assert not (clone / "elsewhere").exists()


def test_an_unreachable_index_is_explained_in_one_screen(clone: Path, start: Start, tmp_path: Path) -> None:
    (tmp_path / "nox-1-py3-none-any.whl").unlink()
    code, _, err = end(
        start(
            "tests", PIP_NO_INDEX="0", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0", PIP_NO_CACHE_DIR="1"
        )
    )
    assert code == 1
    assert "Check the network and the proxy" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) < 24


def test_a_package_with_another_hash_is_refused(clone: Path, start: Start) -> None:
    file = clone / "requirements" / "development.txt"
    file.write_text(f"nox==1 --hash=sha256:{'0' * 64}\n")
    code, out, err = end(start("tests"))
    assert (code, out) == (1, "")
    assert "DO NOT MATCH THE HASHES" in err


def test_an_old_python_is_told_so(start: Start) -> None:
    code, _, err = end(start("tests", before="sys.version_info = (3, 9, 1)"))
    assert code == 1
    assert err.startswith("KMP needs Python 3.11 or later, and this is Python 3.9")


def test_the_script_parses_under_old_pythons(root: Path) -> None:
    ast.parse((root / "dev.py").read_text(), feature_version=(3, 6))
