"""What is generated is current, and what the pages at the top point to is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "requirements/README.md",
]


def test_the_page_of_settings_is_what_the_packages_say(root: Path) -> None:
    """If this fails: python -m kmp_core settings --markdown > docs/reference/settings.md"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}
    command = [sys.executable, "-m", "kmp_core", "settings", "--markdown"]
    done = subprocess.run(command, cwd=root, env=kept, capture_output=True, text=True, check=True)
    assert (root / "docs" / "reference" / "settings.md").read_text() == done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(root: Path, page: str) -> None:
    text = (root / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (root / page).parent.joinpath(link).exists()]
    assert missing == []


def test_the_sessions_that_contributing_names_exist(root: Path) -> None:
    named = set(re.findall(r"`python3 dev\.py (\w+)", (root / "CONTRIBUTING.md").read_text()))
    known = set(re.findall(r"^@nox\.session.*\ndef (\w+)", (root / "noxfile.py").read_text(), re.MULTILINE))
    assert named == known


def test_every_benchmark_is_listed(root: Path) -> None:
    listed = set(re.findall(r"`(\w+\.py)`", (root / "benchmarks" / "README.md").read_text()))
    assert {file.name for file in root.glob("benchmarks/*.py")} <= listed
