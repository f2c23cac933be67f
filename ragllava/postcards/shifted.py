"""How postcards of shifted archives look: one of three drawing styles, slightly rotated.

Everything that questions ask for stays visible: colors keep their hue, and counted things keep their number. Models
trained on in-domain postcards make more errors here and can learn from them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ragllava.postcards.canvas import Color, Point

_PAPER: Color = (236, 224, 196)
_LARGEST_TILT = 4.0  # degrees
_PASTEL_SHARE = 0.15  # of paper in the colors of a pastel
_HATCH_DISTANCE = 5  # pixels of the large picture
_HATCH_DARKNESS = 0.62
_POSTER_STEP = 72  # between two levels of a channel

Pixels = npt.NDArray[np.float32]  # (H, W, 3), 0 to 255


def restyle(image: Image.Image, counted_at: Sequence[Point], rng: random.Random) -> tuple[Image.Image, list[Point]]:
    """The picture in a drawing style from `rng` and rotated; points (percent from the upper left) rotate with it."""
    style = _STYLES[rng.choice(list(_STYLES))]
    restyled = style(np.asarray(image, dtype=np.float32), rng).clip(0, 255).astype(np.uint8)
    tilt = rng.uniform(-_LARGEST_TILT, _LARGEST_TILT)
    turned = Image.fromarray(restyled).rotate(tilt, Image.Resampling.BILINEAR, fillcolor=_PAPER)
    return turned, [_turn(point, tilt) for point in counted_at]


def _pastel(pixels: Pixels, _rng: random.Random) -> Pixels:
    """As if drawn with chalk: all colors mixed with the color of the paper."""
    return pixels * (1 - _PASTEL_SHARE) + np.array(_PAPER, np.float32) * _PASTEL_SHARE


def _engraving(pixels: Pixels, rng: random.Random) -> Pixels:
    """Dark parallel lines over the whole picture, rising or falling."""
    height, width, _ = pixels.shape
    rising = rng.choice((-1, 1))
    rows, columns = np.mgrid[0:height, 0:width]
    lines = (columns + rising * rows) % _HATCH_DISTANCE < _HATCH_DISTANCE // 2
    return np.where(lines[..., None], pixels * _HATCH_DARKNESS, pixels).astype(np.float32)


def _poster(pixels: Pixels, _rng: random.Random) -> Pixels:
    """A print in a few flat colors."""
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
