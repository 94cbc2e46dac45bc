"""The main example with all its stores on real servers: the same figures, and each server refuses the neighbour."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import neo4j as driver
import pytest

import postgres_bed
import s3_bed
import testbed

LIMIT = 3_000

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def servers_file(
    timescaledb: testbed.Server,
    neo4j: testbed.Server,
    second_neo4j: testbed.Server,
    redis_server: testbed.Server,
    s3: testbed.Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    graphs = {"skyline": neo4j, "harbour": second_neo4j}

    def empty() -> None:
        for server in graphs.values():
            with driver.GraphDatabase.driver(f"bolt://{server.address}", auth=("neo4j", server.password)) as session:
                session.execute_query("MATCH (n) DETACH DELETE n")

    urls = {
        "timeseries": postgres_bed.admin_url(timescaledb),
        "graph": {project: f"bolt://neo4j:{server.password}@{server.address}" for project, server in graphs.items()},
        "cache": f"redis://default:{redis_server.password}@{redis_server.address}",
        "bucket": s3_bed.admin_url(s3),
    }
    file = tmp_path_factory.mktemp("servers") / "servers.json"
    file.write_text(json.dumps(urls))
    empty()
    yield file
    empty()


@pytest.fixture(scope="module")
def killed(skyline: Callable[..., Any], servers_file: Path) -> Any:
    """A run in which `delays` is killed in the middle."""
    run = skyline("--limit", str(LIMIT), "--kill-delays", "--servers", str(servers_file))
    code, output = run.finish(within=380)
    assert code == 0, output
    return run


def test_killed_in_the_middle_it_counts_the_same_on_servers(killed: Any, oracle: Callable[..., Any]) -> None:
    result, answers = killed.result(), oracle(LIMIT)
    lives = [use["exit_code"] for use in result["run"]["processes"] if use["service"] == "delays"]
    assert lives == [-signal.SIGKILL, 0]
    figures = result["figures"]
    flights, missing, mean = answers.totals()
    assert (figures["flights"], figures["missing"]) == (flights, missing)
    assert figures["mean"] == pytest.approx(mean, rel=1e-9)
    for name, key, expected in (("months", "month", answers.months()), ("hours", "hour", answers.hours())):
        for row in figures[name]:
            count, mean = expected.pop(row[key])
            assert (row["departed"], row["mean"]) == (count, mean if mean is None else pytest.approx(mean, rel=1e-9))
        assert not expected
    assert figures["airports"] == len(answers.places())
    assert [place["code"] for place in figures["shared"]] == answers.shared()
    stops = [place["code"] for place in figures["way"]["stops"]]
    assert len(stops) - 1 == answers.legs(stops[0], stops[-1])
    assert len(figures["dead_letters"]) == 4


def test_every_server_refuses_the_neighbour(killed: Any) -> None:
    attempts = killed.result()["attempts"]
    refusers = [attempt["refused_by"] for attempt in attempts]
    assert {name: refusers.count(name) for name in ("token", "service", "server", "guard", None)} == {
        "token": 1,
        "service": 7,
        "server": 14,
        "guard": 4,
        None: 0,
    }
    answers = {attempt["what"]: attempt["answer"] for attempt in attempts}
    assert "permission denied for database" in answers["connects to skyline's database"]
    assert "Unauthorized" in answers["connects to skyline's Neo4j with its own password"]
    assert "No permissions to access a key" in answers["reads a key of skyline's"]
    assert answers["lists skyline's bucket, with a signed URL"] == "PermissionError: 403 Forbidden"


def test_nothing_of_the_projects_is_stored_in_the_directory(killed: Any) -> None:
    left = {path.name.partition("-")[0] for path in (killed.directory / "skyline").iterdir()}
    assert left <= {"bus.db", "departures.html"}


async def test_the_projects_are_gone_afterwards(killed: Any, timescaledb: testbed.Server) -> None:
    async with postgres_bed.admin(timescaledb) as connection:
        names = await connection.fetch("SELECT datname AS n FROM pg_database UNION SELECT rolname FROM pg_roles")
    assert {"skyline", "harbour"}.isdisjoint(row["n"] for row in names)


def test_each_process_is_told_of_its_own_project_alone(skyline: Callable[..., Any], servers_file: Path) -> None:
    run = skyline("--limit", "200000", "--servers", str(servers_file))
    run.await_log("tower", "attempt", within=200)
    folders = {folder.name: folder for folder in (run.directory / "credentials").iterdir()}
    urls = {
        name: {file.name: file.read_text() for file in folder.glob("KMP_STORAGE_*")} for name, folder in folders.items()
    }
    assert urls.pop("departures") == {}
    assert len(urls["delays"]) == len(urls["tower"]) == 4
    assert not set(urls["delays"].values()) & set(urls["tower"].values())
    administrators = servers_file.read_text()
    for child in run.children():
        variables = " ".join(child.environ().values())
        assert not any(url in variables for told in urls.values() for url in told.values())
        assert not any(url and url in variables for url in administrators.split('"') if "://" in url)
    run.process.send_signal(signal.SIGINT)
    code, output = run.finish()
    assert code == 130, output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read"),
        ("{", "the file"),
        ('{"timeseries": "timescale://postgres:hunter2@localhost/postgres"}', "--servers, graph"),
    ],
)
def test_a_file_of_servers_that_cannot_be_used_is_told_before_anything_is_started(
    skyline: Callable[..., Any], tmp_path: Path, content: str | None, text: str
) -> None:
    file = tmp_path / "servers.json"
    if content is not None:
        file.write_text(content)
    run = skyline("--servers", str(file))
    code, output = run.finish()
    assert code == 2, output
    assert text in output
    assert "hunter2" not in output
    assert not (run.directory / "logs").exists()
