"""Operating-system processes: start them, read what they log, measure them, and leave none behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from skyline.figures import ProcessUse

__all__ = ["Child", "Memory", "start"]

Line = Callable[[Mapping[str, Any]], None]


@dataclass(eq=False)
class Child:
    """One service at work. Everything that it writes goes into its log; lines in JSON also to whoever listens."""

    service: str
    project: str
    process: asyncio.subprocess.Process
    tail: deque[str]
    reader: asyncio.Task[None]
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    peak_bytes: int = 0
    busy: float = 0.0

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    async def wait(self) -> int:
        """The exit code, negative for a signal, once everything that was written is read."""
        code = await self.process.wait()
        self.ended = self.ended or time.monotonic()
        await self.reader
        return code

    async def stop(self, seconds: float) -> int:
        """Ask it to end, and after `seconds` end it."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                return await self.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            return await self.wait()

    def send(self, number: signal.Signals) -> None:
        if self.running:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    def use(self) -> ProcessUse:
        return ProcessUse(
            service=self.service,
            project=self.project,
            pid=self.pid,
            seconds=(self.ended or time.monotonic()) - self.began,
            busy_seconds=self.busy,
            peak_bytes=self.peak_bytes,
            exit_code=self.process.returncode,
        )


async def start(
    service: str, project: str, *, environment: Mapping[str, str], directory: Path, log: Path, line: Line
) -> Child:
    """Start a service as a process of its own session, so that the terminal's Ctrl-C reaches the launcher alone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "skyline.child",
        service,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=_surroundings() | dict(environment),
        cwd=directory,
        start_new_session=True,
        limit=1 << 20,
    )
    tail = deque[str](maxlen=30)
    assert process.stdout is not None
    reader = asyncio.create_task(_read(process.stdout, tail, log, line), name=f"read-{service}")
    return Child(service, project, process, tail, reader)


def _surroundings() -> dict[str, str]:
    # What the person's shell says of KMP is about other services than these.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}
    examples = str(Path(__file__).parents[1])
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, [examples, kept.get("PYTHONPATH", "")]))}


async def _read(stream: asyncio.StreamReader, tail: deque[str], log: Path, line: Line) -> None:
    with log.open("ab", buffering=0) as file:
        while content := await stream.readline():
            with suppress(OSError):  # a full disk: the service itself will say so, and is heard without its log
                file.write(content)
            text = content.decode(errors="replace").rstrip()
            tail.append(text)
            if text.startswith("{"):
                with suppress(ValueError):
                    line(json.loads(text))


class Memory:
    """Samples the memory of this process and of the children, and keeps the highest sum of one moment."""

    def __init__(self, children: Callable[[], list[Child]]) -> None:
        self._children = children
        self._own = psutil.Process()
        self.peak_bytes = 0

    async def watch(self, seconds: float = 0.2) -> None:
        while True:
            self.sample()
            await asyncio.sleep(seconds)

    def sample(self) -> None:
        total: int = self._own.memory_info().rss
        for child in self._children():
            if child.running:
                with suppress(psutil.Error):
                    process = psutil.Process(child.pid)
                    size: int = process.memory_info().rss
                    spent = process.cpu_times()
                    child.busy = spent.user + spent.system
                    child.peak_bytes = max(child.peak_bytes, size)
                    total += size
        self.peak_bytes = max(self.peak_bytes, total)
