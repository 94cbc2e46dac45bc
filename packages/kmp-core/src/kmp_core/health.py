"""Tell an orchestrator the truth: is the process alive, has it started, should it get traffic.

    app.mount("/health", service.health.app)      # /health/livez, /health/readyz, /health/startupz

Liveness is about the process alone: a database that is down is no reason to restart a service. Readiness asks every
resource that the service opened, all at once, each with a deadline; an optional one that fails degrades the service
and leaves it ready.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

from kmp_core.deadlines import Timeout, deadline, duration
from kmp_core.errors import DeadlineExceeded

__all__ = ["CheckResult", "Health", "HealthApp", "Phase", "Report"]

Phase = Literal["starting", "ready", "draining"]
Status = Literal["ok", "degraded", "failed"]
Check = Callable[[], Awaitable[None]]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_SLACK = 0.1  # so that a check that hears its deadline tells of it itself

AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How one check went. `error` is a class name alone: strangers read it, and a message may hold anything."""

    ok: bool
    optional: bool
    seconds: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """An answer to a probe: `ok` and `degraded` are good, `failed` is not."""

    status: Status
    phase: Phase
    checks: Mapping[str, CheckResult]

    @property
    def healthy(self) -> bool:
        """Whether the probe should succeed."""
        return self.status != "failed"

    def as_json(self) -> dict[str, Any]:
        """The report as the endpoints show it."""
        checks = {
            name: {
                "status": "ok" if result.ok else "failed",
                "optional": result.optional,
                "seconds": round(result.seconds, 4),
                **({} if result.error is None else {"error": result.error}),
            }
            for name, result in self.checks.items()
        }
        return {"status": self.status, "phase": self.phase, "checks": checks}


@dataclass(frozen=True, slots=True)
class _Check:
    ask: Check
    optional: bool
    seconds: float


class Health:
    """Add checks, and ask for liveness, readiness and startup."""

    def __init__(self) -> None:
        self.phase: Phase = "starting"
        self._checks: dict[str, _Check] = {}
        self._deaf: dict[str, asyncio.Task[str | None]] = {}
        self._started = False

    def add(self, name: str, check: Check, *, optional: bool = False, timeout: Timeout = "2s") -> None:
        """Ask `check` for readiness: it returns when all is well, and raises otherwise. A name again replaces it."""
        seconds = duration(timeout if timeout is not None else 2.0, field="timeout").total_seconds()
        self._checks[name] = _Check(check, optional, seconds)

    def restart(self) -> None:
        """Forget everything, when a service begins another life."""
        self.phase = "starting"
        self._checks.clear()
        self._deaf.clear()
        self._started = False

    def remove(self, name: str) -> None:
        """Do not ask this check any more."""
        self._checks.pop(name, None)

    def mark(self, phase: Phase) -> None:
        """Tell in what part of its life the service is; `Service` does."""
        self.phase = phase
        self._started = self._started or phase == "ready"

    def liveness(self) -> Report:
        """Good as long as the process can answer at all."""
        return Report("ok", self.phase, {})

    def startup(self) -> Report:
        """Good from the first readiness on."""
        return Report("ok" if self._started else "failed", self.phase, {})

    async def readiness(self) -> Report:
        """Good between start and drain while every check that is not optional passes."""
        if not self._serving():
            return Report("failed", self.phase, {})
        names = list(self._checks)
        results = await asyncio.gather(*(self._ask(name, self._checks[name]) for name in names))
        checks = dict(zip(names, results, strict=True))
        failed = [result for result in checks.values() if not result.ok]
        status: Status = "ok" if not failed else "degraded" if all(r.optional for r in failed) else "failed"
        if not self._serving():  # the drain began while the checks ran
            status = "failed"
        return Report(status, self.phase, checks)

    async def _ask(self, name: str, check: _Check) -> CheckResult:
        began = time.perf_counter()
        # One that heard neither its deadline nor its cancellation is waited for again, rather than joined by another.
        task = self._deaf.get(name) or asyncio.create_task(_failure(name, check), name=f"kmp-check-{name}")
        try:
            done, _ = await asyncio.wait((task,), timeout=check.seconds + _SLACK)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if done:
            self._deaf.pop(name, None)
            error = "CancelledError" if task.cancelled() else task.result()
        else:
            self._deaf[name] = task
            error = DeadlineExceeded.__name__
        return CheckResult(error is None, check.optional, time.perf_counter() - began, error)

    def _serving(self) -> bool:
        return self.phase == "ready"

    @property
    def app(self) -> HealthApp:
        """An ASGI application with `/livez`, `/readyz` and `/startupz`."""
        return HealthApp(self)


async def _failure(name: str, check: _Check) -> str | None:
    try:
        async with deadline(check.seconds, what=f"the check of {name}", outcome_unknown=False):
            await check.ask()
    except Exception as failure:  # whatever a check raises is its answer
        return type(failure).__name__
    return None


class HealthApp:
    """ASGI endpoints for probes; with `app` a middleware that answers the three paths and passes on all else."""

    def __init__(self, health: Health, app: AsgiApp | None = None) -> None:
        self._health = health
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")))
            report = await self._report(path)
            if report is not None:
                await _answer(send, 200 if report.healthy else 503, report.as_json())
                return
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _answer(send, 404, {"error": "not found"})

    async def _report(self, path: str) -> Report | None:
        if path == "/livez":
            return self._health.liveness()
        if path == "/startupz":
            return self._health.startup()
        return await self._health.readiness() if path == "/readyz" else None


async def _answer(send: Send, status: int, content: Mapping[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
