#!/usr/bin/env python3
"""Work on KMP with nothing but Python: `python3 dev.py demo`, `python3 dev.py tests`.

Makes `.venv` beside this file, installs the pinned development requirements and the packages of this clone into it,
and runs the session of that name from `noxfile.py` in it. Where everything is in place it starts at once; an
interrupted installation is made anew; of two that start at once the second waits for the first. Nothing outside this
directory is touched, so it works where pip refuses to change the system (PEP 668), and where Debian left out
`ensurepip`.

    python3 dev.py                       list the sessions
    python3 dev.py lint types            run several
    python3 dev.py tests -k cache        what is no session's name is handed on to the session
"""

# This file must parse under every Python 3, or an old one could not be told that it is too old.

import contextlib
import difflib
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - this check is what makes an old Python's error readable
    sys.exit(
        "KMP needs Python 3.11 or later, and this is Python {}.{} ({}).\n"
        "Install a newer one and name it: python3.12 dev.py ...".format(*sys.version_info[:2], sys.executable)
    )
if os.name != "posix":
    sys.exit("KMP is developed on Linux and macOS; on Windows use WSL.")

import fcntl
from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "kmp-development"  # digests of what is installed
UNFINISHED = "unfinished"
REQUIREMENTS = ROOT / "requirements" / "development.txt"
OLDEST_PIP = (22, 3)  # the first with `--python`

NO_PIP = """\
This Python ({python}) has neither ensurepip nor a pip that can install into another environment (22.3 or later).
One of these helps:
  - Debian, Ubuntu:  apt install python3-venv        (or python3-pip)
  - elsewhere:       {python} -m ensurepip --upgrade
  - another Python:  python3.12 dev.py ..."""

NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Max retries exceeded|ProxyError|SSLError"
    r"|Temporary failure in name resolution|No matching distribution found|Network is unreachable"
)

NO_NETWORK = """\
pip could not get the packages. Check the network and the proxy; behind a mirror set PIP_INDEX_URL (and PIP_CERT for
its certificate). Then run the same command again: what was downloaded is kept."""


class Stop(Exception):
    """Something that only the person at the keyboard can mend; the message says how."""


def say(text: str) -> None:
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


def main(arguments: "list[str]") -> int:
    """Prepare, then become the session: its signals, output and exit code are nox's own."""
    try:
        words = session_arguments(arguments)
        with locked():
            prepare()
    except Stop as problem:
        print(f"dev.py: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dev.py: interrupted; run it again to go on", file=sys.stderr)
        return 130
    command = [str(PYTHON), "-m", "nox", "--noxfile", str(ROOT / "noxfile.py"), *words]
    return os.execve(command[0], command, clean_environment())  # noqa: S606 - there is no shell to start it through


