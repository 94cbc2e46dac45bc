"""The providers of one service: each opened once, dependencies first, and closed after everything that uses it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

from kmp_core.capability import CapabilitySpec
from kmp_core.deadlines import Timeout, deadline, detached
from kmp_core.errors import ConfigurationError, DeadlineExceeded, Fault, LifecycleError
from kmp_core.resource import Resource

__all__ = ["Providers"]

Make = Callable[[CapabilitySpec], Resource]
Hook = Callable[[CapabilitySpec, Resource], Awaitable[None]]

_CLOSE_SECONDS = 10.0
_LAST_CALL_SECONDS = 0.5


@dataclass(eq=False)
class _Entry:
    """One capability: the task that opens its provider, what that needs, and whether the user asked for it."""

    spec: CapabilitySpec
    task: asyncio.Task[Resource] | None = None
    provider: Resource | None = None
    owned: bool = True
    wanted: bool = False
    needs: set[str] = field(default_factory=set)


class Providers:
    """Open on demand, and close in reverse.

    `make` builds a provider that is not open yet; `opened` is awaited when one has opened.
    """

    def __init__(self, make: Make, opened: Hook, *, open_timeout: Timeout) -> None:
        self._open_timeout = open_timeout
        self._make = make
        self._opened = opened
        self._entries: dict[str, _Entry] = {}
        self._replaced: dict[str, Resource] = {}
        self._closing = False
        self.hung: list[str] = []

    def replace(self, spec: CapabilitySpec, provider: Resource) -> None:
        """Use this provider instead of the configured one. Raises `LifecycleError` when that was opened already."""
        if spec.name in self._entries:
            raise LifecycleError(f"{spec.name} is in use already: replace it before the first get")
        self._replaced[spec.name] = provider

    @property
    def open(self) -> list[tuple[CapabilitySpec, Resource]]:
        """What is open, in the order of opening."""
        return [(entry.spec, entry.provider) for entry in self._entries.values() if entry.provider is not None]

    async def get(self, spec: CapabilitySpec, *, asker: str | None = None) -> Resource:
        """The opened provider; whoever asks while it opens waits for the same opening.

        A caller that is cancelled leaves the others waiting undisturbed.
        """
        if self._closing:
            raise LifecycleError("the service is closing: nothing is opened any more")
        if asker is not None:
            self._note(asker, spec)
        entry = self._entries.get(spec.name)
        if entry is None:
            entry = self._entries[spec.name] = _Entry(spec)
            entry.task = asyncio.create_task(self._open(entry), name=f"kmp-open-{spec.name}", context=detached())
            entry.task.add_done_callback(_retrieved)
        entry.wanted = entry.wanted or asker is None
        if entry.provider is not None:
            return entry.provider
        assert entry.task is not None
        return await asyncio.shield(entry.task)

    async def close(self, end: float) -> list[Exception]:
        """Close everything, what depends on others first, and return what went wrong. Over by `end` (monotonic)."""
        self._closing = True
        errors: list[Exception] = []
        pending = [entry.task for entry in self._entries.values() if entry.task and not entry.task.done()]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=max(_LAST_CALL_SECONDS, end - time.monotonic()))
        order = self._closing_order()
        for position, entry in enumerate(order):
            others = len(order) - position - 1
            seconds = max(_LAST_CALL_SECONDS, min(_CLOSE_SECONDS, end - time.monotonic() - others * _LAST_CALL_SECONDS))
            errors += await self._close(entry, seconds)
        self._entries.clear()
        return errors

    def _note(self, asker: str, spec: CapabilitySpec) -> None:
        way = self._way(spec.name, asker)
        if way is not None:
            circle = " needs ".join([asker, *way])
            raise ConfigurationError(
                Fault(spec.name, f"needs itself: {circle}", example="a provider that asks for less"),
                heading="Providers depend on each other in a circle",
            )
        if asker in self._entries:
            self._entries[asker].needs.add(spec.name)

    def _way(self, start: str, end: str) -> list[str] | None:
        if start == end:
            return [end]
        entry = self._entries.get(start)
        for need in sorted(entry.needs) if entry else ():
            way = self._way(need, end)
            if way is not None:
                return [start, *way]
        return None

    async def _open(self, entry: _Entry) -> Resource:
        provider: Resource | None = None
        try:
            provider = self._replaced.get(entry.spec.name)
            if provider is None:
                provider = self._make(entry.spec)
            entry.owned = getattr(provider, "state", "new") != "open"
            if entry.owned:
                async with deadline(self._open_timeout, what=f"opening {entry.spec.name}"):
                    await provider.open()
            entry.provider = provider
            await self._opened(entry.spec, provider)
        except BaseException:
            self._entries.pop(entry.spec.name, None)
            if entry.provider is None and provider is not None and entry.owned:
                entry.provider = provider  # a provider that does not clean up after itself
            if entry.provider is not None:
                await self._close(entry, _CLOSE_SECONDS)
            await self._release(entry.needs)
            raise
        return provider

    async def _release(self, names: set[str]) -> None:
        """Close what only a failed opening had asked for."""
        for name in names:
            entry = self._entries.get(name)
            users = [e for e in self._entries.values() if name in e.needs]
            if entry is None or entry.wanted or users or entry.provider is None:
                continue
            del self._entries[name]
            await self._close(entry, _CLOSE_SECONDS)
            await self._release(entry.needs)

    def _closing_order(self) -> list[_Entry]:
        order: list[_Entry] = []
        seen: set[str] = set()

        def visit(name: str) -> None:
            entry = self._entries.get(name)
            if entry is None or name in seen:
                return
            seen.add(name)
            for need in sorted(entry.needs):
                visit(need)
            if entry.provider is not None:
                order.append(entry)

        for name in list(self._entries):
            visit(name)
        return order[::-1]

    async def _close(self, entry: _Entry, seconds: float) -> list[Exception]:
        if not entry.owned:
            return []
        task = asyncio.create_task(
            cast(Resource, entry.provider).close(), name=f"kmp-close-{entry.spec.name}", context=detached()
        )
        done, _ = await asyncio.wait((task,), timeout=seconds)
        if not done:
            task.cancel()
            await asyncio.wait((task,), timeout=_LAST_CALL_SECONDS)
            if not task.done():
                task.add_done_callback(_retrieved)
                self.hung.append(entry.spec.name)
            elif not task.cancelled():
                task.exception()
            return [DeadlineExceeded(f"closing {entry.spec.name} took longer than {seconds:.3g} s and was given up")]
        error = task.exception() if not task.cancelled() else None
        return [error] if isinstance(error, Exception) else []


def _retrieved(task: asyncio.Task[Resource] | asyncio.Task[None]) -> None:
    # Whoever waited has the error; when nobody waits any more, it must not be reported as forgotten.
    if not task.cancelled():
        task.exception()
