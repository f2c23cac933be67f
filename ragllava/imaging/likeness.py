"""Near-duplicates of pictures: the same picture in another format, size or quality, or the next one of a burst.

A picture is described by a thumbnail of 8 × 8 pixels. Two pictures are alike if their thumbnails correlate: neither
brightness nor tint nor contrast matters. Rotated, mirrored and cropped pictures are not recognised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE = 8
_LEAST_CORRELATION = 0.975
# A picture of one color correlates with nothing, so that what is left of its noise does not decide.
_LEAST_CONTRAST = 2.0  # of 255, the standard deviation
_ROWS_AT_ONCE = 1_000

FloatArray = npt.NDArray[np.float32]


def thumbnail(picture: Image.Image) -> bytes:
    """What likeness is judged by: 8 × 8 pixels in RGB, 192 bytes."""
    return picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX).tobytes()


class Likeness:
    """Which pictures of a collection are alike; one without a thumbnail is like itself alone."""

    def __init__(self, thumbnails: Mapping[str, bytes]) -> None:
        """Thumbnails by the name of the picture."""
        self._row_of = {name: row for row, name in enumerate(thumbnails)}
        self._vectors = _normalised(list(thumbnails.values()))

    def groups(self, names: Iterable[str]) -> dict[str, str]:
        """The group of each picture, named by the first of its names in their order; alike are also two pictures that
        are both alike to a third one."""
        parent = {name: name for name in sorted(set(names))}

        def root(name: str) -> str:
            while parent[name] != name:
                parent[name] = parent[parent[name]]
                name = parent[name]
            return name

        described = [name for name in parent if name in self._row_of]
        vectors = self._vectors[[self._row_of[name] for name in described]]
        for start in range(0, len(described), _ROWS_AT_ONCE):
            alike = vectors[start : start + _ROWS_AT_ONCE] @ vectors.T >= _LEAST_CORRELATION
            for row, column in zip(*map(np.ndarray.tolist, np.nonzero(alike)), strict=True):
                first, second = sorted((root(described[start + row]), root(described[column])))
                parent[second] = first
        return {name: root(name) for name in parent}

    def near(self, names: Iterable[str], others: Collection[str]) -> set[str]:
        """Those pictures that are among the others or alike to one of them."""
        wanted = set(names)
        near = wanted & set(others)
        described = [name for name in wanted - near if name in self._row_of]
        targets = self._vectors[[self._row_of[name] for name in others if name in self._row_of]]
        if not len(targets):
            return near
        for start in range(0, len(described), _ROWS_AT_ONCE):
            part = described[start : start + _ROWS_AT_ONCE]
            best = (self._vectors[[self._row_of[name] for name in part]] @ targets.T).max(axis=1)
            near.update(name for name, value in zip(part, best, strict=True) if value >= _LEAST_CORRELATION)
        return near


def _normalised(thumbnails: list[bytes]) -> FloatArray:
    """One row of length 1 for each thumbnail, 0 for those without contrast: products are correlations."""
    size = _SIDE * _SIDE * 3
    values = np.frombuffer(b"".join(thumbnails), dtype=np.uint8).reshape(-1, _SIDE * _SIDE, 3).astype(np.float32)
    pixels = (values - values.mean(axis=1, keepdims=True)).reshape(-1, size)
    lengths = np.linalg.norm(pixels, axis=1, keepdims=True)
    least = _LEAST_CONTRAST * size**0.5
    return np.where(lengths >= least, pixels / np.maximum(lengths, least), 0).astype(np.float32)
