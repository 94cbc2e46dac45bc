"""The tests' servers for hand work, and for the main example with all its stores on servers.

python3 dev.py servers            start what is not running, provision project `demo`, print `export` lines
python3 dev.py servers --stop     stop and remove them, with their data
python3 dev.py demo --servers     run the example on them; what it had to start is removed when it ends
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "images"))
import docker
import engine
import images
import structlog

import testbed

ROOT = Path(__file__).parents[2]
STATE = ROOT / ".kmp-servers.json"


def mark_of(root: Path) -> str:
    """The label of the servers that belong to a clone."""
    return f"kmp-servers-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"


MARK = mark_of(ROOT)
SERVERS = ("timescaledb", "neo4j", "redis", "s3", "kafka")
SHARED = ("timescaledb", "redis", "s3")
"""One server has many projects; Neo4j Community is an instance per project, so the example starts its own two."""

PROJECT = "demo"


@dataclass
class Found:
    """A container that was started by an earlier command, as `testbed.Server` wants to have it."""

    container: Any

    def get_wrapped_container(self) -> Any:
        return self.container


def start() -> int:
    """Start the servers, or those of them that were stopped, and print the variables that a service needs."""
    engine.ensure(install=True)
    with alone():
        running = started_before()
        if running is None:
            stop_all()
            with launched({name: name for name in SERVERS}, mark=MARK) as servers:
                # Only the variables are for standard output, so that a shell can evaluate it.
                with structlog.testing.capture_logs():
                    variables = asyncio.run(provision(servers))
                remember(servers, variables)
        else:
            servers, variables = running
            print("# running already; `python3 dev.py servers --stop` removes them", file=sys.stderr)
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()))
    for name, url in administrators(servers).items():
        print(f"# administrator of {name}, for provisioning and never for a service: {url}")
    kafka = servers["kafka"]
    print("# Kafka, which no provider speaks to yet: SASL_PLAINTEXT, SCRAM-SHA-256, user admin")
    print(f"# {kafka.address} password {kafka.password}")
    return 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One command of this clone at a time: a second start waits, and then finds the servers running."""
    with Path(__file__).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def launched(names: dict[str, str], *, mark: str | None = None) -> Iterator[dict[str, testbed.Server]]:
    """Start servers side by side and wait until all answer; when the block fails, or is interrupted, all are removed.

    `names` tells for each server its recipe. Servers without a mark are removed at the end in any case.
    """
    for recipe in names.values():  # here, where Ctrl-C is heard, and not in a thread that would build to the end
        images.have(testbed.RECIPES[recipe].image)
    with ThreadPoolExecutor(len(names)) as pool:
        futures: dict[str, Future[testbed.Server]] = {}
        keep = False
        try:
            with deferred(signal.SIGINT):  # or one could be on its way that nobody knows of
                for name, recipe in names.items():
                    futures[name] = pool.submit(testbed.launch, name, testbed.RECIPES[recipe], mark=mark)
            servers = {name: future.result() for name, future in futures.items()}
            for ready in [pool.submit(server.wait_ready) for server in servers.values()]:
                ready.result()
            yield servers
            keep = mark is not None
        finally:
            if not keep:
                # Whoever is on the way comes up first, and only then can be removed. A second Ctrl-C changes nothing.
                with ignored(signal.SIGINT):
                    for future in futures.values():
                        if future.exception() is None:
                            future.result().stop()


def started_before() -> tuple[dict[str, testbed.Server], dict[str, str]] | None:
    """The servers that an earlier command started; None unless all of them run.

    One that was stopped is of no use: Redis keeps no users over that.
    """
    found = {container.labels[MARK]: container for container in containers()}
    if not STATE.exists() or set(found) != set(SERVERS):
        return None
    state = json.loads(STATE.read_text())
    servers = {}
    for name, known in state["servers"].items():
        if (found[name].id, found[name].status) != (known["id"], "running"):
            return None
        recipe = testbed.RECIPES[name]
        servers[name] = testbed.Server(name, known["port"], known["password"], Found(found[name]), recipe.ready)
    for server in servers.values():
        server.wait_ready()
    return servers, state["variables"]


def containers() -> list[Any]:
    """The containers of this clone's servers, running or not."""
    client = docker.from_env()
    return list(client.containers.list(all=True, filters={"label": MARK}, ignore_removed=True))


