"""What a postcard is drawn on: a canvas in percent of the picture, and the plot of ground of a landmark."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ragllava.postcards.names import Attributes

Color = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Paint:
    """How a closed shape is filled and outlined."""

    fill: Color
    outline: Color | None = None


def shade(color: Color, factor: float) -> Color:
    """The colour made darker (below 1) or lighter (above 1), cut off at white."""
    red, green, blue = (int(max(0, min(255, channel * factor))) for channel in color)
    return red, green, blue


def jitter(rng: random.Random, color: Color, amount: float = 14) -> Color:
    """The colour with each channel moved by up to `amount`, red first."""
    red, green, blue = (max(0, min(255, int(channel + rng.uniform(-amount, amount)))) for channel in color)
    return red, green, blue


class Canvas:
    """A square picture whose coordinates are percent: (0, 0) is the upper left corner, (100, 100) the lower right.

    Widths of lines are percent too, rounded down to whole pixels, at least one.
    """

    def __init__(self, side_pixels: int) -> None:
        """A black square."""
        self.image = Image.new("RGB", (side_pixels, side_pixels))
        self._draw = ImageDraw.Draw(self.image)
        self._pixels_per_percent = side_pixels / 100.0

    def rectangle(self, box: Box, paint: Paint) -> None:
        """A filled rectangle."""
        self._draw.rectangle(self._scaled(box), fill=paint.fill, outline=paint.outline)

    def ellipse(self, box: Box, paint: Paint) -> None:
        """A filled ellipse that touches the four sides of the box."""
        self._draw.ellipse(self._scaled(box), fill=paint.fill, outline=paint.outline)

    def half_disc(self, box: Box, paint: Paint) -> None:
        """The upper half of such an ellipse."""
        self._draw.pieslice(self._scaled(box), 180, 360, fill=paint.fill, outline=paint.outline)

    def arc(self, box: Box, color: Color, width: float) -> None:
        """The upper half of such an ellipse's outline."""
        self._draw.arc(self._scaled(box), 180, 360, fill=color, width=self._line_width(width))

    def polygon(self, points: Sequence[Point], paint: Paint) -> None:
        """A filled polygon."""
        corners = [value for point in points for value in self._scaled(point)]
        self._draw.polygon(corners, fill=paint.fill, outline=paint.outline)

    def line(self, start: Point, end: Point, color: Color, width: float) -> None:
        """A straight line."""
        self._draw.line(self._scaled((*start, *end)), fill=color, width=self._line_width(width))

    def _scaled(self, percents: Sequence[float]) -> list[float]:
        return [value * self._pixels_per_percent for value in percents]

    def _line_width(self, percent: float) -> int:
        return max(1, int(percent * self._pixels_per_percent))


@dataclass(frozen=True, slots=True)
class Plot:
    """The place of one landmark on a canvas, with coordinates of its own.

    x counts from the landmark's middle to the right, y from the ground up; both in percent of the picture times
    `scale`. `body` is the landmark's own colour, `edge` the colour of its outlines, `behind` the sky at the horizon.
    """

    canvas: Canvas
    middle: float
    ground: float
    scale: float
    attributes: Attributes
    body: Color
    edge: Color
    behind: Color
    rng: random.Random

    def edged(self, fill: Color) -> Paint:
        """Any colour with the landmark's outline."""
        return Paint(fill, self.edge)

    def place(self, x: float, y: float) -> Point:
        """A point of the plot as a point of the canvas."""
        return self.middle + x * self.scale, self.ground - y * self.scale

    def rectangle(self, left: float, bottom: float, right: float, top: float, paint: Paint | None = None) -> None:
        """A rectangle, in the body's colour unless told otherwise."""
        self.canvas.rectangle(self._box(left, bottom, right, top), paint or self.edged(self.body))

    def polygon(self, points: Sequence[Point], paint: Paint | None = None) -> None:
        """A polygon, in the body's colour unless told otherwise."""
        self.canvas.polygon([self.place(x, y) for x, y in points], paint or self.edged(self.body))

    def half_disc(self, left: float, bottom: float, right: float, top: float, paint: Paint | None = None) -> None:
        """The upper half of the ellipse in this box, in the body's colour unless told otherwise."""
        self.canvas.half_disc(self._box(left, bottom, right, top), paint or self.edged(self.body))

    def arc(self, box: Box, color: Color, width: float) -> None:
        """The outline of an upper half ellipse; the box is (left, bottom, right, top) of the plot."""
        self.canvas.arc(self._box(*box), color, width)

    def line(self, start: Point, end: Point, color: Color, width: float) -> None:
        """A straight line."""
        self.canvas.line(self.place(*start), self.place(*end), color, width)

    def _box(self, left: float, bottom: float, right: float, top: float) -> Box:
        return (*self.place(left, top), *self.place(right, bottom))
