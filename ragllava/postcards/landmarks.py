"""The kinds of landmarks, twelve in-domain and six shifted ones. One function draws each and returns its window places.

Kinds without windows return no places: flags in front of them show their count. Numbers are percent of the picture,
from the landmark's middle and from the ground up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ragllava.postcards.canvas import Color, Paint, Plot, Point, shade

_STONE: Color = (88, 78, 74)
_ROOF = Paint(_STONE, (40, 36, 34))
_LANTERN: Color = (255, 240, 150)
_SAIL: Color = (236, 230, 210)
_WINDMILL_ARM: Color = (225, 215, 195)
_WATER: Color = (190, 225, 250)
_CHIMNEY: Color = (150, 90, 70)
_LAWN: Color = (120, 170, 90)


def draw_landmark(plot: Plot) -> list[Point]:
    """Draw the plot's kind of landmark; returns the centers of its possible windows in plot coordinates."""
    return _DRAW_BY_KIND[plot.attributes.kind](plot)


def _draw_roof(plot: Plot, half_width: float, bottom: float, height: float = 11) -> None:
    """Draw the roof that the attributes name on top of walls that end at `bottom`."""
    shape = plot.attributes.roof
    if shape == "flat":
        plot.rectangle(-half_width - 2, bottom, half_width + 2, bottom + 3, _ROOF)
    elif shape == "pointed":
        top = (0, bottom + height + 3)
        plot.polygon([(-half_width - 2, bottom), (half_width + 2, bottom), top], _ROOF)
    elif shape == "round":
        plot.half_disc(-half_width - 1, bottom - height, half_width + 1, bottom + height, _ROOF)
    else:
        for step in range(3):
            inset = half_width * step * 0.3
            lower, upper = bottom + step * 3.6, bottom + (step + 1) * 3.6
            plot.rectangle(-half_width + inset, lower, half_width - inset, upper, _ROOF)


def _grid(columns: tuple[float, ...], rows: tuple[float, ...]) -> list[Point]:
    """Window places row by row, from the ground up."""
    return [(x, y) for y in rows for x in columns]


def _draw_tower(plot: Plot) -> list[Point]:
    plot.rectangle(-11, 0, 11, 46)
    _draw_roof(plot, 11, 46)
    return _grid((-5, 5), (9, 21, 33))


def _draw_lighthouse(plot: Plot) -> list[Point]:
    plot.polygon([(-13, 0), (13, 0), (8, 40), (-8, 40)])
    band = Paint((170, 170, 170) if plot.attributes.color == "white" else (240, 240, 240))
    for y in (10, 24):
        plot.rectangle(-12 + y * 0.11, y, 12 - y * 0.11, y + 3, band)
    plot.rectangle(-10, 40, 10, 42, plot.edged(_STONE))
    plot.rectangle(-5, 42, 5, 50, Paint(_LANTERN, _STONE))
    _draw_roof(plot, 6, 50, height=8)
    return _grid((-4.5, 4.5), (5.5, 18.5, 32))


def _draw_windmill(plot: Plot) -> list[Point]:
    plot.polygon([(-14, 0), (14, 0), (9, 36), (-9, 36)])
    _draw_roof(plot, 10, 36)
    turn = plot.rng.uniform(0, math.pi / 2)
    hub, arm_length = (0, 38), 21
    for arm in range(4):
        angle = turn + arm * math.pi / 2
        tip = (math.cos(angle) * arm_length, 38 + math.sin(angle) * arm_length)
        plot.line(hub, tip, _WINDMILL_ARM, width=2.6)
    return _grid((-5, 5), (6, 16, 26))


def _draw_castle(plot: Plot) -> list[Point]:
    plot.rectangle(-26, 0, 26, 24)
    plot.rectangle(-31, 0, -21, 33)
    plot.rectangle(21, 0, 31, 33)
    plot.rectangle(-10, 0, 10, 38)
    _draw_roof(plot, 10, 38)
    for battlement in (-31, -27.4, -23.8, 21, 24.6, 28.2):
        plot.rectangle(battlement, 33, battlement + 2.4, 36.5)
    if plot.rng.random() < 0.5:
        return _grid((-26, 0, 26), (9, 26))
    return _grid((-26, -15.5, -5, 5, 15.5, 26), (14,))


def _draw_barn(plot: Plot) -> list[Point]:
    plot.rectangle(-27, 0, 27, 25)
    _draw_roof(plot, 27, 25, height=12)
    plot.rectangle(-7, 0, 7, 11, plot.edged(_STONE))
    return _grid((-21, -12.5, -4, 4, 12.5, 21), (18,))


def _draw_dome(plot: Plot) -> list[Point]:
    plot.half_disc(-24, -2, 24, 46)
    plot.rectangle(-27, 0, 27, 22)
    plot.rectangle(-1, 45, 1, 53, plot.edged(_STONE))
    return _grid((-22, -13.2, -4.4, 4.4, 13.2, 22), (11,))


def _draw_ship(plot: Plot) -> list[Point]:
    plot.polygon([(-32, 18), (32, 18), (24, 0), (-24, 0)])
    mast, sail = plot.edged(_STONE), plot.edged(_SAIL)
    plot.rectangle(-9, 18, -7, 52, mast)
    plot.rectangle(11, 18, 13, 46, mast)
    plot.polygon([(-7, 50), (-7, 24), (8, 24)], sail)
    plot.polygon([(13, 44), (13, 24), (25, 24)], sail)
    return _grid((-20, -12, -4, 4, 12, 20), (10,))


