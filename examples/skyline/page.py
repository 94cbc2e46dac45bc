"""The report as one HTML file that needs nothing else: no script, no font, no address."""

from __future__ import annotations

from calendar import month_abbr
from collections.abc import Iterable, Sequence
from html import escape

from skyline import charts
from skyline.figures import ORIGINS, Attempt, Figures, GivenUp, Place, Result, Run

__all__ = ["render"]

REFUSERS = {
    "token": "the authority: no token",
    "service": "the service",
    "server": "the server itself",
    "guard": "the SDK's guard",
}


def render(result: Result, origins: Sequence[Place]) -> str:
    """The whole page. `origins` are New York's airports with their places, for the map."""
    figures, run = result.figures, result.run
    body = [_head(run, figures)]
    if figures is not None:
        body += [*_charts(figures, origins), _graph(figures), _given_up(figures.dead_letters)]
    body += [_attempts(result.attempts), _processes(run)]
    return _PAGE.format(style=_STYLE, body="\n".join(body))


def _head(run: Run, figures: Figures | None) -> str:
    tiles = [
        (f"{run.published:,}", "events published"),
        (f"{run.events_per_second:,.0f}/s", "events, from start to report"),
    ]
    if figures is not None:
        mean = "none" if figures.mean is None else f"{figures.mean:.3f} min"
        tiles = [
            (f"{figures.flights:,}", "flights stored"),
            (mean, "mean departure delay"),
            (f"{figures.missing:,}", "never departed"),
            (f"{figures.cache.ratio:.1%}", "airport look-ups from the cache"),
            *tiles[1:],
        ]
    ended = '<p class="note">The run was ended early: the figures are of what was done until then.</p>'
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    when = f"{run.started:%d %B %Y, %H:%M} UTC"
    return (
        "<header><h1>Departures from New York, 2013</h1>"
        f"<p>Three services, two projects, one machine. {when}; {run.seconds:.1f} s, "
        f"{run.peak_bytes / 2**20:,.0f} MiB at most over all processes"
        f"{f', {run.kills} kill survived' if run.kills else ''}.</p>{ended if run.interrupted else ''}</header>"
        f'<section class="tiles">{cells}</section>'
    )


def _charts(figures: Figures, origins: Sequence[Place]) -> Iterable[str]:
    months = [(month_abbr[row.month], row.mean) for row in figures.months]
    hours = [(f"{row.hour}", row.mean) for row in figures.hours]
    worst = [
        (
            f"{row.origin} → {row.dest.code}",
            f"{row.dest.name or 'no details'}, {row.departed:,} flights",
            row.mean or 0.0,
        )
        for row in figures.worst
    ]
    yield _section(
        "Mean departure delay by month", charts.columns(months, title="Mean departure delay by month", unit="minutes")
    )
    yield _section(
        "Mean departure delay by scheduled hour",
        charts.columns(hours, title="Mean departure delay by scheduled hour, New York's clock", unit="minutes"),
        "Waiting adds up over the day: who leaves at six in the morning hardly waits.",
    )
    yield _section(
        "Worst routes",
        charts.bars(worst, title="Routes with the highest mean departure delay", unit="minutes"),
        f"Mean departure delay in minutes, of routes with at least {figures.worst_at_least} departures.",
    )
    way = () if figures.way is None else figures.way.stops
    yield _section(
        "Where the flights go",
        charts.network(figures.routes, origins, title="Routes, coloured by mean departure delay", way=way),
        "Every route that was flown, from early (green) to late (red). The dark line is the way described below.",
    )


