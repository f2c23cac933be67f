"""Small self-contained SVG documents: their primitives, and panels of lines over a pair of axes.

Coordinates are pixels from the upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Points = Sequence[tuple[float, float]]
Anchor = Literal["start", "middle", "end"]

_WIDTH, _PANEL_HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 34, 44  # margins around the plot of a panel
_COLOURS = ("#1f6f8b", "#d1495b", "#6a994e", "#7b5ea7")
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}"
    ".grid{stroke:#ddd}.axis{stroke:#333}.reference{stroke:#333;stroke-width:1.5}"
)


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: lines by label, each a series of (x, y). Points that are not finite are left out."""

    title: str
    x_label: str
    y_label: str
    lines: dict[str, Points]


def draw_document(width: float, height: float, body: str) -> str:
    """An SVG document with a white background."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    )


def draw_text(x: float, y: float, text: str, anchor: Anchor = "start", *, style: str = "", css_class: str = "") -> str:
    """One line of text, escaped. `y` is its baseline, `anchor` the part of it that stands at `x`."""
    attributes = {"text-anchor": anchor if anchor != "start" else "", "class": css_class, "style": style}
    given = "".join(f' {name}="{value}"' for name, value in attributes.items() if value)
    return f'<text x="{x}" y="{y}"{given}>{escape(text)}</text>'


def draw_line(x1: float, y1: float, x2: float, y2: float, css_class: Literal["grid", "axis", "reference"]) -> str:
    """A straight line."""
    return f'<line class="{css_class}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'


def draw_bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A filled rectangle; (x, y) is its upper left corner."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/>'


def draw_panels(panels: Sequence[Panel]) -> str:
    """An SVG document of the panels, one below the other."""
    body = "".join(
        f'<g transform="translate(0,{number * _PANEL_HEIGHT})">{_draw_panel(panel)}</g>'
        for number, panel in enumerate(panels)
    )
    return draw_document(_WIDTH, _PANEL_HEIGHT * len(panels), body)


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


def _draw_panel(panel: Panel) -> str:
    lines = {label: [p for p in points if all(map(math.isfinite, p))] for label, points in panel.lines.items()}
    all_points = [point for points in lines.values() for point in points] or [(0.0, 0.0)]
    x_ticks, y_ticks = (nice_ticks(min(values), max(values)) for values in zip(*all_points, strict=True))
    axes = _Axes(x_ticks, y_ticks)
    drawn = [axes.frame(panel.x_label, panel.y_label), draw_text(_LEFT, 20, panel.title, css_class="title")]
    for number, (label, points) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        drawn.append(axes.curve(points, colour))
        if len(lines) > 1:
            x = _WIDTH - _RIGHT - 130 * (len(lines) - number)
            drawn.append(draw_text(x, 20, label, style=f"fill:{colour}"))
    return "".join(drawn)


@dataclass(frozen=True, slots=True)
class _Axes:
    x_ticks: list[float]
    y_ticks: list[float]

    def position(self, x: float, y: float) -> tuple[float, float]:
        """The pixels of a point in its panel."""
        across = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 2),
            round(_PANEL_HEIGHT - _BOTTOM - up * (_PANEL_HEIGHT - _TOP - _BOTTOM), 2),
        )

    def curve(self, points: Iterable[tuple[float, float]], colour: str) -> str:
        """A polyline; a single point is drawn as a dot."""
        positions = [self.position(*point) for point in points]
        if len(positions) == 1:
            [(x, y)] = positions
            return f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'
        path = " ".join(f"{x},{y}" for x, y in positions)
        return f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'

    def frame(self, x_label: str, y_label: str) -> str:
        """Grid lines with their numbers, the two axes and their labels."""
        left, bottom = self.position(self.x_ticks[0], self.y_ticks[0])
        right, top = self.position(self.x_ticks[-1], self.y_ticks[-1])
        drawn = []
        for tick in self.y_ticks:
            y = self.position(self.x_ticks[0], tick)[1]
            drawn += [draw_line(left, y, right, y, "grid"), draw_text(left - 6, y + 4, f"{tick:g}", "end")]
        for tick in self.x_ticks:
            x = self.position(tick, self.y_ticks[0])[0]
            drawn += [draw_line(x, bottom, x, bottom + 4, "axis"), draw_text(x, bottom + 17, f"{tick:g}", "middle")]
        drawn += [draw_line(left, top, left, bottom, "axis"), draw_line(left, bottom, right, bottom, "axis")]
        drawn.append(draw_text((left + right) / 2, _PANEL_HEIGHT - 8, x_label, "middle"))
        turned = draw_text(0, 0, y_label, "middle")
        drawn.append(f'<g transform="translate(14,{(top + bottom) / 2}) rotate(-90)">{turned}</g>')
        return "".join(drawn)
