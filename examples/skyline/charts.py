"""Charts as SVG text, with nothing to install and nothing to load: they work in a file opened from a disk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from skyline.figures import ORIGINS, Place, RouteDelay

__all__ = ["bars", "columns", "network"]

_WIDTH = 720
_SCALE = ((0.0, (64, 145, 148)), (0.5, (233, 174, 74)), (1.0, (196, 71, 58)))


def columns(values: Sequence[tuple[str, float | None]], *, title: str, unit: str, height: int = 240) -> str:
    """One column per label; a label without a value keeps its place."""
    top = _round_up(max((value for _, value in values if value is not None), default=1.0))
    lowest = min((value for _, value in values if value is not None), default=0.0)
    bottom = -_round_up(-lowest) if lowest < 0 else 0.0
    left, right, above, below = 40, 8, 16, 26
    span = height - above - below

    def at(value: float) -> float:
        return above + span * (top - value) / (top - bottom)

    step = (_WIDTH - left - right) / max(1, len(values))
    parts = [_grid(at, bottom=bottom, top=top, left=left, right=right, unit=unit)]
    for index, (label, value) in enumerate(values):
        x = left + index * step
        parts.append(_text(x + step / 2, height - 8, label, "middle"))
        if value is None:
            continue
        y, base = sorted((at(value), at(0)))
        colour = _colour(value / top if top else 0)
        parts.append(
            f'<g><title>{escape(label)}: {value:.1f} {unit}</title><rect x="{x + step * 0.14:.1f}" y="{y:.1f}" '
            f'width="{step * 0.72:.1f}" height="{max(base - y, 1):.1f}" rx="3" fill="{colour}"/>'
            f"{_text(x + step / 2, y - 4, f'{value:.0f}', 'middle', 'value')}</g>"
        )
    return _svg(height, title, parts)


def bars(values: Sequence[tuple[str, str, float]], *, title: str, unit: str) -> str:
    """One horizontal bar per (label, remark, value), longest names first in view and values at the end."""
    row, left = 30, 250
    top = max((value for *_, value in values), default=1.0)
    parts = list[str]()
    for index, (label, remark, value) in enumerate(values):
        y = index * row
        length = max(2.0, (_WIDTH - left - 70) * max(value, 0) / (top or 1))
        colour = _colour(value / (top or 1))
        parts.append(
            f"<g><title>{escape(label)}: {value:.1f} {unit}; {escape(remark)}</title>"
            f"{_text(left - 10, y + 14, label, 'end')}{_text(left - 10, y + 25, remark, 'end', 'remark')}"
            f'<rect x="{left}" y="{y + 5}" width="{length:.1f}" height="18" rx="3" fill="{colour}"/>'
            f"{_text(left + length + 8, y + 19, f'{value:.1f}', 'start', 'value')}</g>"
        )
    return _svg(max(row, row * len(values)), title, parts)


def network(routes: Iterable[RouteDelay], origins: Sequence[Place], *, title: str, way: Sequence[Place] = ()) -> str:
    """The routes on a map without a map: places where they lie, lines coloured by delay, the chosen way on top."""
    start = {place.code: place for place in origins if _located(place)}
    flown = [route for route in routes if route.mean is not None and _located(route.dest) and route.origin in start]
    places = {place.code: place for place in [*start.values(), *(route.dest for route in flown)]}
    points, height = _lay_out(places.values())
    parts = _lines(flown, points)
    stops = [place.code for place in way if place.code in points]
    if len(stops) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (points[code] for code in stops))
        parts.append(f'<polyline points="{line}" class="way"/>')
    for code, place in places.items():
        x, y = points[code]
        label = f"{code}: {place.name or 'no details'}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="place"><title>{escape(label)}</title></circle>')
    for code in stops:
        x, y = points[code]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="stop"/>')
        if code not in ORIGINS:
            parts.append(_text(x, y - 9, code, "middle", "value"))
    if start:
        x, y = points[next(iter(start))]
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" class="home"/>',
            _text(x + 9, y + 14, "New York", "start", "value"),
        ]
    return _svg(height, title, parts)


def _lines(routes: Sequence[RouteDelay], points: Mapping[str, tuple[float, float]]) -> list[str]:
    top = max((route.mean or 0 for route in routes), default=1.0) or 1.0
    parts = list[str]()
    for route in sorted(routes, key=lambda route: route.mean or 0):
        (x1, y1), (x2, y2) = points[route.origin], points[route.dest.code]
        bend = math.hypot(x2 - x1, y2 - y1) * 0.14
        parts.append(
            f'<path d="M{x1:.1f} {y1:.1f}Q{(x1 + x2) / 2:.1f} {(y1 + y2) / 2 - bend:.1f} {x2:.1f} {y2:.1f}" '
            f'fill="none" stroke="{_colour((route.mean or 0) / top)}" stroke-width="1.2" stroke-opacity=".55"/>'
        )
    return parts


def _lay_out(places: Iterable[Place]) -> tuple[dict[str, tuple[float, float]], int]:
    """Where each place lies on the drawing, and how high that gets."""
    raw = {place.code: _albers(place) for place in places}
    if not raw:
        return {}, 60
    west, east = min(x for x, _ in raw.values()), max(x for x, _ in raw.values())
    north, south = max(y for _, y in raw.values()), min(y for _, y in raw.values())
    margin, right = 24, 72
    scale = (_WIDTH - margin - right) / max(east - west, 0.05)
    points = {code: (margin + (x - west) * scale, margin + (north - y) * scale) for code, (x, y) in raw.items()}
    return points, math.ceil(2 * margin + (north - south) * scale)


def _albers(place: Place) -> tuple[float, float]:
    # The equal-area conic that maps of the United States use: parallels 29.5° and 45.5°, centre 37.5° N 96° W
    # (Snyder, "Map Projections: A Working Manual", section 14).
    first, second, middle = math.radians(29.5), math.radians(45.5), math.radians(37.5)
    n = (math.sin(first) + math.sin(second)) / 2
    c = math.cos(first) ** 2 + 2 * n * math.sin(first)
    angle = n * math.radians((place.longitude or 0) + 96)
    radius = math.sqrt(c - 2 * n * math.sin(math.radians(place.latitude or 0))) / n
    return radius * math.sin(angle), math.sqrt(c - 2 * n * math.sin(middle)) / n - radius * math.cos(angle)


def _located(place: Place) -> bool:
    return place.latitude is not None and place.longitude is not None


def _grid(at: Callable[[float], float], *, bottom: float, top: float, left: int, right: int, unit: str) -> str:
    step = _round_up((top - bottom) / 4)
    lines = list[str]()
    value = math.ceil(bottom / step) * step
    while value <= top + 1e-9:
        y = at(value)
        kind = "axis" if value == 0 else "grid"
        lines.append(f'<line x1="{left}" x2="{_WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}" class="{kind}"/>')
        lines.append(_text(left - 6, y + 4, f"{value:g}", "end", "remark"))
        value += step
    return "".join(lines) + _text(4, 10, unit, "start", "remark")


def _round_up(value: float) -> float:
    """The next number that reads well on an axis: 1, 2, 2.5 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(power * nice for nice in (1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10) if value <= power * nice * (1 + 1e-9))


def _colour(share: float) -> str:
    share = min(1.0, max(0.0, share))
    for (low, first), (high, second) in itertools.pairwise(_SCALE):
        if share <= high:
            part = (share - low) / (high - low)
            return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(first, second, strict=True))
    return "#000000"


def _text(x: float, y: float, content: str, anchor: str, kind: str = "label") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def _svg(height: int, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
