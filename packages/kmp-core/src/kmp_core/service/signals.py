"""What SIGTERM and SIGINT mean to a service: the first one asks it to leave, the second one ends it at once."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["EXIT_TEMPORARY", "Signals", "end_by", "end_process"]

EXIT_TEMPORARY = 75
"""`EX_TEMPFAIL` of sysexits.h: not all was finished, and starting again will help."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Handlers for the time of one service's run. Outside the main thread, where Python allows none, it does nothing.

    The handlers are Python's own rather than the event loop's, so that the second signal is heard while the loop is
    busy. From the first signal on a watchdog counts: a blocked loop, or a thread that nobody can cancel, does not
    keep a service that was told to leave for longer than `seconds`.
    """

    def __init__(self, on_first: Callable[[], None], *, seconds: float) -> None:
        self._on_first = on_first
        self._seconds = seconds
        self._pid = os.getpid()
        self._before: dict[signal.Signals, Any] = {}
        self._received: signal.Signals | None = None
        self._watchdog: _Watchdog | None = None

    def install(self) -> None:
        """Take over both signals until `restore`."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        self._watchdog = _Watchdog(self._seconds)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)

    def restore(self, *, hung: bool) -> None:
        """Give the signals back. Where work is left that could not be stopped, the watchdog goes on counting."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
        if self._watchdog is not None and not hung:
            self._watchdog.dismiss()
        self._watchdog = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            end_by(number)
            return
        received = signal.Signals(number)
        if self._received is not None:
            end_process(128 + number, f"{received.name} came again: ending at once")
        self._received = received
        if self._watchdog is not None:
            self._watchdog.count()
        self._on_first()


class _Watchdog:
    """A thread that ends the process some seconds after it was told to count.

    It is there before it is needed and is told through a pipe: a signal handler may interrupt anything, so it must not
    wait for a lock, as starting a thread or setting an event would.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._read, self._write = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="kmp-shutdown-watchdog", daemon=True)
        self._thread.start()

    def count(self) -> None:
        os.write(self._write, b"c")

    def dismiss(self) -> None:
        os.write(self._write, b"d")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _watch(self) -> None:
        if os.read(self._read, 1) == b"d":
            return
        ready, _, _ = select.select([self._read], [], [], self._seconds)
        if not ready:
            end_process(EXIT_TEMPORARY, f"leaving took longer than {self._seconds:.3g} s: ending now")


def end_by(number: int) -> None:
    """Let a signal do what it does to a process without a handler: a forked child has the handlers of its parent, and
    must neither outlive the signal nor tell the parent of it through what they share.
    """
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


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