def remember(servers: dict[str, testbed.Server], variables: dict[str, str]) -> None:
    """Keep passwords in a file that only its owner reads."""
    STATE.touch(mode=0o600)
    known = {
        name: {"id": server.container.get_wrapped_container().id, "port": server.port, "password": server.password}
        for name, server in servers.items()
    }
    STATE.write_text(json.dumps({"servers": known, "variables": variables}))


def administrators(servers: dict[str, testbed.Server]) -> dict[str, str]:
    """The URL of whoever may do everything, of each server."""
    at = {name: (server.password, server.address) for name, server in servers.items()}
    users = {
        "timescaledb": "timescale://postgres:{}@{}/postgres?sslmode=disable",
        "neo4j": "bolt://neo4j:{}@{}",
        "redis": "redis://default:{}@{}",
        "s3": "s3+http://admin:{}@{}",
    }
    return {name: users[name.split("/")[0]].format(*at[name]) for name in at if name.split("/")[0] in users}


async def provision(servers: dict[str, testbed.Server]) -> dict[str, str]:
    """Give the project its place on each server, as an administrator does, and return a service's variables."""
    from kmp_storage.bucket.provisioning import VersityProvisioner
    from kmp_storage.redis.provisioning import RedisProvisioner
    from kmp_storage.timescale.provisioning import TimescaleProvisioner

    urls = administrators(servers)
    async with TimescaleProvisioner(urls["timescaledb"]) as timescale:
        access = await timescale.provision(PROJECT)
    async with RedisProvisioner(urls["redis"]) as redis:
        secret = await redis.provision(PROJECT)
    async with VersityProvisioner(urls["s3"]) as buckets:
        key = await buckets.provision(PROJECT)
    assert secret is not None, "a new server knows no project"
    return {
        "KMP_PROJECT": PROJECT,
        "KMP_STORAGE_TIMESERIES_URL": access.url.reveal(),
        "KMP_STORAGE_GRAPH_URL": urls["neo4j"],
        "KMP_STORAGE_CACHE_URL": f"redis://{PROJECT}:{secret.reveal()}@{servers['redis'].address}",
        "KMP_STORAGE_BUCKET_URL": f"s3+http://{key.name}:{key.secret}@{servers['s3'].address}",
    }


def stop() -> int:
    """Remove the servers of this clone, also those that a start left half done."""
    if not engine.answers():
        raise engine.NoEngine("no container engine answers, so nothing of it is running")
    with alone():
        if not stop_all():
            print("nothing is running", file=sys.stderr)
    return 0


def stop_all() -> int:
    """Remove every container of this clone's servers, with its data; how many there were."""
    found = containers()
    for container in found:
        container.remove(force=True, v=True)
    STATE.unlink(missing_ok=True)
    return len(found)


def demo(arguments: Sequence[str]) -> int:
    """Run the main example on the servers that run, and on new ones for what does not."""
    engine.ensure(install=True)
    testbed.remove_orphans()
    with alone():
        running = started_before()
    new = {} if running is not None else {name: name for name in SHARED}
    new |= {f"neo4j/{project}": "neo4j" for project in ("skyline", "harbour")}
    print(f"demo: starting {', '.join(new)}", file=sys.stderr, flush=True)
    with launched(new) as servers, tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        urls = administrators(servers if running is None else {**running[0], **servers})
        json.dump(
            {
                "timeseries": urls["timescaledb"],
                "graph": {project: urls[f"neo4j/{project}"] for project in ("skyline", "harbour")},
                "cache": urls["redis"],
                "bucket": urls["s3"],
            },
            file,
        )
        file.flush()
        return run([sys.executable, "-m", "skyline", "--servers", file.name, *arguments])


def run(command: list[str]) -> int:
    """Run the example to its end: Ctrl-C is for it, which then ends early and in order, and not for us."""
    with ignored(signal.SIGINT), subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    """Do without a signal for a while. A program that is started meanwhile sets its own handler."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def deferred(number: signal.Signals) -> Iterator[None]:
    """Hear of a signal when the block is over."""
    heard: list[int] = []
    before = signal.signal(number, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(number, before)
        if heard:
            signal.raise_signal(number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py servers", description="Real servers for hand work, on 127.0.0.1.")
    parser.add_argument("--stop", action="store_true", help="stop and remove the servers, with their data")
    parser.add_argument("--demo", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it complains of a broker that is not up yet
    try:
        if options.demo is not None:
            return demo(options.demo)
        return stop() if options.stop else start()
    except engine.NoEngine as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was started is removed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
