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
    """One pair of axes: lines by label, each a series of (x, y). Points that are not finite are left out.

    `x_range` and `y_range` are what the axes cover at least; None: what the points do.
    """

    title: str
    x_label: str
    y_label: str
    lines: dict[str, Points]
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None

    def finite_lines(self) -> dict[str, Points]:
        """The lines without the points that cannot be drawn."""
        return {label: [p for p in points if all(map(math.isfinite, p))] for label, points in self.lines.items()}


@dataclass(frozen=True, slots=True)
class Plot:
    """Where the plot of a panel is: its left, right, upper and lower edge."""

    left: float = _LEFT
    right: float = _WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = _PANEL_HEIGHT - _BOTTOM


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


def draw_inline(panel: Panel, drawn_over: str = "") -> str:
    """A panel as an element of an HTML page, whose style sheet says how it looks: the lines have the classes
    `series-0`, `series-1`, … A strict Content-Security-Policy allows it. `drawn_over` is SVG of the caller's own."""
    axes = _axes_of(panel)
    lines = [axes.curve(points, f"series-{number}") for number, points in enumerate(panel.finite_lines().values())]
    body = "".join([axes.frame(panel.x_label, panel.y_label), *lines])
    label = escape(panel.title)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_PANEL_HEIGHT}" role="{"group" if drawn_over else "img"}" '
        f'aria-label="{label}"><g aria-hidden="true">{body}</g>{drawn_over}</svg>'
    )


def smoothed(points: Points, keep: float = 0.9) -> Points:
    """The exponential mean of the points so far, each older one weighing `keep` of the next."""
    total = weight = 0.0
    means = []
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        means.append((x, total / weight))
    return means


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
    lines, axes = panel.finite_lines(), _axes_of(panel)
    drawn = [axes.frame(panel.x_label, panel.y_label), draw_text(_LEFT, 20, panel.title, css_class="title")]
    for number, (label, points) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        drawn.append(axes.curve(points, colour=colour))
        if len(lines) > 1:
            x = _WIDTH - _RIGHT - 130 * (len(lines) - number)
            drawn.append(draw_text(x, 20, label, style=f"fill:{colour}"))
    return "".join(drawn)


def _axes_of(panel: Panel) -> _Axes:
    points = [point for points in panel.finite_lines().values() for point in points] or [(0.0, 0.0)]
    xs, ys = ([*values] for values in zip(*points, strict=True))
    xs += panel.x_range or ()
    ys += panel.y_range or ()
    return _Axes(nice_ticks(min(xs), max(xs)), nice_ticks(min(ys), max(ys)))


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

    def curve(self, points: Iterable[tuple[float, float]], css_class: str = "", *, colour: str = "") -> str:
        """A polyline; a single point is drawn as a dot."""
        positions = [self.position(*point) for point in points]
        look = f' class="{css_class}"' if css_class else ""
        if len(positions) == 1:
            [(x, y)] = positions
            fill = f' fill="{colour}"' if colour else ""
            return f'<circle{look} cx="{x}" cy="{y}" r="3"{fill}/>'
        path = " ".join(f"{x},{y}" for x, y in positions)
        stroke = f' stroke="{colour}"' if colour else ""
        return f'<polyline{look} fill="none"{stroke} stroke-width="1.5" points="{path}"/>'

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
