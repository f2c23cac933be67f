"""Pictures that cost as much to decode as photographs do, drawn from a seed."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

SMALL = ((640, 480),)  # pixels; as data sets ship them
CAMERAS = ((1632, 1224), (2592, 1944), (4000, 3000))  # 2, 5 and 12 megapixels

_DISTINCT = 4  # of each size: to draw one takes longer than to ingest it
_LAYERS = ((4, 90.0), (16, 50.0), (64, 25.0), (256, 12.0))  # patches across, and how strong
_GRAIN = 4.0
_QUALITY = 88  # of the JPEG files


def draw_photographs(seed: int, number: int, sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """JPEG files of these sizes (pixels) in turn. Pictures come again after some, but no two files are the same."""
    distinct = min(number, _DISTINCT * len(sizes))
    drawn = [_draw(np.random.default_rng([seed, place]), sizes[place % len(sizes)]) for place in range(distinct)]
    return [marked(drawn[place % distinct], f"file {place}") for place in range(number)]


def marked(data: bytes, mark: str) -> bytes:
    """The same picture in other bytes: JPEG and PNG end before what is appended."""
    return data + mark.encode()


def _draw(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """Smooth areas of several sizes and grain, which fill a JPEG's coefficients about as a photograph does."""
    width, height = size
    pixels = np.full((height, width, 3), 128, np.float32)
    for across, strength in _LAYERS:
        coarse = rng.normal(size=(max(2, across * height // width), across, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize(size, Image.Resampling.BICUBIC)
            pixels[..., channel] += strength * np.asarray(layer)
    pixels += rng.normal(scale=_GRAIN, size=(height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
