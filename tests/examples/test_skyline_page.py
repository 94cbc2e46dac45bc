"""The drawings alone: what they make of odd values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"

PROGRAM = """
from datetime import UTC, datetime
from skyline import charts, page
from skyline.figures import Attempt, Place, Result, RouteDelay, Run

run = Run(started=datetime(2030, 1, 1, tzinfo=UTC), seconds=1, published=0, malformed=0, events_per_second=0,
          peak_bytes=0, kills=0, interrupted=True, processes=())
attempt = Attempt(what="<script>alert(1)</script>", refused_by=None, answer="it worked & more")
text = page.render(Result(run=run, figures=None, attempts=(attempt,)), [])
assert "<script>" not in text
assert "&lt;script&gt;" in text and "it worked &amp; more" in text
assert "NOT REFUSED" in text
assert "ended early" in text

assert "<rect" not in charts.columns([], title="none", unit="minutes")
assert charts.columns([("1", None), ("2", -3.0), ("3", 5.0)], title="some", unit="minutes").count("<rect") == 2
assert charts.bars([], title="none", unit="minutes").startswith("<svg")
nowhere = RouteDelay(origin="JFK", dest=Place(code="SJU"), departed=1, mean=1.0)
assert "<path" not in charts.network([nowhere], [Place(code="JFK", latitude=40.6, longitude=-73.8)], title="map")
assert charts.network([], [], title="map").endswith("</svg>")
"""


def test_odd_values_are_drawn_and_nothing_is_taken_for_markup() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=EXAMPLES, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
