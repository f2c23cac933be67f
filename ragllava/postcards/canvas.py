"""The surfaces that a postcard is drawn on: the whole picture, and the plot of ground of a landmark."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ragllava.postcards.names import Attributes

Color = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Paint:
    """How a closed shape is filled and outlined."""

    fill: Color
    outline: Color | None = None


def shade(color: Color, factor: float) -> Color:
    """The color made darker (below 1) or lighter (above 1), cut off at white."""
    red, green, blue = (int(max(0, min(255, channel * factor))) for channel in color)
    return red, green, blue


def jitter(rng: random.Random, color: Color, amount: float = 14) -> Color:
    """The color with each channel moved by up to `amount`, red first."""
    red, green, blue = (max(0, min(255, int(channel + rng.uniform(-amount, amount)))) for channel in color)
    return red, green, blue


@dataclass(frozen=True)
class Canvas:
    """A square picture. Coordinates are percent: (0, 0) is the upper left corner, (100, 100) the lower right.

    A box is given by two opposite corners, the left one first. Widths of lines are percent of the picture, rounded
    down to whole pixels, at least one. `paint` is for closed shapes that name no other.
    """

    image: Image.Image
    paint: Paint = Paint((0, 0, 0))

    def place(self, x: float, y: float) -> Point:
        """A point of these coordinates in percent of the picture from the upper left."""
        return x, y

    def rectangle(self, left: float, bottom: float, right: float, top: float, paint: Paint | None = None) -> None:
        """A filled rectangle."""
        self._pen.rectangle(self._box(left, bottom, right, top), *self._fill_and_outline(paint))

    def ellipse(self, left: float, bottom: float, right: float, top: float, paint: Paint | None = None) -> None:
        """A filled ellipse that touches the four sides of the box."""
        self._pen.ellipse(self._box(left, bottom, right, top), *self._fill_and_outline(paint))

    def half_disc(self, left: float, bottom: float, right: float, top: float, paint: Paint | None = None) -> None:
        """The upper half of such an ellipse."""
        self._pen.pieslice(self._box(left, bottom, right, top), 180, 360, *self._fill_and_outline(paint))

    def arc(self, left: float, bottom: float, right: float, top: float, color: Color, width: float) -> None:
        """The upper half of such an ellipse's outline."""
        self._pen.arc(self._box(left, bottom, right, top), 180, 360, fill=color, width=self._line_width(width))

    def polygon(self, points: Sequence[Point], paint: Paint | None = None) -> None:
        """A filled polygon."""
        self._pen.polygon([self._pixels(*point) for point in points], *self._fill_and_outline(paint))

    def line(self, start: Point, end: Point, color: Color, width: float) -> None:
        """A straight line."""
        self._pen.line([self._pixels(*start), self._pixels(*end)], fill=color, width=self._line_width(width))

    def _fill_and_outline(self, paint: Paint | None) -> tuple[Color, Color | None]:
        chosen = paint or self.paint
        return chosen.fill, chosen.outline

    @property
    def _pen(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    @property
    def _pixels_per_percent(self) -> float:
        return self.image.width / 100.0

    def _pixels(self, x: float, y: float) -> Point:
        across, down = self.place(x, y)
        return across * self._pixels_per_percent, down * self._pixels_per_percent

    def _box(self, left: float, bottom: float, right: float, top: float) -> list[float]:
        """In pixels: left, upper, right and lower border, whichever way y counts."""
        (x0, y0), (x1, y1) = self._pixels(left, bottom), self._pixels(right, top)
        return [x0, min(y0, y1), x1, max(y0, y1)]

    def _line_width(self, percent: float) -> int:
        return max(1, int(percent * self._pixels_per_percent))


@dataclass(frozen=True, kw_only=True)
class Plot(Canvas):
    """The part of a canvas where one landmark stands, with coordinates of its own.

    x counts from the landmark's middle to the right, y from the ground up; both in percent of the picture times
    `scale`. `paint` has the landmark's own color and that of its outlines, `behind` is the sky at the horizon.
    """

    middle: float
    ground: float
    scale: float
    attributes: Attributes
    edge: Color
    behind: Color
    rng: random.Random

    def edged(self, fill: Color) -> Paint:
        """Any color with the landmark's outline."""
        return Paint(fill, self.edge)

    def place(self, x: float, y: float) -> Point:
        """A point of the plot in percent of the picture from the upper left."""
        return self.middle + x * self.scale, self.ground - y * self.scale
