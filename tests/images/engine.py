"""Have a container engine: the one that answers, or Debian's, installed and started here.

    python tests/images/engine.py            start an engine if none answers
    python tests/images/engine.py --running  exit with 0 if one answers
    python tests/images/engine.py --stop     stop the one that this script started

An engine that answers is used as it is. Otherwise, as root, `dockerd` is started with a data root of its own, so that
its images are found again after a restart of the machine; where `dockerd` is missing and `--install` is given, the
distribution's packages are installed first.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

DATA_ROOT = Path("/var/lib/kmp-test-engine")
STATE = Path("/run/kmp-test-engine")
PID_FILE = STATE / "dockerd.pid"
LOG = STATE / "dockerd.log"
PACKAGES = ("docker.io", "containerd", "runc", "iptables", "debootstrap")
START_SECONDS = 60


class NoEngine(Exception):
    """There is no engine, and none can be started here; the message says what would help."""


def answers() -> bool:
    """Whether a container engine answers."""
    if shutil.which("docker") is None:
        return False
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    # A client without an engine exits with 0 in some versions; only an engine has a server version.
    return done.returncode == 0 and b"Server Version" in done.stdout


def ensure(*, install: bool) -> None:
    """Return when an engine answers. Raises `NoEngine`."""
    if answers():
        return
    if os.geteuid() != 0:
        raise NoEngine("no container engine answers: start Docker, or run this as root where it may start one")
    if shutil.which("dockerd") is None or shutil.which("debootstrap") is None:
        if not install or shutil.which("apt-get") is None:
            raise NoEngine("no container engine is installed: install Docker")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], env=quiet, check=True)
    start()


def start() -> None:
    """Start `dockerd` in the background and wait until it answers."""
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_stale()
    command = ["dockerd", f"--data-root={DATA_ROOT}", f"--exec-root={STATE}/exec", f"--pidfile={PID_FILE}"]
    with LOG.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + START_SECONDS
    while not answers():
        if process.poll() is not None or time.monotonic() > end:
            last = LOG.read_text().splitlines()[-1:] or ["it said nothing"]
            raise NoEngine(f"dockerd did not start: {last[0]}")
        time.sleep(0.2)


def remove_stale() -> None:
    """Remove what an engine left that was killed: its process file keeps the next one from starting."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid = int(PID_FILE.read_text())
        if not Path(f"/proc/{pid}/comm").exists() or Path(f"/proc/{pid}/comm").read_text().strip() != "dockerd":
            PID_FILE.unlink()
    for file in ("containerd/containerd.pid", "exec/containerd/containerd.pid"):
        (STATE / file).unlink(missing_ok=True)


def stop() -> None:
    """Stop the engine that `start` started, by its process id."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
        os.kill(int(PID_FILE.read_text()), signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description="Have a container engine for the tests that need real servers.")
    parser.add_argument("--install", action="store_true", help="install Debian's packages where no engine is installed")
    parser.add_argument("--running", action="store_true", help="exit with 0 if an engine answers, and with 1 if none")
    parser.add_argument("--stop", action="store_true", help="stop the engine that this script started")
    options = parser.parse_args()
    if options.running:
        return 0 if answers() else 1
    try:
        stop() if options.stop else ensure(install=options.install)
    except NoEngine as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