def _draw_temple(plot: Plot) -> list[Point]:
    plot.rectangle(-28, 0, 28, 4)
    plot.rectangle(-28, 26, 28, 31)
    plot.polygon([(-30, 31), (30, 31), (0, 45)])
    for column in (-26, -14, -2, 10, 22):
        plot.rectangle(column, 4, column + 4, 26)
    return []


def _draw_bridge(plot: Plot) -> list[Point]:
    plot.rectangle(-48, 20, 48, 26)
    for pier in (-30, 0, 30):
        plot.rectangle(pier - 3, -4, pier + 3, 20)
    for span in (-15, 15):
        plot.arc(span - 12, -2, span + 12, 20, plot.edge, width=1.5)
    for pylon in (-30, 30):
        plot.rectangle(pylon - 2, 26, pylon + 2, 44)
    for pylon, anchor in ((-30, 0), (30, 0), (-30, -48), (30, 48)):
        plot.line((pylon, 44), (anchor, 27), plot.edge, width=1)
    return []


def _draw_pyramid(plot: Plot) -> list[Point]:
    plot.polygon([(-33, 0), (33, 0), (0, 48)])
    for y in (12, 24, 36):
        plot.line((-33 + y * 0.69, y), (33 - y * 0.69, y), plot.edge, width=0.8)
    return []


def _draw_arch(plot: Plot) -> list[Point]:
    plot.rectangle(-24, 0, -12, 42)
    plot.rectangle(12, 0, 24, 42)
    plot.rectangle(-26, 36, 26, 46)
    opening = plot.edged(shade(plot.behind, 0.9))
    plot.half_disc(-12, 13, 12, 37, opening)
    return []


def _draw_fountain(plot: Plot) -> list[Point]:
    plot.rectangle(-28, 0, 28, 9)
    plot.rectangle(-4, 9, 4, 26)
    plot.polygon([(-15, 30), (15, 30), (8, 23), (-8, 23)])
    for reach in (-18, -9, 9, 18):
        plot.arc(min(0, reach), 12, max(0, reach), 44, _WATER, width=1.6)
    plot.line((0, 30), (0, 46), _WATER, width=1.6)
    return []


def _draw_igloo(plot: Plot) -> list[Point]:
    plot.half_disc(-28, -36, 28, 36)
    for y in (10, 20):
        reach = (1 - (y / 36) ** 2) ** 0.5 * 28
        plot.line((-reach, y), (reach, y), plot.edge, width=0.8)
    plot.half_disc(-11, -18, 11, 18)
    plot.half_disc(-7, -13, 7, 13, Paint(shade(plot.paint.fill, 0.35)))
    return []


def _draw_obelisk(plot: Plot) -> list[Point]:
    plot.rectangle(-17, 0, 17, 6)
    plot.rectangle(-12, 6, 12, 11)
    plot.polygon([(-8, 11), (8, 11), (5, 52), (-5, 52)])
    plot.polygon([(-5, 52), (5, 52), (0, 60)])
    return []


def _draw_pagoda(plot: Plot) -> list[Point]:
    eaves = plot.edged(_STONE)
    for floor, half_width in enumerate((20, 15, 10)):
        bottom = floor * 17
        plot.rectangle(-half_width, bottom, half_width, bottom + 12)
        reach = half_width + 8
        plot.polygon(
            [(-reach, bottom + 11), (reach, bottom + 11), (half_width, bottom + 17), (-half_width, bottom + 17)], eaves
        )
    plot.line((0, 51), (0, 60), plot.edge, width=1.4)
    return [*_grid((-11, 0, 11), (6,)), *_grid((-6, 6), (23,)), (0, 40)]


def _draw_stadium(plot: Plot) -> list[Point]:
    plot.polygon([(-38, 26), (38, 26), (31, 0), (-31, 0)])
    plot.half_disc(-38, 15, 38, 37)
    plot.half_disc(-28, 21, 28, 33, plot.edged(_LAWN))
    for pole in (-34, 34):
        plot.line((pole, 26), (pole, 46), plot.edge, width=1.4)
    return _grid((-22.5, -13.5, -4.5, 4.5, 13.5, 22.5), (13,))


def _draw_cottage(plot: Plot) -> list[Point]:
    plot.rectangle(13, 18, 18, 42, plot.edged(_CHIMNEY))
    plot.rectangle(-22, 0, 22, 26)
    _draw_roof(plot, 22, 26, height=12)
    plot.rectangle(-3.5, 0, 3.5, 9, plot.edged(_STONE))
    return _grid((-16, -9, 9, 16), (18,)) + _grid((-14, 14), (7,))


def _draw_silo(plot: Plot) -> list[Point]:
    for middle in (-13, 13):
        plot.rectangle(middle - 9, 0, middle + 9, 36)
        plot.line((middle - 9, 31), (middle + 9, 31), plot.edge, width=0.8)
    plot.rectangle(-4, 8, 4, 14, plot.edged(_STONE))
    _draw_roof(plot, 22, 36, height=10)
    return _grid((-13, 13), (6, 16, 26))


_DRAW_BY_KIND: Mapping[str, Callable[[Plot], list[Point]]] = {
    "tower": _draw_tower,
    "lighthouse": _draw_lighthouse,
    "windmill": _draw_windmill,
    "castle": _draw_castle,
    "barn": _draw_barn,
    "dome": _draw_dome,
    "ship": _draw_ship,
    "temple": _draw_temple,
    "bridge": _draw_bridge,
    "pyramid": _draw_pyramid,
    "arch": _draw_arch,
    "fountain": _draw_fountain,
    "igloo": _draw_igloo,
    "obelisk": _draw_obelisk,
    "pagoda": _draw_pagoda,
    "stadium": _draw_stadium,
    "cottage": _draw_cottage,
    "silo": _draw_silo,
}
