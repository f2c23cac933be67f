"""Draws a postcard of the shifted world: other landmarks, in one of three drawing styles, put down a little askew.

Everything that questions ask for still shows: colours keep their hue, counted things their number. What differs is how
it looks, so models that learned only in-domain postcards err more here and
can learn from their errors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from ragllava.postcards.canvas import Color, Point
from ragllava.postcards.drawing import Drawing, draw_scene, with_grain
from ragllava.postcards.names import Attributes
from ragllava.postcards.shifted_landmarks import draw_shifted_landmark

_PAPER: Color = (236, 224, 196)
_LARGEST_TILT = 4.0  # degrees
_PASTEL_SHARE = 0.15  # of paper in a pastel's colours
_HATCH_DISTANCE = 5  # pixels of the large picture
_HATCH_DARKNESS = 0.62
_POSTER_STEP = 72  # between two levels of a channel

Pixels = npt.NDArray[np.float32]  # (H, W, 3), 0 to 255


def draw_shifted_postcard(attributes: Attributes, rng: random.Random) -> Drawing:
    """Draws these attributes, of a kind of the shifted world; all that they leave open comes from `rng`."""
    image, counted_at = draw_scene(attributes, rng, draw_shifted_landmark)
    style = _STYLES[rng.choice(list(_STYLES))]
    restyled = style(np.asarray(image, dtype=np.float32), rng).clip(0, 255).astype(np.uint8)
    tilt = rng.uniform(-_LARGEST_TILT, _LARGEST_TILT)
    turned = Image.fromarray(restyled).rotate(tilt, Image.Resampling.BILINEAR, fillcolor=_PAPER)
    return Drawing(with_grain(turned, rng), tuple(_turn(point, tilt) for point in counted_at))


def _pastel(pixels: Pixels, _rng: random.Random) -> Pixels:
    """As if drawn with chalk: all colours mixed with the paper's."""
    return pixels * (1 - _PASTEL_SHARE) + np.array(_PAPER, np.float32) * _PASTEL_SHARE


def _engraving(pixels: Pixels, rng: random.Random) -> Pixels:
    """Dark parallel lines over everything, in a direction of their own."""
    height, width, _ = pixels.shape
    rising = rng.choice((-1, 1))
    rows, columns = np.mgrid[0:height, 0:width]
    lines = (columns + rising * rows) % _HATCH_DISTANCE < _HATCH_DISTANCE // 2
    return np.where(lines[..., None], pixels * _HATCH_DARKNESS, pixels).astype(np.float32)


def _poster(pixels: Pixels, _rng: random.Random) -> Pixels:
    """A print in few flat colours."""
    levels: Pixels = np.round(pixels / _POSTER_STEP)
    return levels * _POSTER_STEP


_STYLES: Mapping[str, Callable[[Pixels, random.Random], Pixels]] = {
    "pastel": _pastel,
    "engraving": _engraving,
    "poster": _poster,
}


def _turn(point: Point, tilt: float) -> Point:
    """Where a point of the picture, in percent, lies when it is turned counter-clockwise by `tilt` degrees."""
    x, y = (value - 50 for value in point)
    cosine, sine = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    return 50 + x * cosine + y * sine, 50 - x * sine + y * cosine
