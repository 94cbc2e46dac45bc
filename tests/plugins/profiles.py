"""Hypothesis: the same examples in every CI run, new ones on a laptop; never a deadline, since machines differ."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("laptop", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "laptop")
