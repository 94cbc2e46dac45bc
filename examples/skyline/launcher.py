"""Starts the three services, watches over them, and puts together what came of it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from skyline.figures import Attempt, Figures, Result, Run
from skyline.office import Office
from skyline.processes import Child, Memory, start
from skyline.state import State
from skyline.terminal import Board

__all__ = ["Launcher", "ServiceFailed"]

_LEAVE_SECONDS = 30.0
_STALLED_SECONDS = 120.0
_RESTARTS = 3
_WORK = ("ready", "published", "handled", "attempt", "reported")


class ServiceFailed(Exception):
    """A service ended by itself, or does nothing any more; `last_words` is the end of what it wrote."""

    def __init__(self, child: Child, problem: str) -> None:
        super().__init__(f"the service {child.service} {problem}")
        self.last_words = [*filter(None, map(_complaint, child.tail))] or list(child.tail)


class Launcher:
    """One run: `work()` does it, `interrupt()` has it come to its end early, `result()` tells of it."""

    def __init__(self, state: State, office: Office, board: Board, *, total: int, kills: int) -> None:
        self._state = state
        self._office = office
        self._board = board
        self._total = total
        self._kill_at = [total * (part + 1) // (kills + 1) for part in range(kills)]
        self._children = list[Child]()
        self._memory = Memory(lambda: self._children)
        self._ready, self._publishing, self._leaving = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._interrupted = False
        self._attempts = list[Attempt]()
        self._published = self._malformed = self._handled = self._kills = 0
        self._moved = time.monotonic()
        self._began, self._ended, self._started = time.monotonic(), 0.0, datetime.now(UTC)

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked for an early end."""
        return self._interrupted

    def interrupt(self) -> None:
        """End early, with a report of what was done so far; the second time at once."""
        if self._interrupted:
            for child in self._children:
                child.send(signal.SIGKILL)
            return
        self._interrupted = True
        self._board.say("Ending early; Ctrl-C once more ends it at once.")
        # `departures` stops publishing, asks for the report, and ends; then everybody is told to.
        running = [child for child in self._children if child.service != "delays"]
        for child in running:
            child.send(signal.SIGTERM)
        if not running:
            self._leaving.set()

    async def work(self) -> None:
        """Run the services until everything is handled. No process is left when this returns or raises."""
        watch = asyncio.create_task(self._memory.watch())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_delays())
                group.create_task(self._run_jobs())
                group.create_task(self._see_progress())
        except* ServiceFailed as failures:
            # There is nothing left to be done well: nobody gets the time that a report would take.
            for child in self._children:
                child.send(signal.SIGKILL)
            raise failures.exceptions[0] from None
        finally:
            watch.cancel()
            self._ended = time.monotonic()
            await asyncio.gather(*(child.stop(_LEAVE_SECONDS) for child in self._children))

    def result(self, figures: Figures | None) -> Result:
        """All that is known at the end."""
        seconds = (self._ended or time.monotonic()) - self._began
        run = Run(
            started=self._started,
            seconds=seconds,
            published=self._published,
            malformed=self._malformed,
            events_per_second=(self._published + self._malformed) / seconds if seconds else 0.0,
            peak_bytes=self._memory.peak_bytes,
            kills=self._kills,
            interrupted=self._interrupted,
            processes=tuple(child.use() for child in self._children),
        )
        return Result(run=run, figures=figures, attempts=tuple(self._attempts))

    async def _run_jobs(self) -> None:
        try:
            if not await self._before_leaving(self._ready.wait()):
                return
            departures = await self._start("departures", "skyline", may_call="delays")
            work = asyncio.create_task(self._job(departures))
            work.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever fails first is told of
            await asyncio.wait(
                (work, publishing := asyncio.create_task(self._publishing.wait())), return_when=asyncio.FIRST_COMPLETED
            )
            publishing.cancel()
            if self._publishing.is_set() and not self._interrupted:
                await self._job(await self._start("tower", "harbour", may_call="beacon"))
            await work
        finally:
            self._leaving.set()

    async def _job(self, child: Child) -> None:
        """Wait for a service that ends by itself when its work is done."""
        code = await child.wait()
        if code != 0 and not self._interrupted:
            raise ServiceFailed(child, f"ended {_ending(code)}")

    async def _keep_delays(self) -> None:
        """Have `delays` run until all work is done: started again when it was killed, or ended by itself."""
        restarts = 0
        while True:
            kills = self._kills
            delays = await self._start("delays", "skyline")
            if not await self._before_leaving(delays.process.wait()):
                await delays.stop(_LEAVE_SECONDS)
                return
            code = await delays.wait()
            restarts += self._kills == kills
            if not self._ready.is_set() or restarts > _RESTARTS:
                raise ServiceFailed(delays, f"ended {_ending(code)}")
            self._board.say(f"delays (pid {delays.pid}) is gone, {_ending(code)}: starting it again.")

    async def _see_progress(self) -> None:
        """End a run in which nothing happens any more, rather than wait for ever."""
        while await self._before_leaving(asyncio.sleep(1)):
            if time.monotonic() - self._moved > _STALLED_SECONDS:
                idle = next((child for child in reversed(self._children) if child.running), self._children[-1])
                raise ServiceFailed(idle, f"and the others have done nothing for {_STALLED_SECONDS:.0f} s")

    async def _before_leaving(self, work: Coroutine[Any, Any, object]) -> bool:
        """Await, and return whether it happened before it was time to leave."""
        task, leaving = asyncio.create_task(work), asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
            return task.done() and not leaving.done()
        finally:
            task.cancel()
            leaving.cancel()

    async def _start(self, service: str, project: str, *, may_call: str | None = None) -> Child:
        surroundings = self._office.surroundings(project, service, may_call=may_call)

        def heard(line: Mapping[str, Any]) -> None:
            self._heard(child, line)

        child = await start(
            service,
            project,
            environment=surroundings,
            directory=self._state.directory,
            log=self._state.log(service),
            line=heard,
        )
        self._children.append(child)
        return child

    def _heard(self, child: Child, line: Mapping[str, Any]) -> None:
        """Follow what the services log: that is all that the launcher knows of their work."""
        self._moved = time.monotonic() if line.get("event") in _WORK else self._moved
        match line.get("event"):
            case "ready":
                self._ready.set()
            case "published":
                self._published, self._malformed = int(line["flights"]), int(line["malformed"])
                self._board.move("published", self._published)
                self._publishing.set()
            case "handled":
                self._handled += int(line["new"])
                self._board.move("handled", self._handled)
                self._kill_in_the_middle(child)
            case "attempt":
                self._tried(line)
            case _:
                return

    def _kill_in_the_middle(self, delays: Child) -> None:
        if self._kill_at and self._handled >= self._kill_at[0] and delays.running:
            del self._kill_at[0]
            self._kills += 1
            delays.send(signal.SIGKILL)

    def _tried(self, line: Mapping[str, Any]) -> None:
        try:
            attempt = Attempt.model_validate({name: line.get(name) for name in Attempt.model_fields})
        except ValidationError:
            attempt = Attempt(what=str(line), refused_by=None, answer="the attempt was not understood")
        self._attempts.append(attempt)
        if attempt.refused_by is None:
            self._board.say(f"[bold red]tower was not refused:[/bold red] {attempt.what}")


def _complaint(line: str) -> str:
    """What a line of a service's output says is wrong, of a traceback its last line."""
    if not line.startswith("{"):
        return line
    try:
        content: dict[str, Any] = json.loads(line)
    except ValueError:
        return line
    return str(content.get("event")).rstrip().rpartition("\n")[2] if content.get("level") != "info" else ""


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
