"""The command: from the options to the report, with every mistake told in a few lines."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import structlog
from rich.console import Console

from kmp_core.errors import ConfigurationError, Fault, KmpError, NotFound
from kmp_storage import Bucket
from kmp_storage.embedded.bucket import FileBucket
from skyline import data, page, terminal
from skyline.figures import ORIGINS, Figures, Place, Result
from skyline.launcher import Launcher, ServiceFailed
from skyline.office import open_office
from skyline.options import Options, parse
from skyline.places import Administrators, Places
from skyline.state import State, prepare

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
FIGURES = "reports/figures.json"
PAGE = "reports/departures.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code: 0, 1 failed, 2 a mistake in what was asked for, 130 ended early."""
    options = parse(arguments)
    console = Console(highlight=False)
    # Also where a shell that runs us in the background has switched it off.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        total = min(options.limit or sys.maxsize, data.count_flights())
        _check(options)
        administrators = None if options.servers is None else Administrators.read(options.servers)
        with prepare(options.directory) as state:
            return asyncio.run(_run(options, state, console, total, administrators))
    except ServiceFailed as failure:
        console.print(f"[bold red]skyline:[/bold red] {failure}. Its last words:")
        for line in failure.last_words[-12:]:
            console.print("  " + line, markup=False, soft_wrap=True)
        return EXIT_FAILED
    except KmpError as error:
        console.print(f"skyline: {error}", style="red", markup=False, soft_wrap=True)
        return EXIT_MISTAKE
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        console.print(f"skyline: {error.strerror or error}{place}", style="red", markup=False, soft_wrap=True)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


async def _run(
    options: Options, state: State, console: Console, total: int, administrators: Administrators | None
) -> int:
    async with _places(administrators) as places:
        board = terminal.Board(console, total)
        with open_office(options, state, places) as office, board:
            launcher = Launcher(state, office, board, total=total, kills=options.kills)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, launcher.interrupt)
            await launcher.work()
        result, file = await _write(launcher, state, _bucket(state, places))
    if options.json is not None:
        options.json.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    terminal.show(console, result, file)
    if launcher.interrupted:
        return EXIT_INTERRUPTED
    return 0 if _as_it_should(result, total) else EXIT_FAILED


@asynccontextmanager
async def _places(administrators: Administrators | None) -> AsyncGenerator[Places | None, None]:
    """The projects' places on servers, or None where everything is embedded."""
    if administrators is None:
        yield None
        return
    from skyline.servers import provisioned  # the drivers, which nobody else needs

    # What provisioning warns of matters to servers that stay.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    async with provisioned(administrators) as places:
        yield places


def _bucket(state: State, places: Places | None) -> AbstractAsyncContextManager[Bucket]:
    """Skyline's bucket, opened as skyline."""
    if places is None:
        return FileBucket(project="skyline", directory=state.directory / "skyline")
    from kmp_storage.bucket import S3Bucket

    return S3Bucket(places.url("skyline", "BUCKET"), project="skyline")


async def _write(
    launcher: Launcher, state: State, opening: AbstractAsyncContextManager[Bucket]
) -> tuple[Result, Path | None]:
    """Put the page beside the figures that `delays` put into its bucket, and a copy where a browser finds it."""
    async with opening as bucket:
        try:
            figures = Figures.model_validate_json(await bucket.get(FIGURES))
        except NotFound:
            return launcher.result(None), None
        result = launcher.result(figures)
        content = page.render(result, _origins()).encode()
        await bucket.put(PAGE, content, content_type="text/html; charset=utf-8")
    file = state.directory / "skyline" / "departures.html"
    file.write_bytes(content)
    return result, file


def _origins() -> list[Place]:
    rows = (row for row in data.airports() if row.code in ORIGINS)
    return [Place(code=row.code, name=row.name, latitude=row.latitude, longitude=row.longitude) for row in rows]


def _as_it_should(result: Result, total: int) -> bool:
    refused = bool(result.attempts) and all(attempt.refused_by is not None for attempt in result.attempts)
    return refused and result.figures is not None and result.figures.flights == total


def _check(options: Options) -> None:
    """Find out before anything is started what would go wrong later. Raises `ConfigurationError` with all of it."""
    faults = list[Fault]()
    if options.port is not None:
        try:
            socket.create_server(("127.0.0.1", options.port)).close()
        except OSError as error:
            problem = f"port {options.port} cannot be used: {os.strerror(error.errno or 0)}"
            faults.append(Fault("--port", problem, example="--port 8401, or none for a free one"))
    if options.json is not None:
        folder = options.json.absolute().parent
        if options.json.is_dir() or not os.access(folder, os.W_OK):
            faults.append(Fault("--json", f"{options.json} cannot be written", example="--json figures.json"))
    if faults:
        raise ConfigurationError(*faults, heading="This cannot work")
