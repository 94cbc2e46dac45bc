"""What exists between entering and leaving a service: its providers, its background tasks, and the way out."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from asyncio import _get_running_loop
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from kmp_core import plugins
from kmp_core.capability import Capability, CapabilitySpec, spec_of
from kmp_core.context import Context
from kmp_core.deadlines import detached
from kmp_core.errors import BackendError, DeadlineExceeded, LifecycleError
from kmp_core.health import Health
from kmp_core.resource import Intake, Resource
from kmp_core.service.providers import Providers
from kmp_core.service.signals import Signals

if TYPE_CHECKING:
    from kmp_core.service.settings import Configuration

__all__ = ["Life"]

C = TypeVar("C", bound=Resource)

_CLOSE_SHARE = 0.2
"""What part of the shutdown grace is kept for closing, so that draining cannot use all of it."""

_LAST_SECONDS = 1.0
"""What the watchdog adds to the grace, so that it does not cut short what is just ending."""

_OPTIONAL_PAUSE = 5.0

_log = logging.getLogger(__name__)


class Life:
    """What exists between entering and leaving a service."""

    def __init__(
        self,
        configuration: Configuration,
        health: Health,
        replacements: dict[str, tuple[CapabilitySpec, Resource]],
    ) -> None:
        self.configuration = configuration
        self.health = health
        self.providers = Providers(self._make, self._opened, open_timeout=configuration.settings.open_timeout)
        for spec, provider in replacements.values():
            self.providers.replace(spec, provider)
        self.stopping = asyncio.Event()
        grace = configuration.settings.shutdown_grace.total_seconds()
        self.signals = Signals(self._signalled, seconds=grace + _LAST_SECONDS)
        self.on_failure = self.stop
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._optional: dict[str, float | None] = {}
        self._taking_in = False
        self._end: float | None = None

    def ensure_at_home(self) -> None:
        """Raise `LifecycleError` in another process, or in another event loop."""
        if self._pid != os.getpid():
            raise LifecycleError(
                f"the service was opened in process {self._pid} and is used in process {os.getpid()}: "
                "open it after the fork, in each worker (for example in the ASGI lifespan)"
            )
        if self._loop is not _get_running_loop():
            raise LifecycleError(
                "the service was opened in another event loop: use it in that one "
                "(from a thread with asyncio.run_coroutine_threadsafe(..., loop))"
            )

    def context(self, asker: str | None) -> Context:
        async def get(capability: Capability[C], /) -> C:
            return cast(C, await self.providers.get(spec_of(capability), asker=asker))

        settings = self.configuration.settings
        return Context(settings.project, settings.service, settings.environment, self.configuration.directory, get)

    async def optional(self, spec: CapabilitySpec) -> Resource | None:
        failed = self._optional.get(spec.name)
        if failed is not None and time.monotonic() - failed < _OPTIONAL_PAUSE:
            return None
        self._optional[spec.name] = None
        try:
            return await self.providers.get(spec)
        except BackendError as error:
            _log.warning("%s is optional and cannot be opened: %s", spec.name, type(error).__name__)
            self._optional[spec.name] = time.monotonic()
            self.health.add(spec.name, partial(_raise, error), optional=True)
            return None

    async def linger(self) -> None:
        """Not ready any more, and still at work, until those who send it work have noticed."""
        self.health.mark("draining")
        self._end = time.monotonic() + self.configuration.settings.shutdown_grace.total_seconds()
        await asyncio.sleep(self.configuration.settings.shutdown_delay.total_seconds())

    async def start(self) -> None:
        self._taking_in = True
        for _, provider in self.providers.open:
            if isinstance(provider, Intake):
                await provider.start()
        self.health.mark("ready")

    def stop(self) -> None:
        self.stopping.set()

    def start_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name, context=detached())
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def drain(self) -> None:
        """Take nothing more in, and let what is under way end, within the grace less what closing needs."""
        self.health.mark("draining")
        self._taking_in = False
        grace = self.configuration.settings.shutdown_grace.total_seconds()
        if self._end is None:
            self._end = time.monotonic() + grace
        seconds = max(0.0, self._end - time.monotonic() - grace * _CLOSE_SHARE)
        intakes = [provider for _, provider in self.providers.open if isinstance(provider, Intake)]
        work: set[asyncio.Task[None]] = {
            asyncio.create_task(intake.drain(timeout=seconds), name="kmp-drain", context=detached())
            for intake in intakes
        }
        for task in self._tasks:
            task.cancel()
        work |= self._tasks
        if not work:
            return
        done, late = await asyncio.wait(work, timeout=seconds)
        for task in late:
            task.cancel()
        for task in done - self._tasks:
            if not task.cancelled() and task.exception() is not None:
                self._fail(task.exception())
        if late:
            names = ", ".join(sorted(task.get_name() for task in late))
            self._fail(DeadlineExceeded(f"the drain was not done within {seconds:.3g} s ({names})"))

    async def close(self, error: BaseException | None) -> None:
        if self.health.phase != "draining":
            await self.drain()
        try:
            failures = await self.providers.close(self._end or 0.0)
        finally:
            self.signals.restore(hung=bool(self.providers.hung))
        for failure in failures:
            _log.error("closing failed: %s: %s", type(failure).__name__, failure)
        if error is None:
            self.raise_failure()
            if failures:
                raise failures[0]

    def _make(self, spec: CapabilitySpec) -> Resource:
        url = self.configuration.url(spec)
        factory = plugins.find(spec, url)
        with self.configuration.sources.used():
            return cast(Resource, factory.from_url(url, context=self.context(spec.name)))

    async def _opened(self, spec: CapabilitySpec, provider: Resource) -> None:
        self.health.add(spec.name, provider.check, optional=spec.name in self._optional)
        if self._taking_in and isinstance(provider, Intake):
            await provider.start()

    def _signalled(self) -> None:
        self._loop.call_soon_threadsafe(self.stop)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("task %s failed: %s", task.get_name(), type(error).__name__)
            self._fail(error)
            self.on_failure()

    def _fail(self, error: BaseException | None) -> None:
        self._failure = self._failure or error


async def _raise(error: Exception) -> None:
    raise error
