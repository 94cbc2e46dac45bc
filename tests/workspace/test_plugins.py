"""The rules that the project's pytest plugins enforce, each shown by a run that breaks it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, root: Path) -> Run:
    """Run pytest over one file of tests or one page, with one of our plugins."""

    def run(plugin: str, text: str, *, name: str = "test_it.py", ci: bool = False) -> subprocess.CompletedProcess[str]:
        place = tmp_path / "run"
        place.mkdir(exist_ok=True)
        (place / "pytest.ini").write_text("[pytest]\n")
        (place / name).write_text(text)
        kept = {key: value for key, value in os.environ.items() if key != "CI" and not key.startswith("COV")}
        variables = {**kept, "PYTHONPATH": str(root / "tests" / "plugins"), **({"CI": "true"} if ci else {})}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", plugin, str(place / name)]
        return subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True, check=False)

    return run


SKIPS = "import pytest\ndef test_a():\n    pytest.skip('no engine here')\n"


def test_a_skip_is_fine_on_a_laptop(run: Run) -> None:
    assert run("skips", SKIPS).returncode == 0


def test_a_skip_fails_the_run_in_ci_and_is_named(run: Run) -> None:
    done = run("skips", SKIPS, ci=True)
    assert done.returncode == 1
    assert "test_it.py::test_a: Skipped: no engine here" in done.stdout


def test_a_skipped_module_fails_the_run_in_ci(run: Run) -> None:
    text = "import pytest\npytest.importorskip('no_such_module')\ndef test_a(): ...\n"
    # The good test beside it keeps the run from ending as 'no tests'.
    assert run("skips", "def test_b(): ...\n", name="test_good.py", ci=True).returncode == 0
    assert run("skips", text, ci=True).returncode != 0


def test_an_allowed_reason_passes_in_ci(run: Run) -> None:
    done = run("skips", SKIPS.replace("no engine here", "needs a process that is not root"), ci=True)
    assert done.returncode == 0, done.stdout


def test_a_database_left_in_the_tree_fails_the_run(run: Run) -> None:
    text = "from pathlib import Path\ndef test_a():\n    Path('.kmp').mkdir()\n    Path('stray.db').touch()\n"
    done = run("leftovers", text)
    assert done.returncode == 1
    assert ".kmp" in done.stdout
    assert "stray.db" in done.stdout


def test_what_was_there_before_is_not_blamed_on_the_tests(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run" / ".kmp").mkdir(parents=True)
    assert run("leftovers", "def test_a(): ...\n").returncode == 0


def test_a_process_left_running_fails_the_run(run: Run) -> None:
    text = "import subprocess\ndef test_a():\n    global p\n    p = subprocess.Popen(['sleep', '61'])\n"
    done = run("leftovers", text)
    assert done.returncode == 1
    line = next(line for line in done.stdout.splitlines() if line.startswith("process "))
    assert "sleep 61" in line
    psutil.Process(int(line.split()[1].rstrip(":"))).terminate()


def fence(language: str, text: str) -> str:
    return f"# A page\n\n```{language}\n{text}\n```\n"


GOOD = [
    ("python", "x = 1\nassert x == 1"),
    ("python", "import asyncio\nawait asyncio.sleep(0)"),
    ("python", "assert x == 1, 'one namespace for the page'"),
    ("toml", "[a]\nb = 1"),
    ("console", "$ echo one two\none two"),
    ("console", "$ echo one; echo two\n...\ntwo"),
    ("console", "$ echo ready; sleep 61\nready\n^C"),
    ("console", "$ python3 dev.py tests"),
    ("text", "a picture"),
]

BAD = [
    ("python", "assert 1 == 2"),
    ("python", "import asyncio\nawait asyncio.sleep('x')"),
    ("toml", "[a\nb = 1"),
    ("console", "$ echo one two\none three"),
    ("console", "$ echo one\nready\n^C"),
    ("console", "$ python3 dev.py nosuchsession"),
    ("console", "$ python -m pip install packages/no-such-package"),
    ("bash", "echo this language is never run"),
    ("", "a fence without a language"),
]


def test_fences_that_hold_pass(run: Run) -> None:
    done = run("fences", "".join(fence(*each) for each in GOOD), name="page.md")
    assert f"{len(GOOD)} passed" in done.stdout, done.stdout


def test_fences_that_do_not_hold_fail_one_by_one(run: Run) -> None:
    done = run("fences", "".join(fence(*each) for each in BAD), name="page.md")
    assert f"{len(BAD)} failed" in done.stdout, done.stdout


def test_a_named_fence_is_a_file_for_the_commands_after_it(run: Run) -> None:
    page = fence("python", "# hello.py\nif __name__ == '__main__':\n    print('hello')")
    done = run("fences", page + fence("console", "$ python hello.py\nhello"), name="page.md")
    assert "2 passed" in done.stdout, done.stdout
