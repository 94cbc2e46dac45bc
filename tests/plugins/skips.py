"""A skip on a laptop is a failure in CI: there, what a test needs must be present.

A reason that CI accepts stands in `ALLOWED`, each with why.
"""

from __future__ import annotations

import os
import re

import pytest

ALLOWED: dict[str, str] = {
    r"is not declared|the provider declares no ": "an optional ability; a committed table tells who has it",
    # reason of the skip (a regular expression) -> why CI may lack it
    "needs a process that is not root": "the only user of a build container is often root, whom no file mode stops",
}

_skipped: list[tuple[str, str]] = []


def refused(reason: str) -> bool:
    """Whether a skip for this reason fails the run in CI."""
    return not any(re.search(pattern, reason) for pattern in ALLOWED)


def note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if refused(reason):
        _skipped.append((report.nodeid, reason))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    note(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") and _skipped:
        terminalreporter.section("skipped, which CI does not accept", red=True)
        for nodeid, reason in _skipped:
            terminalreporter.write_line(f"{nodeid}: {reason}")
