"""Draws a postcard: sky, ground, landmark, windows or flags, and a companion beside it.

The same attributes and the same state of the random source give the same pixels with the same versions of Pillow and
NumPy. The order of the random calls must not change: the training pictures of the mini models depend on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ragllava.postcards.canvas import Canvas, Color, Paint, Plot, Point, jitter, shade
from ragllava.postcards.landmarks import draw_landmark
from ragllava.postcards.names import NOTHING, SHIFTED_KINDS, Attributes
from ragllava.postcards.shifted import restyle

PICTURE_SIDE = 112  # pixels; what the mini models see
_SUPERSAMPLING = 2

_PAINT_BOX: Mapping[str, Color] = {
    "red": (200, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 60),
    "green": (50, 150, 60),
    "blue": (50, 90, 210),
    "purple": (140, 60, 170),
    "white": (238, 238, 238),
    "black": (42, 42, 46),
}
_SKY_COLORS: Mapping[str, tuple[Color, Color]] = {  # at the upper border, at the horizon
    "day": ((110, 180, 240), (200, 228, 250)),
    "night": ((10, 14, 44), (34, 40, 84)),
    "sunset": ((120, 70, 120), (250, 160, 90)),
}
_SKY_BANDS = 20
_SEA: Color = (60, 110, 150)
_GROUNDS: Sequence[Color] = ((110, 150, 80), (150, 140, 90), (190, 170, 120), (130, 130, 125))
_WINDOW_FRAME: Color = (20, 20, 24)
_FLAG_COLORS: Sequence[Color] = ((230, 60, 140), (250, 250, 250), (60, 210, 220))
_FLAG_POLE: Color = (25, 22, 20)
_FLAG_DISTANCE = 11


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn postcard.

    `pixels` is (112, 112, 3), uint8, RGB. `counted_at` holds the middle of each window or flag as (x, y) in percent
    of the picture from the upper left, as many as the attributes' count; row by row from the ground up, left to right.
    """

    pixels: npt.NDArray[np.uint8]
    counted_at: tuple[Point, ...]


def draw_postcard(attributes: Attributes, rng: random.Random) -> Drawing:
    """Draw these attributes; everything else (positions, tints, clouds, grain) comes from `rng`.

    Landmarks of SHIFTED_KINDS get a drawing style and a rotation as well.
    """
    image, counted_at = _draw_scene(attributes, rng)
    if attributes.kind in SHIFTED_KINDS:
        image, counted_at = restyle(image, counted_at, rng)
    return Drawing(_with_grain(image, rng), tuple(counted_at))


def _draw_scene(attributes: Attributes, rng: random.Random) -> tuple[Image.Image, list[Point]]:
    """The picture before its grain, larger than the final one, and where the counted things are, as in `Drawing`."""
    side = PICTURE_SIDE * _SUPERSAMPLING
    canvas = Canvas(Image.new("RGB", (side, side)))
    horizon = rng.uniform(62, 70)
    behind = _draw_sky(canvas, attributes.sky, horizon, rng)
    _draw_ground(canvas, attributes, horizon, rng)
    plot = _lay_out_plot(canvas, attributes, behind, rng)
    window_places = draw_landmark(plot)
    counted_at = _draw_windows(plot, window_places) if window_places else _draw_flags(canvas, plot)
    _draw_companion(canvas, attributes.beside, rng)
    return canvas.image, counted_at


def _draw_sky(canvas: Canvas, sky: str, horizon: float, rng: random.Random) -> Color:
    """Draw the sky with sun, clouds, moon or stars; returns its color at the horizon."""
    upper, lower = (jitter(rng, color) for color in _SKY_COLORS[sky])
    for band in range(_SKY_BANDS):
        top, bottom = horizon * band / _SKY_BANDS, horizon * (band + 1) / _SKY_BANDS + 1
        canvas.rectangle(0, bottom, 100, top, Paint(_blend(upper, lower, band / (_SKY_BANDS - 1))))
    light_x = rng.choice((rng.uniform(8, 22), rng.uniform(78, 92)))
    _DRAW_LIGHT[sky](canvas, light_x, horizon, rng)
    return lower


