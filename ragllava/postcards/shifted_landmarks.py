"""The six kinds of landmarks of the shifted world, drawn like the in-domain ones (postcard_landmarks.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ragllava.postcards.canvas import Color, Paint, Plot, Point, shade
from ragllava.postcards.landmarks import STONE, draw_roof, grid

_CHIMNEY: Color = (150, 90, 70)
_LAWN: Color = (120, 170, 90)


def draw_shifted_landmark(plot: Plot) -> list[Point]:
    """Draws the plot's kind of landmark; returns the centres of its possible windows in plot coordinates."""
    return _DRAW_BY_KIND[plot.attributes.kind](plot)


def _draw_igloo(plot: Plot) -> list[Point]:
    plot.half_disc(-28, -36, 28, 36)
    for y in (10, 20):
        reach = (1 - (y / 36) ** 2) ** 0.5 * 28
        plot.line((-reach, y), (reach, y), plot.edge, width=0.8)
    plot.half_disc(-11, -18, 11, 18)
    plot.half_disc(-7, -13, 7, 13, Paint(shade(plot.body, 0.35)))
    return []


def _draw_obelisk(plot: Plot) -> list[Point]:
    plot.rectangle(-17, 0, 17, 6)
    plot.rectangle(-12, 6, 12, 11)
    plot.polygon([(-8, 11), (8, 11), (5, 52), (-5, 52)])
    plot.polygon([(-5, 52), (5, 52), (0, 60)])
    return []


def _draw_pagoda(plot: Plot) -> list[Point]:
    eaves = plot.edged(STONE)
    for floor, half_width in enumerate((20, 15, 10)):
        bottom = floor * 17
        plot.rectangle(-half_width, bottom, half_width, bottom + 12)
        reach = half_width + 8
        plot.polygon(
            [(-reach, bottom + 11), (reach, bottom + 11), (half_width, bottom + 17), (-half_width, bottom + 17)], eaves
        )
    plot.line((0, 51), (0, 60), plot.edge, width=1.4)
    return [*grid((-11, 0, 11), (6,)), *grid((-6, 6), (23,)), (0, 40)]


def _draw_stadium(plot: Plot) -> list[Point]:
    plot.polygon([(-38, 26), (38, 26), (31, 0), (-31, 0)])
    plot.half_disc(-38, 15, 38, 37)
    plot.half_disc(-28, 21, 28, 33, plot.edged(_LAWN))
    for pole in (-34, 34):
        plot.line((pole, 26), (pole, 46), plot.edge, width=1.4)
    return grid((-22.5, -13.5, -4.5, 4.5, 13.5, 22.5), (13,))


def _draw_cottage(plot: Plot) -> list[Point]:
    plot.rectangle(13, 18, 18, 42, plot.edged(_CHIMNEY))
    plot.rectangle(-22, 0, 22, 26)
    draw_roof(plot, 22, 26, height=12)
    plot.rectangle(-3.5, 0, 3.5, 9, plot.edged(STONE))
    return grid((-16, -9, 9, 16), (18,)) + grid((-14, 14), (7,))


def _draw_silo(plot: Plot) -> list[Point]:
    for middle in (-13, 13):
        plot.rectangle(middle - 9, 0, middle + 9, 36)
        plot.line((middle - 9, 31), (middle + 9, 31), plot.edge, width=0.8)
    plot.rectangle(-4, 8, 4, 14, plot.edged(STONE))
    draw_roof(plot, 22, 36, height=10)
    return grid((-13, 13), (6, 16, 26))


_DRAW_BY_KIND: Mapping[str, Callable[[Plot], list[Point]]] = {
    "igloo": _draw_igloo,
    "obelisk": _draw_obelisk,
    "pagoda": _draw_pagoda,
    "stadium": _draw_stadium,
    "cottage": _draw_cottage,
    "silo": _draw_silo,
}
