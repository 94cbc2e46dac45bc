"""Every fence of the README and of the documentation runs, so that no page shows what does not work.

- `python` runs at once, top-level `await` included, in one namespace per page. One that begins with a comment that
  is a file's name (`# delays.py`) is also written to the page's directory, which is new and empty.
- `toml` must parse, and is written if it is named.
- `console` runs the lines after `$` in the page's directory, and compares their output; `...` stands for anything.
  `^C` on a line of its own sends the interrupt once everything before it was printed.
- `text` is a picture or an output that nothing can check. Any other language fails.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60
NAMED = re.compile(r"# ([\w./-]+\.(?:py|toml))\n")
CHECKED_ELSEWHERE = re.compile(r"(git clone|(\S*/)?python3? -m (pip|venv)|pip install|cd|\.) ")


class Page:
    """Where the fences of one page run: a directory, and a Python process that begins with its first `python` fence."""

    def __init__(self) -> None:
        self.temporary = tempfile.TemporaryDirectory(prefix="kmp-page-")
        self.directory = Path(self.temporary.name)
        self._worker: subprocess.Popen[str] | None = None

    def write(self, source: str) -> None:
        if name := NAMED.match(source):
            file = self.directory / name[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)

    def execute(self, source: str, path: str, line: int) -> str:
        """Run in the page's Python process; empty, or the traceback."""
        if self._worker is None:
            command = [sys.executable, "-W", "error", str(Path(__file__).with_name("fence_worker.py"))]
            self._worker = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        print(json.dumps([source, path, line]), file=self._worker.stdin, flush=True)
        answer = self._worker.stdout.readline()
        return str(json.loads(answer)) if answer else f"the page's process ended with {self._worker.wait()}"

    def close(self) -> None:
        if self._worker is not None:
            self._worker.communicate(timeout=SECONDS)
        self.temporary.cleanup()

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def run_python(example: Example, page: Page) -> None:
    page.write(str(example.parsed))
    failure = page.execute(str(example.parsed), example.path, example.line)
    assert not failure, failure


def run_toml(example: Example, page: Page) -> None:
    tomllib.loads(str(example.parsed))
    page.write(str(example.parsed))


def run_console(example: Example, page: Page) -> None:
    for command, expected in commands(str(example.parsed)):
        if session := re.fullmatch(r"python3 dev\.py (\w+).*", command):
            assert f"\ndef {session[1]}(session" in (ROOT / "noxfile.py").read_text(), f"no session {session[1]}"
        elif not CHECKED_ELSEWHERE.match(command):
            got = run(command, expected, page)
            same = doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            assert same, f"$ {command}\nexpected:\n{expected}\ngot:\n{got}"
        elif paths := re.findall(r"(?<![\w-])packages/[\w-]+", command):
            assert all((ROOT / path).is_dir() for path in paths), f"{command}: no such package"


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command with the output that the page shows for it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def run(command: str, expected: str, page: Page) -> str:
    """What the command prints, both streams as they come; interrupted where the page shows `^C`."""
    before, interrupted, _ = expected.partition("^C\n")
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=page.directory,
        env=page.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    # The last resort, so that a page that never ends fails instead of hanging.
    killer = threading.Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))
    killer.start()
    try:
        got = ""
        if interrupted:
            wanted = [line for line in before.splitlines() if line.strip() != "..."]
            while wanted and (line := process.stdout.readline()):
                got += line
                wanted = wanted[1:] if line.strip() == wanted[0].strip() else wanted
            os.killpg(process.pid, signal.SIGINT)
            got += "^C\n"
        got += process.stdout.read()
        process.wait()
    finally:
        killer.cancel()
        process.stdout.close()
    return got


def run_text(example: Example, page: Page) -> None:
    assert str(example.parsed).strip(), "an empty fence"


EVALUATORS: dict[str, Callable[[Example, Page], None]] = {
    "python": run_python,
    "toml": run_toml,
    "console": run_console,
    "text": run_text,
}


def evaluate(example: Example) -> None:
    language = str(example.region.lexemes["language"]).strip()
    assert language in EVALUATORS, f"a fence of language {language!r} is never run; use one of {sorted(EVALUATORS)}"
    EVALUATORS[language](example, example.namespace["page"])


def parse(document: Document) -> Iterator[Region]:
    for region in FencedCodeBlockLexer(language=r"[^\n{]*", mapping={"language": "language", "source": "source"})(
        document
    ):
        region.parsed = region.lexemes["source"]
        region.evaluator = evaluate
        yield region


def set_up(namespace: dict[str, Any]) -> None:
    namespace["page"] = Page()


def tear_down(namespace: dict[str, Any]) -> None:
    namespace.pop("page").close()


pytest_collect_file = Sybil(parsers=[parse], patterns=["*.md"], path="/", setup=set_up, teardown=tear_down).pytest()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what the documentation's build generated from docstrings."""
    return True if collection_path.parts[-3:-1] == ("reference", "api") else None
