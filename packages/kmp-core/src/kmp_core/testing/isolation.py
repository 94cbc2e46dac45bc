"""A clock that stands still until you move it, and settings that nothing outside the test can reach."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kmp_core.deadlines import duration

__all__ = ["IsolatedEnvironment", "ManualClock"]


class ManualClock:
    """A clock that stands still until `advance`: for breakers, caches, tokens, and everything that takes a `Clock`."""

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._seconds = start.timestamp()
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def time(self) -> float:
        """Seconds since the epoch."""
        return self._seconds

    def monotonic(self) -> float:
        """The same, since this clock never goes back."""
        return self._seconds

    def now(self) -> datetime:
        """The time as an aware `datetime`."""
        return datetime.fromtimestamp(self._seconds, UTC)

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has gone this far."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._seconds + seconds, woken))
        await woken

    @property
    def sleeping(self) -> int:
        """How many tasks wait for this clock."""
        return sum(not woken.done() for _, woken in self._sleepers)

    def advance(self, by: float | timedelta | str) -> None:
        """Let time pass, and wake whoever waited for it."""
        self._seconds += duration(by, field="by").total_seconds()
        due = [(at, woken) for at, woken in self._sleepers if at <= self._seconds]
        self._sleepers = [(at, woken) for at, woken in self._sleepers if at > self._seconds]
        for _, woken in sorted(due, key=lambda sleeper: sleeper[0]):
            if not woken.done():
                woken.set_result(None)


class IsolatedEnvironment:
    """What the settings of a test are read from, and nothing else; pytest's fixture `kmp_environment`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.directory = directory
        self._monkeypatch = monkeypatch
        for name in [name for name in os.environ if name.upper().startswith("KMP_")]:
            monkeypatch.delenv(name)
        # Files that exist and say nothing keep the search from finding others.
        self.manifest("")
        (directory / "empty.env").touch()
        self.set("KMP_ENV_FILE", str(directory / "empty.env"))
        self.set("KMP_DIRECTORY", str(directory / "data"))

    def set(self, variable: str, value: str) -> None:
        """Set a variable until the test ends."""
        self._monkeypatch.setenv(variable, value)

    def manifest(self, text: str) -> Path:
        """Have this as the `kmp.toml` that counts."""
        path = self.directory / "kmp.toml"
        path.write_text(text, encoding="utf-8")
        self.set("KMP_MANIFEST", str(path))
        return path
