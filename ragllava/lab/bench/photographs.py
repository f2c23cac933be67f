"""Pictures that are as expensive to decode as photographs, drawn from a seed."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

SMALL = ((640, 480),)  # pixels; common in data sets
CAMERAS = ((1632, 1224), (2592, 1944), (4000, 3000))  # 2, 5 and 12 megapixels

_DISTINCT = 4  # of each size: drawing one takes longer than ingesting it
_LAYERS = ((4, 90.0), (16, 50.0), (64, 25.0), (256, 12.0))  # patches across, and how strong
_GRAIN = 4.0
_QUALITY = 88  # of the JPEG files


def draw_photographs(seed: int, number: int, sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """JPEG files of these sizes (pixels) in turn. Pictures are repeated, but no two files have the same bytes."""
    distinct = min(number, _DISTINCT * len(sizes))
    drawn = [_draw(np.random.default_rng([seed, index]), sizes[index % len(sizes)]) for index in range(distinct)]
    return [marked(drawn[index % distinct], f"file {index}") for index in range(number)]


def marked(data: bytes, mark: str) -> bytes:
    """The same picture in different bytes: decoders ignore what follows the end of a JPEG or PNG."""
    return data + mark.encode()


def _draw(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """Smooth areas of several sizes and grain, which fill the coefficients of a JPEG like a photograph."""
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
