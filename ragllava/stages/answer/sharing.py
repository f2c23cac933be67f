"""How many distinct images questions have among their candidates: as if each candidate were drawn from a pool."""

from __future__ import annotations

import math

_LARGEST = 1e9


def distinct_images(pool: float, pairs: float) -> float:
    """The distinct images that so many pairs of a question and an image have, drawn from a pool of this size."""
    return pool * -math.expm1(-pairs / pool)


def pool_size(images: int, pairs: int) -> float:
    """The size of the pool from which so many pairs drew so many distinct images."""
    low, high = float(max(1, images)), _LARGEST
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if distinct_images(middle, pairs) < images else (low, middle)
    return high
