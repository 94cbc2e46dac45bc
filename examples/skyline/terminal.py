"""What a person sees: progress while the services work, then the answers on one and a half screens."""

from __future__ import annotations

from calendar import month_abbr
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from skyline.figures import ORIGINS, Attempt, Figures, Place, Result, Run

__all__ = ["Board", "show"]

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_STEPS = " ▁▂▃▄▅▆▇█"
_REFUSERS = {
    "token": Text("token", style="cyan"),
    "service": Text("service", style="magenta"),
    "server": Text("the server", style="green"),
    "guard": Text("SDK guard", style="blue"),
}


class _Rate(ProgressColumn):
    """Events per second, from the beginning of the task."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:>7,.0f}/s", style="progress.data.speed")


class Board:
    """Two bars that move while the services work, with what happens meanwhile written above them."""

    def __init__(self, console: Console, total: int) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            console=console,
        )
        self._bars = {
            "published": self._progress.add_task("departures publishes", total=total),
            "handled": self._progress.add_task("delays handles", total=total),
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def move(self, bar: str, completed: int) -> None:
        """Set how far `published` or `handled` is."""
        self._progress.update(self._bars[bar], completed=completed)

    def say(self, text: str) -> None:
        self._progress.console.print(f"[dim]·[/dim] {text}")


def show(console: Console, result: Result, page: Path | None) -> None:
    """Print the report."""
    console.print()
    figures = result.figures
    parts: list[RenderableType] = []
    if figures is not None:
        delays = Columns([_months(figures), _hours(figures)], padding=(0, 2))
        parts += [_totals(figures, result.run), delays, _worst(figures), _graph(figures), _given_up(figures)]
    for part in (*parts, _attempts(result.attempts), _processes(result.run)):
        console.print(part)
        console.print()
    if result.run.interrupted:
        console.print("[yellow]Ended early:[/yellow] the figures are of what was done until then.")
    if page is not None:
        console.print(f"Report with charts: [bold]{page}[/bold]", soft_wrap=True)


def _totals(figures: Figures, run: Run) -> RenderableType:
    mean = "none" if figures.mean is None else f"{figures.mean:.3f} minutes"
    line = Text.assemble(
        (f"{figures.flights:,}", "bold"),
        " flights, ",
        (f"{figures.missing:,}", "bold"),
        " of them never departed; mean departure delay ",
        (mean, "bold"),
        ".\n",
        f"{run.seconds:.1f} s, {run.events_per_second:,.0f} events/s from start to report, ",
        f"{run.peak_bytes / 2**20:,.0f} MiB at most over all processes.\n",
        f"Airport look-ups: {figures.cache.ratio:.1%} from the cache.",
    )
    return Panel(line, title="Departures from New York, 2013", title_align="left", border_style="cyan")


def _months(figures: Figures) -> RenderableType:
    table = Table(title="Mean delay by month", title_justify="left", box=None, padding=(0, 1, 0, 0), show_header=False)
    top = max((row.mean or 0 for row in figures.months), default=0)
    for row in figures.months:
        value = "" if row.mean is None else f"{row.mean:.1f}"
        table.add_row(month_abbr[row.month], Text(_bar(row.mean or 0, top, 24), style=_style(row.mean, top)), value)
    return table


def _hours(figures: Figures) -> RenderableType:
    top = max((row.mean or 0 for row in figures.hours), default=0)
    table = Table(title="Mean delay by scheduled hour", title_justify="left", box=None, show_header=False, padding=0)
    table.add_column(justify="right")
    for _ in figures.hours:
        table.add_column(justify="center", min_width=3)
    height = 10
    for line in range(height, 0, -1):
        cells = [Text(_cell(row.mean, top, line, height), style=_style(row.mean, top)) for row in figures.hours]
        table.add_row(Text(f"{top:.0f} min " if line == height else "", style="dim"), *cells)
    table.add_row("", *(Text(str(row.hour), style="dim") for row in figures.hours))
    return table


def _worst(figures: Figures) -> RenderableType:
    title = f"Worst routes (of those with at least {figures.worst_at_least} departures)"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("route")
    table.add_column("destination", overflow="ellipsis", no_wrap=True)
    table.add_column("departures", justify="right")
    table.add_column("mean delay", justify="right")
    for row in figures.worst:
        mean = "" if row.mean is None else f"{row.mean:.1f} min"
        table.add_row(f"{row.origin} → {row.dest.code}", row.dest.name or "", f"{row.departed:,}", mean)
    return table


def _graph(figures: Figures) -> RenderableType:
    lines = [
        Text.assemble(
            ("From the graph", "italic"),
            f": {figures.airports:,} airports and {len(figures.routes):,} routes flown. ",
            (str(len(figures.shared)), "bold"),
            f" destinations are reached from all of {', '.join(ORIGINS)}:",
        ),
        Text(" ".join(place.code for place in figures.shared), style="cyan"),
    ]
    if figures.way is not None:
        first, *_, last = figures.way.stops
        lines += [
            Text(f"No flight connects {_name(first)} and {_name(last)}; the shortest way, routes walked both ways:"),
            Text(" — ".join(map(_name, figures.way.stops)) + f" ({figures.way.miles:,} miles)", style="cyan"),
        ]
    if figures.without_details:
        lines.append(Text(f"Not in the airports file, kept without details: {', '.join(figures.without_details)}."))
    if figures.never_flown:
        lines.append(Text(f"Scheduled and never flown: {', '.join(figures.never_flown)}."))
    return Group(*lines)


def _given_up(figures: Figures) -> RenderableType:
    title = f"Dead letters: {len(figures.dead_letters)} malformed events, published on purpose"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("type", "cause", "detail"):
        table.add_column(name, overflow="fold")
    table.add_column("attempts", justify="right")
    for letter in figures.dead_letters:
        table.add_row(letter.type, letter.cause.rpartition(".")[2], _short(letter.detail), str(letter.attempts))
    return table


def _attempts(attempts: Sequence[Attempt]) -> RenderableType:
    table = Table(
        title="What the neighbour tried (tower of project harbour)",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    table.add_column("attempt", overflow="fold")
    table.add_column("refused by", no_wrap=True)
    table.add_column("answer", overflow="fold")
    for attempt in attempts:
        refuser = Text("NOT REFUSED", style="bold red") if attempt.refused_by is None else _REFUSERS[attempt.refused_by]
        table.add_row(attempt.what, refuser, _short(attempt.answer))
    return table


def _processes(run: Run) -> RenderableType:
    table = Table(title="Processes", title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("service", "project", "pid", "ran", "busy", "memory at most", "ended"):
        table.add_column(name, justify="right" if name in ("pid", "ran", "busy", "memory at most") else "left")
    for use in run.processes:
        style = "yellow" if use.ending.startswith("killed") else ""
        table.add_row(
            use.service,
            use.project,
            str(use.pid),
            f"{use.seconds:.1f} s",
            f"{use.busy_seconds:.1f} s",
            f"{use.peak_bytes / 2**20:,.0f} MiB",
            Text(use.ending, style=style),
        )
    return table


def _name(place: Place) -> str:
    return place.code if place.name is None else f"{place.name} ({place.code})"


def _short(text: str, longest: int = 110) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _bar(value: float, top: float, width: int) -> str:
    eighths = round(max(0.0, value) / top * width * 8) if top > 0 else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _cell(value: float | None, top: float, line: int, height: int) -> str:
    if value is None or top <= 0:
        return "·" if line == 1 and value is None else " "
    filled = max(1, round(max(0.0, value) / top * height * 8)) - (line - 1) * 8
    return _STEPS[min(8, max(0, filled))] * 2


def _style(value: float | None, top: float) -> str:
    share = 0.0 if value is None or top <= 0 else value / top
    return "green" if share < 0.4 else "yellow" if share < 0.75 else "red"