def _graph(figures: Figures) -> str:
    shared = " ".join(
        f'<abbr title="{escape(place.name or "")}">{escape(place.code)}</abbr>' for place in figures.shared
    )
    parts = [
        f"<p><b>{len(figures.shared)}</b> destinations are reached from all of {', '.join(ORIGINS)}:</p>"
        f'<p class="codes">{shared}</p>'
    ]
    if figures.way is not None:
        stops = " — ".join(f"<b>{escape(place.code)}</b> {escape(place.name or '')}" for place in figures.way.stops)
        parts.append(
            "<p>The shortest way between two cities that no flight connects, every route walked in both directions: "
            f"{stops} ({figures.way.legs} legs, {figures.way.miles:,} miles).</p>"
        )
    if figures.without_details:
        parts.append(
            f"<p>In the graph without details, since the airports file does not have them: "
            f"{', '.join(map(escape, figures.without_details))}.</p>"
        )
    if figures.never_flown:
        parts.append(f"<p>Scheduled and never flown: {', '.join(map(escape, figures.never_flown))}.</p>")
    return _section(f"The graph: {figures.airports:,} airports, {len(figures.routes):,} routes", "".join(parts))


def _given_up(letters: Sequence[GivenUp]) -> str:
    rows = [
        (letter.key or "", letter.type, letter.cause.rpartition(".")[2], letter.detail, str(letter.attempts))
        for letter in letters
    ]
    return _section(
        "Dead letters",
        _table(("key", "type", "cause", "detail", "attempts"), rows),
        "Malformed events that were published on purpose. Each was given up with its cause, and nothing else was lost.",
    )


def _attempts(attempts: Sequence[Attempt]) -> str:
    rows = [
        (attempt.what, "NOT REFUSED" if attempt.refused_by is None else REFUSERS[attempt.refused_by], attempt.answer)
        for attempt in attempts
    ]
    return _section(
        "What the neighbour tried",
        _table(("attempt", "refused by", "answer"), rows),
        "<code>tower</code> of project <code>harbour</code> runs as the same user of the same machine, "
        "with a credential of its own.",
    )


def _processes(run: Run) -> str:
    rows = [
        (
            f"{use.service} ({use.project})",
            str(use.pid),
            f"{use.seconds:.1f} s",
            f"{use.busy_seconds:.1f} s",
            f"{use.peak_bytes / 2**20:,.0f} MiB",
            use.ending,
        )
        for use in run.processes
    ]
    return _section("Processes", _table(("process", "pid", "ran", "busy", "memory at most", "ended"), rows))


def _section(title: str, content: str, remark: str = "") -> str:
    note = f'<p class="remark">{remark}</p>' if remark else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


_STYLE = """
:root { color-scheme: light; --ink: #1d2a30; --soft: #5d6f78; --line: #e1e8ea; --paper: #fff; --ground: #f4f7f7 }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 860px; margin: 0 auto; padding: 32px 16px 64px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em }
h2 { font-size: 18px; margin: 0 0 8px }
header p { margin: 0 0 20px; color: var(--soft) }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px }
section { padding: 20px; margin-top: 16px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 16px }
.tiles b { display: block; font-size: 22px; font-variant-numeric: tabular-nums }
.tiles span, .remark { color: var(--soft); font-size: 14px }
p.remark { margin: 0 0 12px }
.note { background: #fdf3dc; border-radius: 8px; padding: 8px 12px; color: var(--ink) }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif }
svg .label { fill: var(--ink) }
svg .remark { fill: var(--soft); font-size: 9.5px } svg .value { fill: var(--ink); font-weight: 600 }
svg .grid { stroke: var(--line) } svg .axis { stroke: #a9b8be }
svg .place { fill: #33505c; stroke: #fff } svg .home { fill: #1d2a30; stroke: #fff; stroke-width: 2 }
svg .stop { fill: #1d2a30 } svg .way { fill: none; stroke: #1d2a30; stroke-width: 2 }
.codes { font: 14px/1.9 ui-monospace, monospace; word-spacing: 4px } abbr { text-decoration: none }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 14px }
th { text-align: left; color: var(--soft); font-weight: 500 }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: break-word }
tr:last-child td { border-bottom: 0 }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Departures from New York, 2013</title><style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""
