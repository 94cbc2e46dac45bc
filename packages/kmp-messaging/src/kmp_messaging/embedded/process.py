"""Whether the process that took a lease still lives: known at once on Linux, and by the lease's end elsewhere."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

__all__ = ["alive", "this_process"]

_PROC = Path("/proc")


def this_process() -> str:
    """A name for this process that no other of this machine has, containers included."""
    return f"{_world()} {os.getpid()} {_began(os.getpid()) or ''}"


def alive(process: str) -> bool:
    """False only where it is certain that the process has ended."""
    world, _, rest = process.partition(" ")
    number, _, began = rest.partition(" ")
    if world == "-" or world != _world() or not number.isdigit() or not began:
        return True  # another container's or another system's: its lease decides
    return _began(int(number)) == began


@lru_cache(maxsize=1)
def _world() -> str:
    # Process numbers mean the same only within one start of the machine and one process namespace.
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat(_PROC / 'self/ns/pid').st_ino}"  # noqa: PTH116 - follows a link that leads nowhere
    except OSError:
        return "-"


def _began(number: int) -> str | None:
    """When the process began, in the kernel's ticks; None for one that has ended, a zombie included."""
    try:
        text = (_PROC / str(number) / "stat").read_text()
    except OSError:
        return None
    # The second field is the command in parentheses, and may itself hold anything (proc(5)).
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]
