"""Near-duplicates of pictures: the same picture in another format, size or quality, or the next one of a burst.

A picture is described by a thumbnail of 16 × 16 pixels. Two pictures are alike if their thumbnails correlate, or the
middle of one with a part of the other: neither brightness nor tint nor contrast matters, nor that the camera moved by a
tenth of the picture. Noise decides how pictures with next to no contrast correlate, so they are also alike if their
colours are nearly the same: all blank pages are, and the faintest drawings on white. Rotated and mirrored pictures, and
narrow sections of a picture, are not recognised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE = 16
_MIDDLE = 12  # of a side, what is compared
_SHIFTS = np.linspace(-1.5, 1.5, 7)  # pixels of the thumbnail, in both directions
_BLUR = np.asarray((1, 4, 6, 4, 1), dtype=np.float32) / 16  # without it, half a pixel of motion is another picture
_LEAST_CORRELATION = 0.985
_LEAST_OF_ALL = 0.975  # of the thumbnails as they are, at half the size
_LEAST_AT_FIRST = 0.6  # of the blurred thumbnails as they are: those below are not compared any further
# A picture of one color correlates with nothing, so that what is left of its noise does not decide.
_LEAST_CONTRAST = 2.0  # of 255, the standard deviation
_FAINT_CONTRAST = 3.0  # up to it, a copy of a picture without contrast may have some
_LARGEST_DIFFERENCE = 2.0  # of 255, root mean square, of thumbnails that are the same but for noise
_LARGEST_IF_FAINT = 4.0  # of pictures without contrast: a poor JPEG may be darker by 3
_ROWS_AT_ONCE = 1_000

FloatArray = npt.NDArray[np.float32]


def thumbnail(picture: Image.Image) -> bytes:
    """What likeness is judged by: 16 × 16 pixels in RGB, 768 bytes."""
    return picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX).tobytes()


def is_thumbnail(data: bytes) -> bool:
    """Whether these bytes are what `thumbnail` returns now; an earlier version made smaller ones."""
    return len(data) == _SIDE * _SIDE * 3


class Likeness:
    """Which pictures of a collection are alike; one without a thumbnail is like itself alone."""

    def __init__(self, thumbnails: Mapping[str, bytes]) -> None:
        """Thumbnails by the name of the picture."""
        self._row_of = {name: row for row, name in enumerate(thumbnails)}
        pixels = np.frombuffer(b"".join(thumbnails.values()), dtype=np.uint8).astype(np.float32)
        pictures = pixels.reshape(-1, _SIDE, _SIDE, 3)
        self._colours = _halved(pictures)
        self._contrasts = self._colours.std(axis=1).max(axis=1, initial=0)
        self._plain = _normalised(self._colours)
        self._pixels = _blurred(pictures).reshape(-1, _SIDE * _SIDE, 3)
        self._coarse = _normalised(_halved(self._pixels))
        edge = (_SIDE - _MIDDLE) // 2
        inside = self._pixels.reshape(-1, _SIDE, _SIDE, 3)[:, edge : edge + _MIDDLE, edge : edge + _MIDDLE]
        self._middles = _normalised(inside.reshape(-1, _MIDDLE * _MIDDLE, 3))

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
        rows = [self._row_of[name] for name in described]
        for number, alike in self._alike(rows, rows):
            for other in alike.tolist():
                first, second = sorted((root(described[number]), root(described[other])))
                parent[second] = first
        return {name: root(name) for name in parent}

    def near(self, names: Iterable[str], others: Collection[str]) -> set[str]:
        """Those pictures that are among the others or alike to one of them."""
        wanted = set(names)
        near = wanted & set(others)
        described = [name for name in sorted(wanted - near) if name in self._row_of]
        targets = [self._row_of[name] for name in others if name in self._row_of]
        for _, alike in self._alike(targets, [self._row_of[name] for name in described]):
            near.update(described[number] for number in alike.tolist())
        return near

    def _alike(self, rows: Sequence[int], others: Sequence[int]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """For each of the rows, by number: which of the others, by number, it is alike to."""
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            same = self._plain[some] @ self._plain[others].T >= _LEAST_OF_ALL
            same |= self._have_same_colours(some, others)
            likely = self._coarse[some] @ self._coarse[others].T >= _LEAST_AT_FIRST
            for number, (are_same, are_likely) in enumerate(zip(same, likely, strict=True), start=start):
                alike = are_same.copy()
                [open_ones] = np.nonzero(are_likely & ~are_same)  # itself is the same: most have nothing to compare
                if len(open_ones):
                    middles = self._middles[np.asarray(others)[open_ones]]
                    alike[open_ones] = (self._parts(rows[number]) @ middles.T).max(axis=0) >= _LEAST_CORRELATION
                if alike.any():
                    yield number, np.flatnonzero(alike)

    def _have_same_colours(self, rows: Sequence[int], others: Sequence[int]) -> npt.NDArray[np.bool_]:
        """(R, O) which of the rows' pictures have the colours of which others, place by place."""
        size = self._colours[0].size
        own, theirs = (self._colours[chosen].reshape(len(chosen), size) for chosen in (rows, others))
        squares = (np.square(own).sum(axis=1)[:, None] + np.square(theirs).sum(axis=1) - 2 * (own @ theirs.T)) / size
        first, second = self._contrasts[rows][:, None], self._contrasts[others]
        lacking = (np.minimum(first, second) < _LEAST_CONTRAST) & (np.maximum(first, second) < _FAINT_CONTRAST)
        return np.asarray(squares <= np.where(lacking, _LARGEST_IF_FAINT, _LARGEST_DIFFERENCE) ** 2)

    def _parts(self, row: int) -> FloatArray:
        """The parts of a thumbnail that a middle is compared with, normalised, one in each row."""
        parts = np.tensordot(_interpolation(), self._pixels[row], axes=1)
        return _normalised(parts)


