"""Ctrl-C reaches what the tests start, also where the run itself was put in the background, which ignores it."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # Programs inherit that a signal is ignored, and no program of Python's hears it then.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
