"""A pool of drawn postcards on disk: pixels in memory-mapped arrays, beside them what each picture shows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ragllava.postcards.drawing import PICTURE_SIDE, draw_postcard
from ragllava.postcards.names import MAX_COUNT, Attributes, sample_attributes

_PIXELS, _PLACES, _ATTRIBUTES = "pixels.npy", "places.npy", "attributes.json"
_PICTURES_PER_TASK = 500


@dataclass(frozen=True, slots=True)
class PicturePool:
    """Drawn pictures and their truth; entry i of all three belongs to picture i.

    `pixels` (N, 112, 112, 3) uint8. `places` (N, 6, 2) float32 holds the middles of the counted windows or flags,
    x and y in pixels from the upper left; rows beyond the count are -1.
    """

    pixels: npt.NDArray[np.uint8]
    places: npt.NDArray[np.float32]
    attributes: Sequence[Attributes]

    def __len__(self) -> int:
        return len(self.attributes)


def draw_pool(folder: Path, count: int, first_seed: int, processes: int = 2) -> PicturePool:
    """Draws `count` pictures with the seeds from `first_seed` on, or opens the pool if this was done before."""
    if (folder / _ATTRIBUTES).exists():
        return open_pool(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.lib.format.open_memmap(
        folder / _PIXELS, mode="w+", dtype=np.uint8, shape=(count, PICTURE_SIDE, PICTURE_SIDE, 3)
    )
    places = np.full((count, MAX_COUNT, 2), -1, np.float32)
    attributes: list[Attributes] = []
    with get_context("spawn").Pool(processes) as workers:
        seeds = range(first_seed, first_seed + count)
        for number, drawn in enumerate(workers.imap(_draw, seeds, chunksize=_PICTURES_PER_TASK)):
            shown, pixels[number], counted_at = drawn
            attributes.append(shown)
            places[number, : len(counted_at)] = np.asarray(counted_at) * PICTURE_SIDE / 100
    pixels.flush()
    np.save(folder / _PLACES, places)
    # Written last: a folder with this file is whole.
    (folder / _ATTRIBUTES).write_text(json.dumps([asdict(shown) for shown in attributes]))
    return open_pool(folder)


def open_pool(folder: Path) -> PicturePool:
    """The pool in a folder; pixels stay on disk until they are looked at."""
    attributes = [Attributes(**fields) for fields in json.loads((folder / _ATTRIBUTES).read_text())]
    return PicturePool(np.load(folder / _PIXELS, mmap_mode="r"), np.load(folder / _PLACES), attributes)


def _draw(seed: int) -> tuple[Attributes, npt.NDArray[np.uint8], tuple[tuple[float, float], ...]]:
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    attributes = sample_attributes(rng)
    drawing = draw_postcard(attributes, rng)
    return attributes, drawing.pixels, drawing.counted_at
