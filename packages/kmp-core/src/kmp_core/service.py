"""Run a service: what it needs is opened on demand, and leaves in order when the service is told to stop.

    async def main() -> None:
        async with Service("delays") as service:      # nothing set: everything embedded under .kmp/local
            store = await service.get(TimeSeriesStore)
            await service.run()                       # until SIGTERM or SIGINT; drains before it leaves

    if __name__ == "__main__":
        kmp_core.run(main)

A web framework runs itself: `FastAPI(lifespan=service.lifespan)`, and `await service.get(...)` in a dependency.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from kmp_core import plugins
from kmp_core.capability import Capability, CapabilitySpec, spec_of
from kmp_core.context import Context
from kmp_core.deadlines import Timeout, detached
from kmp_core.errors import BackendError, DeadlineExceeded, LifecycleError
from kmp_core.health import Health
from kmp_core.resource import Intake, Resource
from kmp_core.service_providers import Providers
from kmp_core.signals import Signals

if TYPE_CHECKING:
    from kmp_core.service_settings import Configuration

__all__ = ["Replacement", "Service"]

C = TypeVar("C", bound=Resource)

_CLOSE_SHARE = 0.2
"""What part of the shutdown grace is kept for closing, so that draining cannot use all of it."""

_log = logging.getLogger(__name__)


class Replacement(Generic[C]):
    """What `service.replace(Capability)` returns; `.by(provider)` does it."""

    def __init__(self, service: Service, spec: CapabilitySpec) -> None:
        self._service = service
        self._spec = spec

    def by(self, provider: C) -> None:
        """Have the service use this provider, opened and closed by the service unless it is open already."""
        self._service._replace(self._spec, provider)


class Service:
    """Get capabilities, run until told to stop, leave in order.

    Arguments beat the environment (`KMP_PROJECT`, `KMP_SERVICE`, `KMP_ENVIRONMENT`, `KMP_DIRECTORY`,
    `KMP_SHUTDOWN_GRACE`). Nothing is read before `async with`, which raises `ConfigurationError` with every fault at
    once. A closed service may be entered again, and then opens everything anew: test clients start an application
    more than once.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        project: str | None = None,
        environment: str | None = None,
        directory: Path | str | None = None,
        shutdown_grace: Timeout = None,
    ) -> None:
        self._environment = environment
        self._arguments = {
            "service": name,
            "project": project,
            "directory": directory,
            "shutdown_grace": shutdown_grace,
        }
        self._replacements: dict[str, tuple[CapabilitySpec, Resource]] = {}
        self._life: _Life | None = None
        self._health = Health()

    async def __aenter__(self) -> Self:
        if self._life is not None:
            raise LifecycleError("the service is open already")
        from kmp_core.service_settings import configure  # a settings class costs more than all the rest of kmp_core

        configuration = configure(self._environment, self._arguments)
        self._health.restart()
        self._life = _Life(configuration, self._health, dict(self._replacements))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        life, self._life = self._open_life(), None
        await life.close(error)

    def replace(self, capability: Capability[C]) -> Replacement[C]:
        """Use another provider than the configured one: `service.replace(Cache).by(SqliteCache("memory:"))`."""
        return Replacement(self, spec_of(capability))

    async def get(self, capability: Capability[C]) -> C:
        """The capability's provider, opened on first use; whoever asks while it opens waits for the same opening.

        Raises `ConfigurationError` where its URL, its settings or its plugin are wrong, and what opening raised.
        """
        return cast(C, await self._open_life().providers.get(spec_of(capability)))

    async def optional(self, capability: Capability[C]) -> C | None:
        """Like `get` for what the service can do without: None while the backend is away.

        Its failing check degrades the service and leaves it ready.
        """
        return cast(C | None, await self._open_life().optional(spec_of(capability)))

    async def run(self) -> None:
        """Start intake, be ready until SIGTERM, SIGINT or `stop()`, then drain. The end of `async with` closes.

        Raises what a task of `start_task` raised, and `DeadlineExceeded` when the drain was not done in time.
        """
        life = self._open_life()
        life.signals.install()
        await life.start()
        try:
            await life.stopping.wait()
        finally:
            await life.drain()
        life.raise_failure()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """The life of an ASGI application around which the server is in charge of signals.

        Opens the service, starts intake, is ready; at the end drains and closes.
        """
        async with self:
            life = self._open_life()
            life.on_failure = lambda: signal.raise_signal(signal.SIGTERM)
            await life.start()
            try:
                yield
            finally:
                await life.drain()
            life.raise_failure()

    def stop(self) -> None:
        """Have `run` come to its end, as a signal does. Call it from the event loop."""
        self._open_life().stop()

    def start_task(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Work in the background until the drain cancels it; when it fails, the service stops and `run` raises its error."""
        try:
            life = self._open_life()
        except LifecycleError:
            work.close()
            raise
        return life.start_task(work, name)

    @property
    def health(self) -> Health:
        """Liveness, readiness and startup; `health.app` serves them."""
        return self._health

    @property
    def context(self) -> Context:
        """Project, service name, environment and directory, as providers are told them."""
        return self._open_life().context(None)

    def _replace(self, spec: CapabilitySpec, provider: Resource) -> None:
        if self._life is not None:
            self._life.providers.replace(spec, provider)
        self._replacements[spec.name] = (spec, provider)

    def _open_life(self) -> _Life:
        if self._life is None:
            raise LifecycleError("the service is not open: use 'async with Service(...) as service'")
        self._life.ensure_same_process()
        return self._life


class _Life:
    """What exists between entering and leaving a service."""

    def __init__(
        self,
        configuration: Configuration,
        health: Health,
        replacements: dict[str, tuple[CapabilitySpec, Resource]],
    ) -> None:
        self.configuration = configuration
        self.health = health
        self.providers = Providers(self._make, self._opened)
        for spec, provider in replacements.values():
            self.providers.replace(spec, provider)
        self.stopping = asyncio.Event()
        self.signals = Signals(self._signalled)
        self.on_failure = self.stop
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._optional: set[str] = set()
        self._taking_in = False
        self._end: float | None = None

    def ensure_same_process(self) -> None:
        if self._pid != os.getpid():
            raise LifecycleError(
                f"the service was opened in process {self._pid} and is used in process {os.getpid()}: "
                "open it after the fork, in each worker (for example in the ASGI lifespan)"
            )

    def context(self, asker: str | None) -> Context:
        async def get(capability: Capability[C], /) -> C:
            return cast(C, await self.providers.get(spec_of(capability), asker=asker))

        settings = self.configuration.settings
        return Context(settings.project, settings.service, settings.environment, self.configuration.directory, get)

    async def optional(self, spec: CapabilitySpec) -> Resource | None:
        self._optional.add(spec.name)
        try:
            return await self.providers.get(spec)
        except BackendError as error:
            _log.warning("%s is optional and cannot be opened: %s", spec.name, type(error).__name__)
            return None

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
        self._end = time.monotonic() + grace
        self.signals.arm(grace + 1.0)
        seconds = grace * (1 - _CLOSE_SHARE)
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
            self.signals.restore(disarm=not self.providers.hung)
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

    def _signalled(self, received: signal.Signals) -> None:
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