def session_arguments(arguments: "list[str]") -> "list[str]":
    """What nox is called with: the first word is a session, so are those after it that name one; the rest is theirs."""
    known = re.findall(r"^@nox\.session.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    count = next((i for i, word in enumerate(arguments) if i and word not in known), len(arguments))
    names, rest = arguments[:count], arguments[count:]
    if not names or names[0].startswith("-"):
        return ["--list"]
    for word in [*names[:1], *rest[:1]]:
        # The first must be a session; one after it may be anything that is not nearly one.
        meant = difflib.get_close_matches(word, known, 1, 0.6 if word in names else 0.75)
        if word not in known and (word in names or meant) and not Path(word).exists():
            hint = f"; did you mean {meant[0]}?" if meant else ". `python3 dev.py` lists them."
            raise Stop(f"{word!r} is no session{hint}")
    return ["--session", *names, "--", *(rest[1:] if rest[:1] == ["--"] else rest)]


def clean_environment() -> "dict[str, str]":
    """The caller's environment without what would make pip or Python look elsewhere."""
    misleading = {
        "PYTHONHOME",
        "PYTHONPATH",
        "PIP_USER",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_REQUIRE_VIRTUALENV",
        "PIP_PYTHON",
    }
    kept = {name: value for name, value in os.environ.items() if name not in misleading}
    return {
        **kept,
        "VIRTUAL_ENV": str(ENVIRONMENT),
        "PATH": f"{PYTHON.parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
    }


@contextlib.contextmanager
def locked() -> "Iterator[None]":
    """Let one process at a time prepare the environment; the lock goes with the process, however it ends."""
    with Path(__file__).open("rb") as file:
        # Handed down to pip (see `run`): if this process is killed, the next one waits until its pip has ended too.
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process prepares the environment; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepare() -> None:
    """Bring `.venv` to what the requirements and the packages of this clone ask for."""
    requirements, packages = digest([REQUIREMENTS]), digest(sorted(project_files()))
    stamp = STAMP.read_text().split() if STAMP.is_file() else []
    usable = works(PYTHON)
    if usable and stamp == [requirements, packages]:
        return
    if not usable or stamp == [UNFINISHED]:
        make_environment()
        stamp = []
    pip = pip_command()
    if stamp[:1] != [requirements]:
        say(f"installing {count_pins()} pinned packages, once; this takes a minute or two")
        STAMP.write_text(UNFINISHED)
        run([*pip, "install", "--require-hashes", "-r", str(REQUIREMENTS)])
        STAMP.write_text(requirements)
    say("installing the packages of this clone")
    editable = [word for file in sorted(project_files()) for word in ("-e", str(file.parent))]
    run([*pip, "install", "--no-deps", "--no-build-isolation", *editable])
    STAMP.write_text(f"{requirements} {packages}")


def project_files() -> "Iterator[Path]":
    """The metadata of every distribution in this clone; a changed one must be installed again."""
    yield from ROOT.glob("packages/*/pyproject.toml")
    yield from ROOT.glob("examples/*/pyproject.toml")


def digest(files: "list[Path]") -> str:
    named = (str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() for file in files)
    return hashlib.sha256(b"\0".join(named)).hexdigest()


def count_pins() -> int:
    return sum(1 for line in REQUIREMENTS.read_text().splitlines() if re.match(r"[a-z0-9].*==", line))


def works(python: Path) -> bool:
    """Whether this is an interpreter that starts and is new enough: its base may have been removed or replaced."""
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([str(python), "-c", check], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def make_environment() -> None:
    """An empty `.venv`, without pip: it comes later, from whichever of its sources this machine has."""
    say(f"making {ENVIRONMENT.name} with Python {sys.version.split()[0]}")
    if importlib.util.find_spec("venv") is None:
        raise Stop(NO_PIP.format(python=sys.executable))
    run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(ENVIRONMENT)])
    STAMP.write_text(UNFINISHED)


def pip_command() -> "list[str]":
    """A pip that installs into `.venv`: its own, one that ensurepip puts there, or the pip beside this Python."""
    inside = [str(PYTHON), "-m", "pip"]
    if pip_version(inside):
        return quiet(inside)
    if importlib.util.find_spec("ensurepip") is not None:
        run([str(PYTHON), "-m", "ensurepip", "--default-pip"])
        return quiet(inside)
    beside = [sys.executable, "-m", "pip"]
    if pip_version(beside) >= OLDEST_PIP:
        return quiet([*beside, "--python", str(PYTHON)])
    raise Stop(NO_PIP.format(python=sys.executable))


def pip_version(pip: "list[str]") -> "tuple[int, ...]":
    """The version as numbers, or nothing where there is no pip."""
    found = subprocess.run([*pip, "--version"], capture_output=True, text=True, check=False)
    match = re.match(r"pip (\d+)\.(\d+)", found.stdout)
    return (int(match[1]), int(match[2])) if match else ()


def quiet(pip: "list[str]") -> "list[str]":
    return [*pip, "--quiet", "--no-input", "--disable-pip-version-check"]


def run(command: "list[str]") -> None:
    """Run to the end without output; on a failure show the last lines, and what they usually mean."""
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        close_fds=False,
    )
    if done.returncode:
        advice = NO_NETWORK if NETWORK.search(done.stdout) else "Run the same command again, or remove .venv first."
        tail = "\n".join("    " + line[:160] for line in done.stdout.strip().splitlines()[-6:])
        raise Stop(f"{' '.join(command[:5])} ... failed:\n{tail}\n{advice}")
    if time.monotonic() - began > 2:
        say(f"  done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
