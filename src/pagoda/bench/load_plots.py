"""Pictures of load, as SVG text: how many requests waited at most so long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 300, 48, 40
_COLOURS = ("#2f6f7e", "#b3261e", "#4d8a5b", "#8a5a9e", "#c77d1e", "#555555", "#3366cc", "#99752f")


def cumulative(title: str, series: Mapping[str, Sequence[float]]) -> str:
    """The share of values up to x, a line for each name, x in seconds on a logarithmic axis."""
    values = [v for found in series.values() for v in found if v > 0]
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    start, span = log10(low), max(1e-9, log10(high) - log10(low))
    lines, names = [], []
    for number, (name, found) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        ordered = sorted(max(v, low) for v in found)
        shown = [*range(0, len(ordered), max(1, len(ordered) // 200)), len(ordered) - 1] if ordered else []
        points = " ".join(
            f"{_x((log10(ordered[i]) - start) / span):.1f},{_y((i + 1) / len(ordered)):.1f}" for i in shown
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        names.append(f'<text x="{_WIDTH - 150}" y="{40 + 16 * number}" fill="{colour}">{escape(name)}</text>')
    axes = (
        f'<path d="M{_LEFT} 24V{_HEIGHT - _BOTTOM}H{_WIDTH - 160}" fill="none" stroke="#888"/>'
        f'<text x="{_LEFT}" y="16">{escape(title)}</text><text x="6" y="34">100%</text>'
        f'<text x="6" y="{_HEIGHT - _BOTTOM}">0%</text><text x="{_LEFT}" y="{_HEIGHT - 16}">{low:.3g} s</text>'
        f'<text x="{_WIDTH - 210}" y="{_HEIGHT - 16}">{high:.3g} s</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{axes}{"".join(lines + names)}</svg>\n'
    )


def _x(share: float) -> float:
    return _LEFT + (_WIDTH - 160 - _LEFT) * share


def _y(share: float) -> float:
    return (_HEIGHT - _BOTTOM) - (_HEIGHT - _BOTTOM - 30) * share