@cache
def _interpolation() -> FloatArray:
    """(S, M, P) the weights of a thumbnail's P pixels in the M pixels of the middle at each of S shifts, bilinear."""
    places = np.arange(_MIDDLE) + (_SIDE - _MIDDLE) / 2 + _SHIFTS[:, None]
    along = np.maximum(0, 1 - np.abs(places[:, :, None] - np.arange(_SIDE)))  # (shift, middle, side)
    weights = np.einsum("aik,bjl->abijkl", along, along)
    shape = (len(_SHIFTS) ** 2, _MIDDLE * _MIDDLE, _SIDE * _SIDE)
    return np.asarray(weights.reshape(shape), dtype=np.float32)


def _halved(pictures: FloatArray) -> FloatArray:
    """(N, P, 3) pixels of thumbnails at half the size."""
    blocks = pictures.reshape(-1, _SIDE // 2, 2, _SIDE // 2, 2, 3)
    return np.asarray(blocks.mean(axis=(2, 4)).reshape(-1, (_SIDE // 2) ** 2, 3), np.float32)


def _blurred(pictures: FloatArray) -> FloatArray:
    """(N, H, W, 3) pixels, blurred in both directions; the outermost pixels go on outside."""
    reach = len(_BLUR) // 2
    for axis in (1, 2):
        padded = np.pad(pictures, [(reach, reach) if axis == own else (0, 0) for own in range(4)], mode="edge")
        pictures = np.asarray(np.lib.stride_tricks.sliding_window_view(padded, len(_BLUR), axis) @ _BLUR, np.float32)
    return pictures


def _normalised(pictures: FloatArray) -> FloatArray:
    """(N, P, 3) pixels as one row of length 1 for each picture, 0 for those without contrast: products are
    correlations. Each channel is centred."""
    size = pictures.shape[1] * 3
    pixels = (pictures - pictures.mean(axis=1, keepdims=True)).reshape(-1, size)
    lengths = np.linalg.norm(pixels, axis=1, keepdims=True)
    least = _LEAST_CONTRAST * size**0.5
    return np.where(lengths >= least, pixels / np.maximum(lengths, least), 0).astype(np.float32)
