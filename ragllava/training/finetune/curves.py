"""Curves of a training as a small self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _PANEL_HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 34, 44  # margins around the plot of a panel
_COLOURS = ("#1f6f8b", "#d1495b", "#6a994e", "#7b5ea7")
_STYLE = "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}.grid{stroke:#ddd}.axis{stroke:#333}"


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: lines by label, each a series of (x, y). Points that are no numbers are left out."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, Points]


def draw_panels(panels: Sequence[Panel]) -> str:
    """The panels under each other, as an SVG document."""
    height = _PANEL_HEIGHT * len(panels)
    body = "".join(
        f'<g transform="translate(0,{number * _PANEL_HEIGHT})">{_draw(panel)}</g>'
        for number, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    )


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at most `low` to at least `high`.

    >>> nice_ticks(0.3, 9.1)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _draw(panel: Panel) -> str:
    lines = {label: [p for p in points if all(map(math.isfinite, p))] for label, points in panel.lines.items()}
    everything = [point for points in lines.values() for point in points] or [(0.0, 0.0)]
    x_ticks, y_ticks = (nice_ticks(min(values), max(values)) for values in zip(*everything, strict=True))
    axes = _Axes(x_ticks, y_ticks)
    drawn = [axes.frame(), f'<text class="title" x="{_LEFT}" y="20">{escape(panel.title)}</text>', axes.names(panel)]
    for number, (label, points) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        drawn.append(axes.line(points, colour))
        if len(lines) > 1:
            x = _WIDTH - _RIGHT - 130 * (len(lines) - number)
            drawn.append(f'<text x="{x}" y="20" style="fill:{colour}">{escape(label)}</text>')
    return "".join(drawn)


@dataclass(frozen=True, slots=True)
class _Axes:
    x_ticks: list[float]
    y_ticks: list[float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point stands in the panel, in pixels from its upper left."""
        across = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 2),
            round(_PANEL_HEIGHT - _BOTTOM - up * (_PANEL_HEIGHT - _TOP - _BOTTOM), 2),
        )

    def line(self, points: Iterable[tuple[float, float]], colour: str) -> str:
        """A polyline; a single point is drawn as a dot."""
        places = [self.place(*point) for point in points]
        if len(places) == 1:
            return f'<circle cx="{places[0][0]}" cy="{places[0][1]}" r="3" fill="{colour}"/>'
        path = " ".join(f"{x},{y}" for x, y in places)
        return f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'

    def frame(self) -> str:
        """Grid lines with their numbers, and the two axes."""
        drawn = []
        left, bottom = self.place(self.x_ticks[0], self.y_ticks[0])
        right, top = self.place(self.x_ticks[-1], self.y_ticks[-1])
        for tick in self.y_ticks:
            y = self.place(self.x_ticks[0], tick)[1]
            drawn.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
            drawn.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
        for tick in self.x_ticks:
            x = self.place(tick, self.y_ticks[0])[0]
            drawn.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
            drawn.append(f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
        drawn.append(f'<path class="axis" fill="none" d="M{left},{top}V{bottom}H{right}"/>')
        return "".join(drawn)

    def names(self, panel: Panel) -> str:
        """What the axes count."""
        middle = (_PANEL_HEIGHT + _TOP - _BOTTOM) / 2
        return (
            f'<text x="{(_WIDTH + _LEFT - _RIGHT) / 2}" y="{_PANEL_HEIGHT - 8}" text-anchor="middle">'
            f"{escape(panel.x_label)}</text>"
            f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle">{escape(panel.y_label)}</text>'
        )
