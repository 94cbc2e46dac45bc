"""What SIGTERM and SIGINT mean to a service: the first one asks it to leave, the second one ends it at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["EXIT_TEMPORARY", "Signals", "end_process"]

EXIT_TEMPORARY = 75
"""`EX_TEMPFAIL` of sysexits(3): not all was finished, and starting again will help."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger(__name__)


class Signals:
    """Handlers for the time of one service's run. Outside the main thread, where Python allows none, it does nothing.

    The handlers are Python's own rather than the event loop's, so that the second signal is heard while the loop is
    busy. `arm` starts a watchdog thread that ends the process: even a blocked loop, or a thread that nobody can
    cancel, does not keep a service that was told to leave.
    """

    def __init__(self, on_first: Callable[[signal.Signals], None]) -> None:
        self._on_first = on_first
        self._before: dict[signal.Signals, Any] = {}
        self._received: signal.Signals | None = None
        self._watchdog: threading.Timer | None = None

    def install(self) -> None:
        """Take over both signals until `restore`."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._handle)

    def arm(self, seconds: float) -> None:
        """End the process after `seconds` unless `restore` comes first, if it was a signal that asked it to leave."""
        if self._received is None or self._watchdog is not None:
            return
        self._watchdog = threading.Timer(seconds, _give_up, (seconds,))
        self._watchdog.daemon = True
        self._watchdog.name = "kmp-shutdown-watchdog"
        self._watchdog.start()

    def restore(self, *, disarm: bool = True) -> None:
        """Give the signals back; with `disarm=False` the watchdog goes on, for work that could not be stopped."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
        if disarm and self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if self._received is not None:
            end_process(128 + number, f"{received.name} came again: ending at once")
        self._received = received
        self._on_first(received)


def _give_up(seconds: float) -> None:
    end_process(EXIT_TEMPORARY, f"the shutdown took longer than {seconds:.3g} s: ending now")


def end_process(code: int, message: str) -> None:
    """Leave without waiting for anything. What providers stored durably stays stored."""
    # Not through logging: the interrupted code may hold its lock.
    os.write(2, f"kmp: {message}\n".encode())
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: S112 - a broken stream must not keep the process
            continue
    os._exit(code)
