"""The tests' servers for hand work: start them once, paste the variables, stop them when you are done.

python3 dev.py servers            start what is not running, provision project `demo`, print `export` lines
python3 dev.py servers --stop     stop and remove them, with their data
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "images"))
import docker
import engine

import testbed

STATE = Path(__file__).parents[2] / ".kmp-servers.json"
SERVERS = ("timescaledb", "neo4j", "redis", "s3")
PROJECT = "demo"


def start() -> int:
    """Start the servers and print the variables that a service needs to use them."""
    if STATE.exists():
        print("# running already; `python3 dev.py servers --stop` removes them", file=sys.stderr)
        variables = json.loads(STATE.read_text())["variables"]
    else:
        engine.ensure(install=True)
        with ThreadPoolExecutor(len(SERVERS)) as pool:
            # The label names process 1, which never ends: what is started for hand work is no orphan of a test run.
            launched = [pool.submit(testbed.launch, name, testbed.RECIPES[name], label="1") for name in SERVERS]
        servers = {future.result().name: future.result() for future in launched}
        # Written before anything can fail, so that `--stop` finds what is running.
        remember(servers, {})
        for server in servers.values():
            server.wait_ready()
        variables = asyncio.run(provision(servers))
        remember(servers, variables)
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()))
    return 0


def remember(servers: dict[str, testbed.Server], variables: dict[str, str]) -> None:
    """Keep what is running, and passwords, in a file that only its owner reads."""
    STATE.touch(mode=0o600)
    ids = [server.container.get_wrapped_container().id for server in servers.values()]
    STATE.write_text(json.dumps({"containers": ids, "variables": variables}))


async def provision(servers: dict[str, testbed.Server]) -> dict[str, str]:
    """Give the project its place on each server, as an administrator does, and return a service's variables."""
    from kmp_storage.bucket.provisioning import VersityProvisioner
    from kmp_storage.redis.provisioning import RedisProvisioner
    from kmp_storage.timescale.provisioning import TimescaleProvisioner

    at = {name: server.address for name, server in servers.items()}
    password = {name: server.password for name, server in servers.items()}
    postgres = f"timescale://postgres:{password['timescaledb']}@{at['timescaledb']}/postgres?sslmode=disable"
    async with TimescaleProvisioner(postgres) as timescale:
        access = await timescale.provision(PROJECT)
    async with RedisProvisioner(f"redis://default:{password['redis']}@{at['redis']}") as redis:
        secret = await redis.provision(PROJECT)
    async with VersityProvisioner(f"s3+http://admin:{password['s3']}@{at['s3']}") as buckets:
        key = await buckets.provision(PROJECT)
    assert secret is not None, "a new server knows no project"
    return {
        "KMP_PROJECT": PROJECT,
        "KMP_STORAGE_TIMESERIES_URL": access.url.reveal(),
        "KMP_STORAGE_GRAPH_URL": f"bolt://neo4j:{password['neo4j']}@{at['neo4j']}",
        "KMP_STORAGE_CACHE_URL": f"redis://{PROJECT}:{secret.reveal()}@{at['redis']}",
        "KMP_STORAGE_BUCKET_URL": f"s3+http://{key.name}:{key.secret}@{at['s3']}",
    }


def stop() -> int:
    """Remove the servers that `start` started, by their ids."""
    if not STATE.exists():
        print("nothing is running", file=sys.stderr)
        return 0
    client = docker.from_env()
    for name in json.loads(STATE.read_text())["containers"]:
        try:
            client.containers.get(name).remove(force=True, v=True)
        except docker.errors.NotFound:
            continue
    client.close()
    STATE.unlink()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py servers", description="Real servers for hand work, on 127.0.0.1.")
    parser.add_argument("--stop", action="store_true", help="stop and remove the servers, with their data")
    stopping = parser.parse_args().stop
    try:
        return stop() if stopping else start()
    except engine.NoEngine as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
