"""User code passes `mypy --strict` and strict pyright without a cast or an ignore, and wrong uses do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RIGHT = """
from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

from kmp_core import Service
from kmp_storage import Edge, GraphStore, Measurement, Node, Path, Row, TimeSeriesStore
from kmp_storage.embedded.timeseries import SqliteTimeSeriesStore


class Delay(Measurement, series="delays", tags=("origin",), unique=("flight",), retention="90d"):
    flight: str
    origin: str
    minutes: float | None


class Airport(Node, label="Airport", key="code"):
    code: str
    name: str | None = None


class Route(Edge, type="ROUTE", source=Airport, target=Airport):
    miles: int | None = None


class Rail(Edge, type="RAIL", source=Airport, target=Airport):
    minutes: int = 0


async def stream() -> AsyncIterator[Delay]:
    yield Delay(time=datetime.now(UTC), flight="UA1", origin="JFK", minutes=None)


async def time_series(store: TimeSeriesStore) -> float | int | None:
    new: int = await store.append(Delay(time=datetime.now(UTC), flight="UA1", origin="JFK", minutes=2.0), timeout="2s")
    new += await store.append_all(stream())
    new += await store.append_all([Delay(time=datetime.now(UTC), flight="UA2", origin="JFK", minutes=None)])
    minutes: list[float | None] = [row.minutes async for row in store.read(Delay, where={"origin": "JFK"}, limit=3)]
    rows: list[Row] = await store.aggregate(
        Delay, every="1month", values={"minutes": ["mean", "stddev"], "flight": "count"}, by=("origin",),
        zone="America/New_York",
    )
    latest: list[Delay] = await store.latest(Delay, by=("origin",))
    await store.erase(Delay, where={"origin": "JFK"})
    return rows[0].values["minutes_mean"] if minutes and new else latest[0].minutes


async def graph(store: GraphStore) -> list[str | None]:
    await store.merge(Airport(code="JFK", name="Kennedy"), Route(source="JFK", target="LAX", miles=2475))
    airport: Airport | None = await store.get(Airport, "JFK")
    routes: list[Route] = await store.edges(Route)
    near: list[Airport] = await store.neighbours(Airport(code="JFK"), via=Route, only=Airport, depth=2)
    nodes: list[Node] = await store.neighbours(Airport(code="JFK"), via=(Route, Rail), direction="both")
    paths: list[Path] = await store.paths(Airport(code="JFK"), Airport(code="LAX"), via=Route, limit=3)
    keys: tuple[str, ...] = paths[0].keys
    return [airport.name if airport else None, *(one.name for one in near), routes[0].source, *keys, str(len(nodes))]


async def main() -> None:
    async with Service("delays") as service:
        await time_series(await service.get(TimeSeriesStore))
        await graph(await service.get(GraphStore))
    async with SqliteTimeSeriesStore("memory:") as store:
        await time_series(store)
"""

WRONG = {
    "await series.append(Airport(code='JFK'))": "a node is no measurement",
    "await series.append_all([Airport(code='JFK')])": "a stream of nodes",
    "await graph.merge(delay)": "a measurement is no node",
    "Delay(time=delay.time, flight='UA1', origin='JFK')": "a field is missing",
    "Delay(time=delay.time, flight='UA1', origin='JFK', minutes=None, gate='B2')": "a field is unknown",
    "Route(source='JFK', miles=3)": "an end is missing",
    "await series.aggregate(Delay, values={'minutes': 'meen'})": "an aggregation is unknown",
    "await series.aggregate(Delay, every=3.0, values={'minutes': 'mean'})": "a bucket is no number",
    "await series.aggregate(Delay, every='1h', fill='nul', values={'minutes': 'mean'})": "a way to fill is unknown",
    "series.read(Airport)": "a node is no series",
    "routes: list[Airport] = await graph.edges(Route)": "edges have their class",
    "found: Route | None = await graph.get(Route, 'JFK')": "an edge is no node",
    "near: list[Airport] = await graph.neighbours(airport, via=Route)": "without 'only' the class is not known",
    "await graph.neighbours(airport, via=Airport)": "a node is no way",
    "await graph.paths(airport, airport, via=Route, direction='sideways')": "a direction is unknown",
}


def _wrong() -> str:
    head = RIGHT.partition("async def stream()")[0].replace("AsyncIterator\n", "AsyncIterator  # noqa\n")
    lines = [f"    {line}  # wrong {number}" for number, line in enumerate(WRONG)]
    body = ["    " + line.strip() for line in lines]
    return "\n".join(
        [
            head,
            "async def wrong(series: TimeSeriesStore, graph: GraphStore, delay: Delay, airport: Airport) -> None:",
            *body,
            "",
        ]
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("typing")
    (directory / "right.py").write_text(RIGHT)
    (directory / "wrong.py").write_text(_wrong())
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "reportUnusedImport": False}
    (directory / "pyrightconfig.json").write_text(json.dumps(settings))
    (directory / "plain.ini").write_text("[mypy]\nstrict = True\n")
    (directory / "plugin.ini").write_text("[mypy]\nstrict = True\nplugins = pydantic.mypy\n")
    return directory


def _run(project: Path, *command: str) -> str:
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        capture_output=True,
        text=True,
        env=environment,
        timeout=110,
        check=False,
    )
    return done.stdout + done.stderr


def _mypy(project: Path, settings: str, file: str) -> str:
    cache = project / ".cache" / settings
    return _run(project, "mypy", "--config-file", settings, "--cache-dir", str(cache), "--no-pretty", file)


def _missed(project: Path, output: str) -> list[str]:
    lines = (project / "wrong.py").read_text().splitlines()
    told = {
        int(part)
        for part in (found.split(":")[1] for found in output.splitlines() if ": error" in found or " - error" in found)
    }
    return [line.strip() for number, line in enumerate(lines, start=1) if "# wrong" in line and number not in told]


@pytest.mark.parametrize("settings", ["plain.ini", "plugin.ini"])
def test_mypy_takes_right_code_and_no_wrong_code(project: Path, settings: str):
    output = _mypy(project, settings, "right.py")
    assert "Success: no issues found" in output, output
    output = _mypy(project, settings, "wrong.py")
    assert _missed(project, output) == [], output


def test_pyright_takes_right_code_and_no_wrong_code(project: Path):
    output = _run(project, "pyright", "--pythonpath", sys.executable, "right.py")
    assert "0 errors, 0 warnings" in output, output
    output = _run(project, "pyright", "--pythonpath", sys.executable, "wrong.py")
    assert _missed(project, output) == [], output
