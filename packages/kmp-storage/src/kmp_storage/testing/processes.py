"""Other operating-system processes for a contract suite, each with the provider open on the same data."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kmp_core.capability import Capability
from kmp_core.context import Context
from kmp_core.project import Environment, Project, ServiceName

__all__ = ["Child", "child"]


class Child:
    """A running process: `line()` reads what it printed, `kill()` ends it as a power cut would."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its id, for signals."""
        return self._process.pid

    async def line(self) -> str:
        """The next line that it prints; fails with what it wrote to stderr where it ended instead."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the process ended early: {await self._errors()}")
        return line.decode().strip()

    async def end(self) -> None:
        """Wait for it to end well."""
        code = await self._process.wait()
        assert code == 0, f"the process ended with {code}: {await self._errors()}"

    async def kill(self) -> None:
        """Send SIGKILL and wait until it is gone."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _errors(self) -> str:
        assert self._process.stderr is not None
        return (await self._process.stderr.read()).decode()


@asynccontextmanager
async def child(like: object, address: str, action: str, *arguments: str) -> AsyncGenerator[Child, None]:
    """Run `action` ("module:function"), called with an open provider `like` this one, in another process."""
    provider = type(like)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        f"{provider.__module__}:{provider.__qualname__}",
        address,
        action,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Child(process)
    try:
        yield running
    finally:
        await running.kill()
        # Read to the end, so that the pipes are closed with the process and not by the garbage collector.
        await process.communicate()


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


async def _no_other(capability: Capability[Any], /) -> Any:
    raise LookupError("a contract's process has one provider only")


async def _main(provider: str, address: str, action: str, *arguments: str) -> None:
    context = Context(
        project=Project("acme"),
        service=ServiceName("contract"),
        environment=Environment("test"),
        directory=Path(".kmp/acme"),
        get=_no_other,
    )
    async with _named(provider).from_url(address, context=context) as opened:
        await _named(action)(opened, *arguments)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
