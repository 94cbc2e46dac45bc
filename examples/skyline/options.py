"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Options", "parse"]

_DEFAULT_DIRECTORY = Path(".kmp/demo")


@dataclass(frozen=True, slots=True)
class Options:
    """What the person asked for."""

    limit: int | None
    directory: Path
    json: Path | None
    port: int | None
    kills: int
    servers: Path | None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; ends the process with a usage line for what is wrong with it."""
    parser = argparse.ArgumentParser(
        prog="python -m skyline",
        description="Three services of two projects exchange every departure from New York in 2013, and answer for it.",
        epilog="Ctrl-C ends it early with a report of what was done so far (exit code 130).",
    )
    add = parser.add_argument
    add("--limit", type=_positive, metavar="N", help="only N flights, spread evenly over the year, for a quick look")
    add(
        "--kill-delays",
        type=_positive,
        nargs="?",
        const=1,
        default=0,
        metavar="TIMES",
        help="kill the service in the middle (SIGKILL) and start it again; the figures come out the same",
    )
    add("--directory", type=Path, default=_DEFAULT_DIRECTORY, metavar="DIR", help="where data, logs and report go; "
        "emptied at the start, and kept at the end (default: %(default)s)")  # fmt: skip
    add("--port", type=_port, metavar="PORT", help="port of the service `delays` (default: one that is free)")
    add("--json", type=Path, metavar="FILE", help="write everything that was found out to this file")
    add("--servers", type=Path, metavar="FILE", help="all stores on real servers, whose administrators' URLs this file "
        "holds; `python3 dev.py demo --servers` starts some and needs no file")  # fmt: skip
    found = parser.parse_args(arguments)
    return Options(found.limit, found.directory, found.json, found.port, found.kill_delays, found.servers)


def _positive(text: str) -> int:
    return _number(text, 1, 10**9)


def _port(text: str) -> int:
    return _number(text, 1, 65535)


def _number(text: str, low: int, high: int) -> int:
    if not text.isascii() or not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
    return int(text)
