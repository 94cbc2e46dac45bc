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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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

SERVERS = ("timescaledb", "pgbouncer", "neo4j", "redis", "kafka", "s3", "toxiproxy")
PULL_SECONDS = 600


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
    """Build with the classic builder, which every engine has; only loopback and package registries are needed."""
    command = ["docker", "build", "--network=host", f"--build-arg=BASE={base}", f"--tag={tag}", str(folder)]
    output = run(*command, environment={**os.environ, "DOCKER_BUILDKIT": "0"})
    remove_unnamed(made_by(output))


def made_by(output: str) -> list[str]:
    """The images that a build made, one a step, and not those that it found in the engine's cache."""
    steps = re.split(r"^Step \d+/\d+ : ", output, flags=re.MULTILINE)[1:]
    # A step that did something ends with the image that came of it; one from the cache, and `FROM`, made none.
    did = [step for step in steps if "Using cache" not in step and not step.startswith("FROM")]
    return [ids[-1] for step in did if (ids := re.findall(r"^ ---> (\w+)$", step, re.MULTILINE))]


def remove_unnamed(made: list[str]) -> None:
    """Remove those images that have no name and that no other builds on: the stages that are only copied from."""
    listed = ["docker", "images", "--quiet", "--filter=dangling=true"]
    unnamed = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.split()
    for image in set(made) & set(unnamed):
        subprocess.run(["docker", "rmi", image], capture_output=True, check=False)


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


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """Run a command quietly and return what it printed; when it fails, show the end of it."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise SystemExit(f"{command[0]} {command[1]} failed:\n{tail}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Have the images of the servers that the tests use.")
    parser.add_argument("servers", nargs="*", choices=[*SERVERS, []], metavar="SERVER", help=", ".join(SERVERS))
    for server in parser.parse_args().servers or SERVERS:
        began = time.monotonic()
        print(f"{server:12} {have(server)}  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
