"""The main job: real flights through three real processes, and the figures that the files themselves give."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from kmp_storage.embedded.bucket import FileBucket

LIMIT = 12_000
FULL_RUN_SECONDS = 400  # on a machine with a lot else to do

pytestmark = pytest.mark.timeout(FULL_RUN_SECONDS)


@pytest.fixture(scope="module")
def full(skyline: Callable[..., Any]) -> Any:
    """A run over all flights."""
    run = skyline()
    code, output = run.finish(within=FULL_RUN_SECONDS)
    assert code == 0, output
    return run, output


@pytest.fixture(scope="module")
def killed(skyline: Callable[..., Any]) -> Any:
    """A run over some flights, in which `delays` is killed twice."""
    run = skyline("--limit", str(LIMIT), "--kill-delays", "2")
    code, output = run.finish()
    assert code == 0, output
    return run, output


def agrees(figures: dict[str, Any], oracle: Any) -> None:
    """Every figure of the report is what the files say."""
    flights, missing, mean = oracle.totals()
    assert (figures["flights"], figures["missing"]) == (flights, missing)
    assert figures["mean"] == pytest.approx(mean, rel=1e-9)
    months = {row["month"]: (row["departed"], row["mean"]) for row in figures["months"]}
    assert months == approximately(oracle.months())
    hours = {row["hour"]: (row["departed"], row["mean"]) for row in figures["hours"]}
    assert hours == approximately(oracle.hours())
    scheduled = oracle.routes()
    routes = {(row["origin"], row["dest"]["code"]): (row["departed"], row["mean"]) for row in figures["routes"]}
    assert routes == approximately({route: found for route, found in scheduled.items() if found[0]})
    assert figures["never_flown"] == sorted(f"{a} → {b}" for (a, b), (departed, _) in scheduled.items() if not departed)
    assert figures["airports"] == len(oracle.places())
    assert figures["without_details"] == oracle.without_details()
    assert [place["code"] for place in figures["shared"]] == oracle.shared()
    names = oracle.names()
    assert all(place["name"] == names.get(place["code"], "").replace("\\", "") or None for place in figures["shared"])


def approximately(rows: dict[Any, tuple[int, float | None]]) -> dict[Any, tuple[int, Any]]:
    return {
        key: (count, None if mean is None else pytest.approx(mean, rel=1e-9)) for key, (count, mean) in rows.items()
    }


def test_every_flight_is_counted_once_and_every_figure_is_right(full: Any, oracle: Callable[..., Any]) -> None:
    run, _ = full
    figures = run.result()["figures"]
    assert (figures["flights"], figures["missing"]) == (336_776, 8_255)
    assert figures["mean"] == pytest.approx(12.639, abs=0.0005)
    agrees(figures, oracle())


def test_the_worst_routes_are_those_with_the_highest_means(full: Any, oracle: Callable[..., Any]) -> None:
    figures = full[0].result()["figures"]
    often = {route: mean for route, (count, mean) in oracle().routes().items() if count >= 100}
    expected = sorted(often, key=lambda route: -often[route])[:10]
    assert figures["worst_at_least"] == 100
    assert [(row["origin"], row["dest"]["code"]) for row in figures["worst"]] == expected


def test_the_way_between_two_cities_is_the_shortest(full: Any, oracle: Callable[..., Any]) -> None:
    stops = [place["code"] for place in full[0].result()["figures"]["way"]["stops"]]
    answers = oracle()
    flown = {route for route, (departed, _) in answers.routes().items() if departed}
    assert (stops[0], stops[-1]) not in flown
    assert (stops[-1], stops[0]) not in flown
    assert len(stops) - 1 == answers.legs(stops[0], stops[-1]) > 1
    assert all((a, b) in flown or (b, a) in flown for a, b in pairwise(stops))


def test_the_full_run_stays_below_a_gibibyte(full: Any) -> None:
    run = full[0].result()["run"]
    assert 0 < run["peak_bytes"] <= 2**30
    assert {use["service"] for use in run["processes"]} == {"departures", "delays", "tower"}
    assert len({use["pid"] for use in run["processes"]}) == 3


def test_airports_are_looked_up_in_the_cache(full: Any) -> None:
    cache = full[0].result()["figures"]["cache"]
    assert cache["ratio"] > 0.9
    # Not one miss for each look-up of the four that are in no file: that they are missing is remembered too.
    assert cache["misses"] < 1000


def test_killed_in_the_middle_it_counts_the_same(killed: Any, oracle: Callable[..., Any]) -> None:
    run, _ = killed
    result = run.result()
    lives = [use for use in result["run"]["processes"] if use["service"] == "delays"]
    assert [use["exit_code"] for use in lives[:-1]] == [-signal.SIGKILL] * 2
    assert len({use["pid"] for use in lives}) == 3
    # Each life did some of the work, so the kills were in the middle of it.
    ready = [line["timestamp"] for line in run.logged("delays", "ready")]
    handled = [line["timestamp"] for line in run.logged("delays", "handled")]
    assert all(any(a < time < b for time in handled) for a, b in zip(ready, [*ready[1:], "9"], strict=True))
    agrees(result["figures"], oracle(LIMIT))


def test_malformed_events_become_dead_letters_with_their_causes(killed: Any) -> None:
    letters = killed[0].result()["figures"]["dead_letters"]
    causes = sorted((letter["type"], letter["cause"].rpartition(".")[2]) for letter in letters)
    assert causes == [
        ("Departed", "InvalidEvent"),
        ("Departed", "InvalidEvent"),
        ("Departed", "ValidationError"),
        ("Diverted", "UnknownEventType"),
    ]
    details = " ".join(letter["detail"] for letter in letters)
    assert "carrier" in details
    assert "an hour or so" not in details  # a value never shows


def test_the_neighbour_is_refused_by_token_service_and_guard(killed: Any) -> None:
    attempts = killed[0].result()["attempts"]
    refusers = [attempt["refused_by"] for attempt in attempts]
    assert {name: refusers.count(name) for name in ("token", "service", "guard", None)} == {
        "token": 1,
        "service": 7,
        "guard": 8,
        None: 0,
    }
    answers = {attempt["what"]: attempt["answer"] for attempt in attempts}
    assert answers["calls delays without a token"] == "401 Unauthorized"
    assert answers["calls delays with a valid token for delays, issued to tower by mistake"] == "403 Forbidden"
    assert "PermissionDenied" in answers["opens skyline's event bus as project harbour"]


def test_the_terminal_shows_the_answers(killed: Any) -> None:
    output = " ".join(killed[1].split())
    for text in (
        "Mean delay by month",
        "Mean delay by scheduled hour",
        "Worst routes",
        "reached from all of EWR, JFK, LGA",
        "routes walked both ways",
        "from the cache",
        "Dead letters",
        "What the neighbour tried",
        "SIGKILL",
    ):
        assert text in output
    assert "Traceback" not in output
    assert "NOT REFUSED" not in output


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects addresses."""

    void = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_the_page_is_in_the_bucket_and_needs_nothing_else(killed: Any) -> None:
    run, output = killed
    async with FileBucket(project="skyline", directory=run.directory / "skyline") as bucket:
        content = await bucket.get("reports/departures.html")
    printed = re.search(r"Report with charts: (\S+)", output)
    assert printed is not None
    assert Path(printed[1]).read_bytes() == content  # noqa: ASYNC240 - nobody waits
    page = Page()
    page.feed(content.decode())
    assert page.open == []
    assert page.seen.count("svg") == 4
    assert page.addresses == []
    assert f"{LIMIT:,}" in content.decode()


