"""Runs one service for the launcher, `python -m skyline.child departures`, and ends it when the launcher is gone.

The services know nothing of this: each is a program of its own. A launcher that is killed can no longer end them, but
then its end of their standard input closes.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

_PATIENCE_SECONDS = 5.0


def follow_launcher() -> None:
    """End this process when standard input ends: politely, and after a while at once."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(_PATIENCE_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, name="follow-launcher", daemon=True).start()


if __name__ == "__main__":
    follow_launcher()
    runpy.run_module(f"skyline.{sys.argv[1]}", run_name="__main__")
