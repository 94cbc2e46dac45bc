"""Real processes that handle events, to be killed and stopped: each notes every effect in one shared file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Effect", "Remote", "Worker"]


@dataclass(frozen=True, slots=True)
class Remote:
    """How another process makes the bus: `"package.module:Class"`, its keyword arguments (JSON), and variables."""

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Effect:
    """One line of the shared file: who did what."""

    process: int
    what: str
    who: str | None
    number: int
    attempt: int


class Worker:
    """A process with one subscription, of batches where `size` is given.

    `mode` says how it handles: see `kmp_messaging.testing.worker`.
    """

    def __init__(
        self,
        remote: Remote,
        effects: Path,
        *,
        mode: str = "note",
        retries: int = 5,
        group: str = "g",
        size: int | None = None,
    ) -> None:
        self._remote = remote
        self._effects = effects
        self._options = {"mode": mode, "retries": retries, "group": group, "size": size}
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Worker:
        request = {
            "factory": self._remote.factory,
            "arguments": dict(self._remote.arguments),
            "effects": str(self._effects),
            **self._options,
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kmp_messaging.testing.worker",
            json.dumps(request),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **self._remote.environment},
        )
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 30)
        assert line == b"ready\n", "the process did not start"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            # A stopped process gets no other signal.
            self._process.kill()
        await self._process.wait()

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self, seconds: float = 30) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), seconds)

    @staticmethod
    def effects(path: Path) -> list[Effect]:
        """What the processes have noted so far."""
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        return [Effect(**json.loads(line)) for line in lines]
