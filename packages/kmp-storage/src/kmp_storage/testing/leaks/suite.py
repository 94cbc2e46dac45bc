"""What a neighbour tries, by kind; a backend's suite says how each is tried on its server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

__all__ = ["Attempt", "Attempts", "LeakTest", "Login"]

Attempt = Callable[[], Awaitable[object]]
"""Returns what it got: something true is a leak. Raises what the server said."""

Attempts = Mapping[str, Attempt]


@dataclass(frozen=True)
class Login:
    """How a project reaches its own place on the server."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    place: str
    """The project's database, bucket, or prefix of keys."""
    schema: str = "public"
    """Within a database."""


@pytest.mark.asyncio
class LeakTest:
    """Everything is tried as the neighbour. Each test fails with the attempts that the server did not refuse."""

    secret: ClassVar[str] = "the-victims-own-content"  # noqa: S105 - it shall leak

    @pytest.fixture
    def victim(self) -> Login:
        """The project whose content must not leak; override this fixture."""
        raise NotImplementedError("define a fixture `victim` that returns the Login of a provisioned project")

    @pytest.fixture
    def neighbour(self) -> Login:
        """Another project on the same server; override this fixture."""
        raise NotImplementedError("define a fixture `neighbour` that returns the Login of another provisioned project")

    async def plant(self, victim: Login) -> None:
        """Store `secret` as the victim; again and again."""
        raise NotImplementedError

    async def untouched(self, victim: Login) -> bool:
        """Whether the victim finds what was planted, as it was."""
        raise NotImplementedError

    def connect(self, victim: Login, neighbour: Login) -> Attempts:
        """Come in where only the victim may."""
        raise NotImplementedError

    def read(self, victim: Login, neighbour: Login) -> Attempts:
        """Get the victim's content, by its name."""
        raise NotImplementedError

    def write(self, victim: Login, neighbour: Login) -> Attempts:
        """Change, add or remove something at the victim's, or stand in its way."""
        raise NotImplementedError

    def browse(self, victim: Login, neighbour: Login) -> Attempts:
        """See what the victim has, or who is there."""
        raise NotImplementedError

    def guess(self, victim: Login, neighbour: Login) -> Attempts:
        """Names and passwords that may be taken for the right ones."""
        raise NotImplementedError

    def widen(self, victim: Login, neighbour: Login) -> Attempts:
        """Become somebody else, or get more rights."""
        raise NotImplementedError

    def refused(self, error: Exception) -> bool:
        """Whether this is the server's refusal, and not a fault of the attempt."""
        raise NotImplementedError

    async def test_the_same_attempts_succeed_for_the_victim(self, victim: Login) -> None:
        await self.plant(victim)
        failed = [name for name, attempt in self.read(victim, victim).items() if not await attempt()]
        assert not failed, f"these prove nothing, since the victim itself gets nothing by them: {failed}"
        assert await self.untouched(victim)

    async def test_a_neighbour_cannot_connect(self, victim: Login, neighbour: Login) -> None:
        await self._try("connect", victim, neighbour)

    async def test_a_neighbour_cannot_read(self, victim: Login, neighbour: Login) -> None:
        await self._try("read", victim, neighbour)

    async def test_a_neighbour_cannot_write(self, victim: Login, neighbour: Login) -> None:
        await self._try("write", victim, neighbour)
        assert await self.untouched(victim), "the victim's content is not what it was"

    async def test_a_neighbour_cannot_browse(self, victim: Login, neighbour: Login) -> None:
        await self._try("browse", victim, neighbour)

    async def test_a_neighbour_cannot_guess(self, victim: Login, neighbour: Login) -> None:
        await self._try("guess", victim, neighbour)

    async def test_a_neighbour_cannot_widen_its_rights(self, victim: Login, neighbour: Login) -> None:
        await self._try("widen", victim, neighbour)
        assert await self.untouched(victim), "the victim's content is not what it was"

    async def _try(self, kind: str, victim: Login, neighbour: Login) -> None:
        await self.plant(victim)
        leaks: list[str] = []
        for name, attempt in getattr(self, kind)(victim, neighbour).items():
            try:
                async with asyncio.timeout(30):
                    got = await attempt()
            except Exception as error:
                if not self.refused(error):
                    leaks.append(f"{name}: not refused but failed with {error!r}")
            else:
                if got:
                    leaks.append(name)
        assert not leaks, f"the server let a neighbour {kind}: {leaks}"
