"""Small SVG drawings for the report: a figure in its band, a loss curve, a trend. No scripts, colours from the page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from mac_lora_helpers.suite.regress.bands import is_number, number


def gauge(low: float | None, high: float | None, got: Any, baseline: Any, passed: bool) -> str:
    """A bar for the band with a mark for the figure; empty where there is no interval."""
    ends = [value for value in (low, high) if value is not None]
    if not ends or not is_number(got):
        return ""
    near = [*ends, *([baseline] if is_number(baseline) else [])]
    all_of_it = [*near, got]
    span = (max(all_of_it) - min(all_of_it)) or abs(got) or 1.0
    left, right = min(all_of_it) - 0.3 * span, max(all_of_it) + 0.3 * span
    x = _scale(left, right, 0, 150)
    begin, end = x(low if low is not None else left), x(high if high is not None else right)
    mark = f'<circle cx="{x(got):.1f}" cy="8" r="4.5" class="{"good" if passed else "bad"}"/>'
    bar = f'<rect x="{begin:.1f}" y="4" width="{max(end - begin, 1):.1f}" height="8" rx="2" class="band"/>'
    told = html.escape(f"band {number(low)} to {number(high)}, got {number(got)}")
    axis = '<line x1="0" y1="8" x2="150" y2="8" class="axis"/>'
    return f'<svg viewBox="0 0 150 16" width="150" height="16" role="img" aria-label="{told}">{axis}{bar}{mark}</svg>'


def curve(points: Sequence[tuple[float, float]], x_name: str, y_name: str) -> str:
    """A line with both axes' ends written beside it."""
    points = [point for point in points if all(map(is_number, point))]
    if len(points) < 2:
        return ""
    xs, ys = zip(*points, strict=True)
    x, y = _scale(min(xs), max(xs), 44, 312), _scale(max(ys), min(min(ys), 0.0), 8, 92)
    line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    words = [
        f'<text x="40" y="14" text-anchor="end">{float(max(ys)):.3g}</text>',
        f'<text x="40" y="95" text-anchor="end">{float(min(min(ys), 0.0)):.3g}</text>',
        f'<text x="44" y="108">{html.escape(x_name)} {number(xs[0])}</text>',
        f'<text x="312" y="108" text-anchor="end">{number(xs[-1])}</text>',
    ]
    told = html.escape(f"{y_name} over {x_name}: from {number(ys[0])} to {number(ys[-1])}")
    axis = '<path d="M44 8V92H312" class="axis" fill="none"/>'
    return (
        f'<figure><svg viewBox="0 0 320 112" width="320" height="112" role="img" aria-label="{told}">{axis}'
        f'<polyline points="{line}" class="line"/>{"".join(words)}</svg><figcaption>{told}</figcaption></figure>'
    )


def spark(values: Sequence[Any]) -> str:
    """The same figure in earlier reports and this one, oldest first; the last has a dot."""
    known = [(index, value) for index, value in enumerate(values) if is_number(value)]
    if len(known) < 2:
        return ""
    numbers = [value for _, value in known]
    low, high = min(numbers), max(numbers)
    x, y = _scale(0, len(values) - 1, 4, 96), _scale(high, low, 4, 16) if high > low else (lambda _: 10.0)
    line = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in known)
    told = html.escape(
        f"{len(known)} reports, from {number(numbers[0])} to {number(numbers[-1])}, lowest {number(low)}, highest {number(high)}"
    )
    dot = f'<circle cx="{x(known[-1][0]):.1f}" cy="{y(numbers[-1]):.1f}" r="3" class="dot"/>'
    drawn = f'<title>{told}</title><polyline points="{line}" class="line"/>{dot}'
    return f'<svg viewBox="0 0 100 20" width="100" height="20" role="img" aria-label="{told}">{drawn}</svg>'


def _scale(left: float, right: float, begin: float, end: float) -> Any:
    span = (right - left) or 1.0
    return lambda value: begin + (value - left) / span * (end - begin)
