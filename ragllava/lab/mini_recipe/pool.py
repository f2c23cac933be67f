"""A pool of drawn postcards on disk: pixels in memory-mapped arrays, and what each picture shows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ragllava.postcards.drawing import PICTURE_SIDE, Drawing, draw_postcard
from ragllava.postcards.names import MAX_COUNT, Attributes, sample_attributes

_PIXELS, _PLACES, _ATTRIBUTES = "pixels.npy", "places.npy", "attributes.json"
_PICTURES_PER_TASK = 500


@dataclass(frozen=True, slots=True)
class PicturePool:
    """Drawn pictures and their labels; entry i of all three belongs to picture i.

    `pixels` (N, 112, 112, 3) uint8. `places` (N, 6, 2) float32 contains the centers of the counted windows or flags,
    x and y in pixels from the upper left; rows beyond the count are -1.
    """

    pixels: npt.NDArray[np.uint8]
    places: npt.NDArray[np.float32]
    attributes: Sequence[Attributes]

    def __len__(self) -> int:
        return len(self.attributes)


def draw_pool(folder: Path, count: int, first_seed: int, processes: int = 2) -> PicturePool:
    """Draw `count` pictures with consecutive seeds from `first_seed`, unless the folder has a pool; returns the pool.

    Pixels stay on disk until they are read.
    """
    if not (folder / _ATTRIBUTES).exists():
        _draw_all(folder, count, first_seed, processes)
    attributes = [Attributes(**fields) for fields in json.loads((folder / _ATTRIBUTES).read_text())]
    return PicturePool(np.load(folder / _PIXELS, mmap_mode="r"), np.load(folder / _PLACES), attributes)


def _draw_all(folder: Path, count: int, first_seed: int, processes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.lib.format.open_memmap(
        folder / _PIXELS, mode="w+", dtype=np.uint8, shape=(count, PICTURE_SIDE, PICTURE_SIDE, 3)
    )
    places = np.full((count, MAX_COUNT, 2), -1, np.float32)
    attributes: list[Attributes] = []
    with get_context("spawn").Pool(processes) as workers:
        seeds = range(first_seed, first_seed + count)
        for number, (shown, drawing) in enumerate(workers.imap(_draw, seeds, chunksize=_PICTURES_PER_TASK)):
            attributes.append(shown)
            pixels[number] = drawing.pixels
            places[number, : shown.count] = np.asarray(drawing.counted_at) * PICTURE_SIDE / 100
    pixels.flush()
    np.save(folder / _PLACES, places)
    # Written last: a folder with this file is complete.
    (folder / _ATTRIBUTES).write_text(json.dumps([asdict(shown) for shown in attributes]))


def _draw(seed: int) -> tuple[Attributes, Drawing]:
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    attributes = sample_attributes(rng)
    return attributes, draw_postcard(attributes, rng)