def test_nothing_is_left_running_and_no_secret_is_left(killed: Any) -> None:
    run, _ = killed
    for use in run.result()["run"]["processes"]:
        if psutil.pid_exists(use["pid"]):
            assert "skyline.child" not in psutil.Process(use["pid"]).cmdline()
    assert not (run.directory / "credentials").exists()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (run.directory, run.directory / "skyline"))


def test_each_process_holds_its_own_credential_alone(skyline: Callable[..., Any]) -> None:
    run = skyline("--limit", "200000")
    run.await_log("tower", "attempt")
    folders = sorted((run.directory / "credentials").iterdir())
    assert [folder.name for folder in folders] == ["delays", "departures", "tower"]
    secrets = {folder.name: (folder / "KMP_SKYLINE_CLIENT_SECRET").read_text() for folder in folders}
    assert all(path.stat().st_mode & 0o077 == 0 for folder in folders for path in (folder, *folder.iterdir()))
    for child in run.children():
        name, variables = child.cmdline()[-1], child.environ()
        assert variables["KMP_SECRETS_DIR"] == str(run.directory / "credentials" / name)
        assert not any(secret in value for secret in secrets.values() for value in variables.values())
    run.process.send_signal(signal.SIGINT)
    assert run.finish()[0] == 130


def test_ctrl_c_ends_it_with_what_was_done_so_far(skyline: Callable[..., Any]) -> None:
    run = skyline()
    run.await_log("delays", "handled")
    pids = [child.pid for child in run.children()]
    run.process.send_signal(signal.SIGINT)
    code, output = run.finish()
    assert code == 130, output
    assert "Traceback" not in output
    assert "Ended early" in output
    result = run.result()
    assert result["run"]["interrupted"]
    assert 0 < result["figures"]["flights"] < 336_776
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).is_running() for pid in pids)


def test_ctrl_c_before_anything_happened_ends_it_too(skyline: Callable[..., Any]) -> None:
    run = skyline("--limit", "100")
    end_of_start = run.directory / "keys.json"
    while not end_of_start.exists():
        assert run.process.poll() is None, run.finish()[1]
    run.process.send_signal(signal.SIGINT)
    code, output = run.finish()
    assert code == 130, output
    assert "Traceback" not in output


def test_services_end_when_their_launcher_is_killed(skyline: Callable[..., Any]) -> None:
    run = skyline("--limit", "200000")
    run.await_log("delays", "handled")
    children = run.children()
    assert children
    run.process.kill()
    run.process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    for process in alive:
        process.kill()
    assert alive == []
