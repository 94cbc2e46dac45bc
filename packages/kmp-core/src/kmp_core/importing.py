"""What is wrong with a program while its modules are imported ends it on one screen, as `kmp_core.run` does later.

Classes are declared and drivers looked for before there is a `run` that could tell of errors. Only an error that was
marked here, and that nobody catches, is told so; any other is shown as Python, or the program, shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import ParamSpec, TypeVar
from weakref import ref

from kmp_core.errors import KmpError

__all__ = ["declaration", "on_one_screen"]

E = TypeVar("E", bound=KmpError)
P = ParamSpec("P")

_marked: list[ref[KmpError]] = []  # the last one


def declaration(check: Callable[P, None]) -> Callable[P, None]:
    """For `__init_subclass__` and its like: what they refuse is told on one screen."""

    @wraps(check)
    def checked(*arguments: P.args, **keywords: P.kwargs) -> None:
        try:
            check(*arguments, **keywords)
        except KmpError as error:
            on_one_screen(error)
            raise

    return checked


def on_one_screen(error: E) -> E:
    """Mark an error that is about to be raised, and return it."""
    if not _marked:
        before = sys.excepthook

        def tell(kind: type[BaseException], raised: BaseException, traceback: TracebackType | None) -> None:
            if raised is not _marked[0]():
                before(kind, raised, traceback)
                return
            from kmp_core.service.program import exit_code, told

            print(told(raised, placed=True), file=sys.stderr)  # noqa: T201
            raise SystemExit(exit_code(raised))

        sys.excepthook = tell
    _marked[:] = [ref(error)]
    return error
