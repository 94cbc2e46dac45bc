"""Run a program so that a user's mistake fills one screen and never shows a traceback, and the exit code tells.

    if __name__ == "__main__":
        kmp_core.run(main)

| code | meaning |
|---|---|
| 0 | done, or told to leave and left in order |
| 1 | failed: an error nobody expected, with its traceback |
| 65 | the input or the stored data is wrong (`EX_DATAERR` of sysexits.h) |
| 70 | the program uses KMP wrongly, and where (`EX_SOFTWARE`) |
| 75 | a backend was away, or work was left over at the drain: starting again will help (`EX_TEMPFAIL`) |
| 77 | not allowed (`EX_NOPERM`) |
| 78 | the configuration is wrong (`EX_CONFIG`) |
| 128 + n | ended by signal n: at once by the second SIGTERM or SIGINT; cancelled by one before `Service.run` |
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType, TracebackType
from typing import Any

from kmp_core.errors import (
    AccessDenied,
    BackendError,
    ConfigurationError,
    Corrupt,
    InvalidInput,
    KmpError,
    LifecycleError,
    Unsupported,
)
from kmp_core.service.signals import EXIT_TEMPORARY, end_by, end_process

__all__ = ["exit_code", "run", "told"]

_MISUSE = 70
_CODES = {
    ConfigurationError: 78,
    InvalidInput: 65,
    Corrupt: 65,
    LifecycleError: _MISUSE,
    Unsupported: _MISUSE,
    AccessDenied: 77,
    BackendError: EXIT_TEMPORARY,
}
_LIBRARIES = frozenset(("kmp_core", "kmp_storage", "kmp_messaging", "pydantic")) | sys.stdlib_module_names
_LAST_SECONDS = 5.0
_SIGINT = 130
_SIGTERM = 143


def run(main: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run `main` to its end. Raises `SystemExit` with the code where that is not 0.

    Whatever hangs at the end, a task that does not hear its cancellation or a thread of ours, is left behind after a
    few seconds.
    """
    code = _run(main)
    if code:
        sys.exit(code)


def _run(main: Callable[[], Coroutine[Any, Any, object]]) -> int:
    runner = asyncio.Runner()
    watchdog: threading.Timer | None = None
    try:
        code = _outcome(runner, main)
        watchdog = threading.Timer(_LAST_SECONDS, end_process, (code or EXIT_TEMPORARY, "ended with work that hangs"))
        watchdog.daemon = True
        watchdog.start()
    finally:
        runner.close()
    if not any(_hangs(thread) for thread in threading.enumerate()):
        watchdog.cancel()
    return code


def _outcome(runner: asyncio.Runner, main: Callable[[], Coroutine[Any, Any, object]]) -> int:
    termination = _Termination()
    handed: object = main  # a call may hand over what no type checker has seen
    try:
        if isinstance(handed, Coroutine):
            handed.close()
            raise InvalidInput("main", "must be the function itself, not called", example="run(main)")
        runner.run(termination.around(main))
    except KeyboardInterrupt:
        return _SIGINT
    except asyncio.CancelledError:
        if not termination.received:
            raise
        return _SIGTERM
    except Exception as error:  # the last line of defence of a program
        return _tell(error)
    return 0


class _Termination:
    """SIGTERM while nothing runs yet, as a slow start may be told: cancels the program, so that it closes what it has.

    Without it the process would end on the spot, or, as the first process of a container, would never hear of it.
    `Service.run` puts its own handling in the place of this. A program that has one of its own keeps it.
    """

    def __init__(self) -> None:
        self.received = False

    async def around(self, main: Callable[[], Coroutine[Any, Any, object]]) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        pid = os.getpid()

        def terminate(number: int, frame: FrameType | None) -> None:
            if os.getpid() != pid:
                end_by(number)
            if self.received:
                end_process(128 + number, "SIGTERM came again: ending at once")
            self.received = True
            loop.call_soon_threadsafe(task.cancel)

        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            await main()
            return
        signal.signal(signal.SIGTERM, terminate)
        try:
            await main()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _hangs(thread: threading.Thread) -> bool:
    # Python waits for these at its end, for ever if need be.
    return not thread.daemon and thread.name.startswith(("kmp-", "asyncio_"))


def _tell(error: Exception) -> int:
    code = exit_code(error)
    if code == 1:
        from kmp_core.redaction import redact_text

        # Frames without their local variables: those may be secrets.
        print(redact_text("".join(traceback.format_exception(error))), end="", file=sys.stderr)  # noqa: T201
        return code
    for one in _leaves(error):
        print(told(one, placed=_code(one) == _MISUSE), *getattr(one, "__notes__", ()), sep="\n", file=sys.stderr)  # noqa: T201
    return code


def told(error: BaseException, *, placed: bool) -> str:
    """The error in a line, with the place in the program that it comes from where that is what has to be changed."""
    place = _place(error.__traceback__) if placed else ""
    return f"{type(error).__name__}: {_text(error)}{place}"


def _place(traceback: TracebackType | None) -> str:
    """The last line of the user's own."""
    place = ""
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES:
            place = f" ({frame.f_code.co_filename}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place


def exit_code(error: BaseException) -> int:
    """The exit code that stands for an error; a group counts as its first error that nobody expected."""
    codes = [_code(one) for one in _leaves(error)]
    return 1 if 1 in codes else codes[0]


def _code(error: BaseException) -> int:
    if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
        return 78
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), 1)


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, KmpError):
        text = error.strerror or os.strerror(error.errno or 0)
        return f"{text}; for example another port, or 0 for a free one" if error.errno == errno.EADDRINUSE else text
    return str(error)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