def _blend(start: Color, end: Color, share: float) -> Color:
    red, green, blue = (int(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def _draw_sun_and_clouds(canvas: Canvas, x: float, horizon: float, rng: random.Random) -> None:
    canvas.ellipse(x - 6, 6, x + 6, 18, Paint((255, 240, 120)))
    for _ in range(rng.randint(0, 2)):
        cloud_x, cloud_y = rng.uniform(5, 95), rng.uniform(5, 20)
        canvas.ellipse(cloud_x - 9, cloud_y - 3, cloud_x + 9, cloud_y + 3, Paint((248, 250, 252)))


def _draw_moon_and_stars(canvas: Canvas, x: float, horizon: float, rng: random.Random) -> None:
    canvas.ellipse(x - 5, 6, x + 5, 16, Paint((235, 235, 215)))
    for _ in range(14):
        star_x, star_y = rng.uniform(0, 100), rng.uniform(0, horizon - 8)
        canvas.rectangle(star_x, star_y, star_x + 1, star_y + 1, Paint((240, 240, 240)))


def _draw_setting_sun(canvas: Canvas, x: float, horizon: float, rng: random.Random) -> None:
    canvas.half_disc(x - 9, horizon - 9, x + 9, horizon + 9, Paint((255, 120, 50)))


_DRAW_LIGHT: Mapping[str, Callable[[Canvas, float, float, random.Random], None]] = {
    "day": _draw_sun_and_clouds,
    "night": _draw_moon_and_stars,
    "sunset": _draw_setting_sun,
}


def _draw_ground(canvas: Canvas, attributes: Attributes, horizon: float, rng: random.Random) -> None:
    color = _SEA if attributes.kind in ("ship", "bridge") else rng.choice(_GROUNDS)
    brightness = 0.55 if attributes.sky == "night" else 1.0
    canvas.rectangle(0, horizon, 100, 100, Paint(shade(jitter(rng, color), brightness)))


def _lay_out_plot(canvas: Canvas, attributes: Attributes, behind: Color, rng: random.Random) -> Plot:
    """Choose the landmark's tint, position and size."""
    tint = jitter(rng, _PAINT_BOX[attributes.color], 12)
    body = shade(tint, 0.86 if attributes.sky == "night" else 1.0)
    edge = (110, 110, 115) if attributes.color == "black" else shade(body, 0.5)  # a darker black would not show
    return Plot(
        canvas.image,
        Paint(body, edge),
        middle=50 + rng.uniform(-7, 7),
        ground=rng.uniform(78, 83),
        scale=rng.uniform(0.9, 1.08),
        attributes=attributes,
        edge=edge,
        behind=behind,
        rng=rng,
    )


def _draw_windows(plot: Plot, places: Sequence[Point]) -> list[Point]:
    """Windows at a sample of the places, all lit or all unlit; returns their centers in percent of the picture."""
    glass = Paint((255, 235, 130) if plot.rng.random() < 0.5 else (150, 215, 245), _WINDOW_FRAME)
    chosen = sorted(plot.rng.sample(range(len(places)), plot.attributes.count))
    for x, y in (places[index] for index in chosen):
        plot.rectangle(x - 2.6, y - 3.2, x + 2.6, y + 3.2, glass)
    return [plot.place(*places[index]) for index in chosen]


def _draw_flags(canvas: Canvas, plot: Plot) -> list[Point]:
    """A row of flags in front of the landmark; returns their centers in percent of the picture."""
    rng, count = plot.rng, plot.attributes.count
    paint = Paint(rng.choice(_FLAG_COLORS), _FLAG_POLE)
    first_x = plot.middle - _FLAG_DISTANCE * (count - 1) / 2 + rng.uniform(-4, 4)
    foot = rng.uniform(95, 98)
    poles = [first_x + _FLAG_DISTANCE * number for number in range(count)]
    for x in poles:
        canvas.line((x, foot), (x, foot - 13), _FLAG_POLE, width=1.1)
        canvas.polygon([(x, foot - 13), (x + 7, foot - 10.5), (x, foot - 7.5)], paint)
    return [(x + 2.5, foot - 9) for x in poles]


def _draw_companion(canvas: Canvas, companion: str, rng: random.Random) -> None:
    """Draw the companion at the left or the right border, in front of everything else."""
    if companion == NOTHING:
        return
    side = rng.choice((-1, 1))
    x, foot = 50 + side * rng.uniform(39, 43), rng.uniform(82, 90)
    _DRAW_COMPANION[companion](canvas, x, foot)


def _draw_tree(canvas: Canvas, x: float, foot: float) -> None:
    canvas.rectangle(x - 1.2, foot - 12, x + 1.2, foot, Paint((100, 66, 36)))
    canvas.ellipse(x - 7, foot - 25, x + 7, foot - 9, Paint((30, 104, 44), (16, 60, 24)))


def _draw_boat(canvas: Canvas, x: float, foot: float) -> None:
    hull = [(x - 8, foot - 5), (x + 8, foot - 5), (x + 5, foot), (x - 5, foot)]
    canvas.polygon(hull, Paint((122, 74, 40), (50, 30, 16)))
    canvas.polygon([(x, foot - 18), (x, foot - 6), (x + 7, foot - 6)], Paint((250, 250, 245), (90, 90, 90)))


def _draw_car(canvas: Canvas, x: float, foot: float) -> None:
    outline = (40, 10, 20)
    canvas.rectangle(x - 8, foot - 6, x + 8, foot - 1, Paint((170, 30, 60), outline))
    canvas.rectangle(x - 4, foot - 10, x + 4, foot - 6, Paint((190, 220, 235), outline))
    for wheel in (-5, 5):
        canvas.ellipse(x + wheel - 2.2, foot - 2.6, x + wheel + 2.2, foot + 1.8, Paint((20, 20, 20)))


def _draw_dog(canvas: Canvas, x: float, foot: float) -> None:
    fur = (120, 80, 50)
    canvas.rectangle(x - 5, foot - 7, x + 4, foot - 3.4, Paint(fur))
    canvas.ellipse(x + 2.4, foot - 11, x + 7.4, foot - 6, Paint(fur))
    for leg in (-4.6, 2):
        canvas.rectangle(x + leg, foot - 4, x + leg + 1.6, foot, Paint(fur))
    canvas.line((x - 5, foot - 7), (x - 8, foot - 10.5), fur, width=1.4)


def _draw_lamp(canvas: Canvas, x: float, foot: float) -> None:
    iron = (30, 30, 34)
    canvas.rectangle(x - 0.8, foot - 23, x + 0.8, foot, Paint(iron))
    canvas.ellipse(x - 3.4, foot - 28, x + 3.4, foot - 21.5, Paint((255, 250, 190), iron))


_DRAW_COMPANION: Mapping[str, Callable[[Canvas, float, float], None]] = {
    "tree": _draw_tree,
    "boat": _draw_boat,
    "car": _draw_car,
    "dog": _draw_dog,
    "lamp": _draw_lamp,
}


def _with_grain(image: Image.Image, rng: random.Random) -> npt.NDArray[np.uint8]:
    """The picture at its final size, with a random brightness and Gaussian grain."""
    small = image.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)
    brightness = rng.uniform(0.92, 1.06)
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, 4, pixels.shape)
    return np.clip(pixels * brightness + grain, 0, 255).astype(np.uint8)
