"""Have the image of every server that the tests use: named, pulled, or built from distribution packages.

    python tests/images/images.py [SERVER ...]     have these images, or all; prints a line for each

`KMP_TEST_IMAGE_<SERVER>` names an image to use. Otherwise the official image is used where the engine has it or can
pull it, and where no image registry is in reach one of the same behaviour is built from the folder of that name. A
built image's tag is the hash of what it is built from, so it is built once.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
SUITE = "trixie"
AUTHORITIES = Path("/usr/local/share/ca-certificates")
OFFICIAL = {
    "timescaledb": "timescale/timescaledb:2.19.3-pg17",
    "neo4j": "neo4j:5.26-community",
    "redis": "redis:8.0",
}
"""Servers whose official image keeps the contract of our entry points; the others are always built."""

SERVERS = ("timescaledb", "pgbouncer", "neo4j", "redis", "kafka", "s3", "azurite", "toxiproxy")
PULL_SECONDS = 600
CLEAN_SECONDS = 20
END_SECONDS = 10

LABEL = "kmp-test-build"
UNFINISHED = f"--filter=label={LABEL}=unfinished"
Command = tuple[str, ...]


def have(server: str) -> str:
    """The image to run for a server, made now if it has to be."""
    named = os.environ.get(f"KMP_TEST_IMAGE_{server.upper()}")
    if named:
        return named
    built = f"kmp-test/{server}:{fingerprint(server)}"
    if exists(built):
        return built
    with one_at_a_time():
        official = OFFICIAL.get(server)
        if official is not None and (exists(official) or pull(official)):
            return official
        if not exists(built):  # somebody else may have built it meanwhile
            build(HERE / server, built, base())
    return built


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Keep other threads, and other runs on this machine, from making the same images side by side."""
    with (Path(tempfile.gettempdir()) / f"kmp-test-images-{os.getuid()}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fingerprint(server: str) -> str:
    """Twelve digits that change with anything the image is built from."""
    digest = hashlib.sha256(base_tag().encode())
    for file in sorted((HERE / server).iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@functools.cache
def base_tag() -> str:
    """The base image's tag: the suite, and the certificate authorities that this machine adds to the usual ones."""
    digest = hashlib.sha256(SUITE.encode())
    for file in sorted(AUTHORITIES.glob("*.crt")):
        digest.update(file.read_bytes())
    return f"kmp-test/base:{SUITE}-{digest.hexdigest()[:8]}"


def base() -> str:
    """The smallest Debian, made with debootstrap, in which an installation trusts what this machine trusts."""
    tag = base_tag()
    if exists(tag):
        return tag
    with tempfile.TemporaryDirectory(prefix="kmp-base-") as name:
        root = Path(name) / "root"
        run("debootstrap", "--variant=minbase", SUITE, str(root))
        authorities = root / AUTHORITIES.relative_to("/")
        authorities.mkdir(parents=True, exist_ok=True)
        for file in AUTHORITIES.glob("*.crt"):
            (authorities / file.name).write_bytes(file.read_bytes())
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(["docker", "import", "-", tag], stdin=tar.stdout, capture_output=True, check=True)
    return tag


def build(folder: Path, tag: str, base: str) -> None:
    """Build with the classic builder, which every engine has; only loopback and package registries are needed.

    Every stage has a label until its image is finished, by which what is left of it is found, however the build ended.
    """
    dockerfile = re.sub(
        r"^FROM .*$", rf"\g<0>\nLABEL {LABEL}=unfinished", (folder / "Dockerfile").read_text(), flags=re.M
    )
    command = ["docker", "build", "--network=host", f"--build-arg=BASE={base}", f"--tag={tag}"]
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    command += [f"--label={LABEL}=finished", "--file=-", str(folder)]
    try:
        # Without its step the engine gives up by itself, and says so; it would go on where nobody listens any more.
        run(*command, environment=environment, given=dockerfile, cut=lambda _: remove(unfinished_steps()))
    finally:
        remove_unfinished()


def remove_unfinished() -> None:
    """Remove what builds of ours left: steps that were cut off, stages that are only copied from, and nobody else's.

    Who builds has the lock, so that none of it is being made just now.
    """
    end = time.monotonic() + CLEAN_SECONDS
    while left := [*unfinished_steps(), *unfinished_images()]:
        remove(left)
        if time.monotonic() > end:  # the engine is still busy with it: the next build tries again
            return


def unfinished_steps() -> list[Command]:
    """How to remove each container in which a build of ours does a step."""
    return [("rm", "--force", "--volumes", one) for one in listed("ps", "--all", "--quiet", UNFINISHED)]


def unfinished_images() -> list[Command]:
    """How to remove each image of ours that has no name and that no other builds on."""
    return [("rmi", one) for one in listed("images", "--quiet", "--filter=dangling=true", UNFINISHED)]


def remove(commands: list[Command]) -> None:
    for command in commands:
        subprocess.run(["docker", *command], capture_output=True, check=False)


def listed(*command: str) -> set[str]:
    done = subprocess.run(["docker", *command], capture_output=True, text=True, check=False)
    return set(done.stdout.split())


def exists(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


@functools.cache
def pull(image: str) -> bool:
    """Whether the engine could pull the image; a registry that is out of reach says so at once."""
    try:
        done = subprocess.run(["docker", "pull", "-q", image], capture_output=True, timeout=PULL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def terminate(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def run(
    *command: str,
    environment: dict[str, str] | None = None,
    given: str | None = None,
    cut: Callable[[subprocess.Popen[str]], object] = terminate,
) -> str:
    """Run a command quietly and return what it printed; when it fails, show the end of it.

    Ctrl-C does not reach it: it is `cut` then, until it has ended, and nothing of it goes on behind our back.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(given)
        except BaseException:
            end = time.monotonic() + END_SECONDS
            while process.poll() is None and time.monotonic() < end:
                cut(process)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
            process.kill()
            raise
    if process.returncode != 0:
        tail = "\n".join(output.splitlines()[-15:])
        raise SystemExit(f"{command[0]} {command[1]} failed:\n{tail}")
    return output


def main() -> int:
    parser = argparse.ArgumentParser(description="Have the images of the servers that the tests use.")
    parser.add_argument("servers", nargs="*", choices=[*SERVERS, []], metavar="SERVER", help=", ".join(SERVERS))
    try:
        for server in parser.parse_args().servers or SERVERS:
            began = time.monotonic()
            print(f"{server:12} {have(server)}  {time.monotonic() - began:.0f} s", flush=True)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
