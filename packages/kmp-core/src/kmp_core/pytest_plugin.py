"""Fixtures for users' tests; imported by pytest itself, so nothing heavy is imported before a fixture is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kmp_core.testing import ManualClock


@pytest.fixture
def kmp_clock() -> ManualClock:
    """A clock that stands still until `advance`."""
    from kmp_core.testing import ManualClock

    return ManualClock()
