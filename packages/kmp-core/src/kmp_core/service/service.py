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
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from kmp_core.capability import Capability, CapabilitySpec, spec_of
from kmp_core.context import Context
from kmp_core.deadlines import Timeout
from kmp_core.errors import LifecycleError
from kmp_core.health import Health
from kmp_core.resource import Resource
from kmp_core.service.life import Life

__all__ = ["Replacement", "Service"]

C = TypeVar("C", bound=Resource)


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
        self._life: Life | None = None
        self._health = Health()

    async def __aenter__(self) -> Self:
        if self._life is not None:
            raise LifecycleError("the service is open already")
        from kmp_core.service.settings import (
            configure,
            configure_logs,
        )  # a settings class costs more than all the rest of kmp_core

        configuration = configure(self._environment, self._arguments)
        configure_logs(configuration)
        self._health.restart()
        self._life = Life(configuration, self._health, dict(self._replacements))
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
        """Like `get` for what the service can do without: None while the backend is away, so ask each time.

        Its failing check degrades the service and leaves it ready. A backend that did not open is tried again at most
        every five seconds, and then found again without a restart.
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
            await life.linger()
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
        """Work in the background until the drain cancels it; if it fails, the service stops and `run` raises it."""
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

    def _open_life(self) -> Life:
        if self._life is None:
            raise LifecycleError("the service is not open: use 'async with Service(...) as service'")
        self._life.ensure_at_home()
        return self._life
