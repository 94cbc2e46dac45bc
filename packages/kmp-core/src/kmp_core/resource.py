"""What can be opened, checked and closed: the life of every provider, written once.

`Resource` is the protocol that capabilities extend. `Provider` is the base class that gives a provider the whole of
it: it writes `_open`, `_close` and `_check`, and gets the states, the deadlines, the refusal after a fork and the
warning for a forgotten close.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from abc import abstractmethod
from asyncio import _get_running_loop
from datetime import timedelta
from types import TracebackType
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

from kmp_core.deadlines import Timeout, deadline
from kmp_core.errors import LifecycleError

__all__ = ["Intake", "Provider", "Resource", "State"]

_here = [os.getpid()]
"""The process that this is, which every call compares: without the system call that asks for it."""
os.register_at_fork(after_in_child=lambda: _here.__setitem__(0, os.getpid()))

State = Literal["new", "opening", "open", "closing", "closed"]


@runtime_checkable
class Resource(Protocol):
    """Something with a life: `async with resource:` opens it, and closes it whatever happens inside.

    The methods have default bodies, so that a provider of a capability with nothing to open inherits them.
    """

    async def open(self) -> None:
        """Connect. Raises `LifecycleError` for a resource that was opened before."""

    async def close(self) -> None:
        """Let go of everything. Bounded in time, and harmless when repeated."""

    async def check(self) -> None:
        """Return when the backend answers; raise the error that says why it does not. Asked by readiness."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


@runtime_checkable
class Intake(Protocol):
    """A resource that takes work in by itself: a service starts it when it is ready and drains it before it closes."""

    async def start(self) -> None:
        """Begin to take work in."""

    async def drain(self, *, timeout: Timeout = None) -> None:
        """Take no more in, and finish what was taken, within `timeout`."""


class Provider(Resource):
    """Write a provider by writing what is special about it: `_open`, `_close` and `_check`.

    A constructor stores, `open` connects, `close` is idempotent and bounded by `close_timeout`, and reopening raises.
    `self.ensure_open()` is the first line of every call: it refuses before `open`, after `close`, in a forked child,
    and in another event loop, each with advice. A provider that is garbage while open warns with `ResourceWarning`.
    """

    abilities: frozenset[str] = frozenset()
    """Optional abilities that it has; a contract suite tests each, and demands `Unsupported` for the others.

    The class says what it can do at most; an instance that can do less (in memory, nothing is durable) sets its own.
    """

    embedded: ClassVar[bool] = False
    """Whether it keeps its data on this machine. Any other lives on a server that projects share, and needs to be told
    its project."""

    open_timeout: ClassVar[Timeout] = timedelta(seconds=30)
    close_timeout: ClassVar[Timeout] = timedelta(seconds=10)
    check_timeout: ClassVar[Timeout] = timedelta(seconds=2)

    _state: State = "new"
    _pid: int = 0
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def state(self) -> State:
        """Where the resource is in its life."""
        return self._state

    @abstractmethod
    async def _open(self) -> None:
        """Connect; on an exception nothing may be left behind."""

    @abstractmethod
    async def _close(self) -> None:
        """Let go of everything that `_open` took; also called when `_open` failed half-way."""

    @abstractmethod
    async def _check(self) -> None:
        """Ask the backend something cheap."""

    async def open(self) -> None:
        if self._state != "new":
            raise LifecycleError(f"{self._label()} was opened or closed before; make a new one instead of reopening it")
        self._state = "opening"
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        try:
            async with deadline(self.open_timeout, what=f"opening {self._label()}"):
                await self._open()
        except BaseException as error:
            self._state = "closed"
            await self._roll_back(error)
            raise
        if self.state != "opening":  # closed meanwhile
            await self._roll_back(None)
            raise LifecycleError(f"{self._label()} was closed while it was opening")
        self._state = "open"

    async def close(self) -> None:
        if self._state in ("closing", "closed"):
            return
        opened, self._state = self._state == "open", "closing"
        try:
            if opened and self._pid == os.getpid():
                async with deadline(self.close_timeout, what=f"closing {self._label()}", fresh=True):
                    await self._close()
        finally:
            self._state = "closed"

    async def _roll_back(self, error: BaseException | None) -> None:
        """Let go of what a failed `_open` took. What goes wrong here must not hide why it failed."""
        try:
            async with deadline(self.close_timeout, what=f"closing {self._label()}", fresh=True):
                await self._close()
        except Exception as second:
            if error is None:
                raise
            error.add_note(f"closing what was opened so far failed too: {type(second).__name__}: {second}")

    async def check(self) -> None:
        self.ensure_open()
        async with deadline(self.check_timeout, what=f"checking {self._label()}", outcome_unknown=False):
            await self._check()

    def ensure_open(self) -> None:
        """Raise `LifecycleError` unless the resource is open in this very process, and called in its event loop."""
        if self._state == "open" and self._pid == _here[0] and self._loop is _get_running_loop():
            return
        if self._state == "open" and self._pid == os.getpid():
            raise LifecycleError(
                f"{self._label()} was opened in another event loop: call it in that one "
                "(from a thread with asyncio.run_coroutine_threadsafe(..., loop))"
            )
        if self._state == "open":
            raise LifecycleError(
                f"{self._label()} was opened in process {self._pid} and is used in process {os.getpid()}: "
                "open it after the fork, in each worker (for example in the ASGI lifespan)"
            )
        hint = {
            "new": "use 'async with', or await open() first",
            "opening": "await open() first",
            "closing": "it is closing",
            "closed": "it is closed; make a new one",
        }[self._state]
        raise LifecycleError(f"{self._label()} is not open: {hint}")

    def _label(self) -> str:
        return type(self).__name__

    def __del__(self) -> None:
        if self._state == "open" and self._pid == os.getpid():
            warnings.warn(f"{self._label()} was never closed", ResourceWarning, source=self, stacklevel=1)
