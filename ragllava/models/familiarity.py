"""Whether pictures are of the kind that the mini models know: drawn postcards.

The mini retriever puts postcards into one region of its space. A Gaussian fitted to it gives the distance of a vector:
the squared Mahalanobis distance by dimension, about 0.5 for a postcard (docs/models.md). Of other retrievers nothing is
known, and nothing is said. Loads no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragllava.models.profiles import MINI_FOLDER

FloatArray = NDArray[np.float32]

FAMILIAR_FILE = "postcards.npz"
# No postcard of the seeds 11 to 13 is farther, a quarter of those in styles never seen, and 95 in 100 clip arts.
FAR = 1.0
FAR_SHARE = 0.5  # of the pictures of an archive
_RIDGE = 1e-4  # added to each variance; the smallest of the postcards' are below it


@dataclass(frozen=True, slots=True)
class Familiar:
    """The pictures that a retriever knows: `mean` (D,) and `whitening` (D, D), float32, of vectors of length 1."""

    retriever: str
    mean: FloatArray
    whitening: FloatArray

    def distances(self, vectors: FloatArray) -> FloatArray:
        """The distance of each row of (N, D): (N,)."""
        whitened = (vectors - self.mean) @ self.whitening
        distances: FloatArray = np.square(whitened).mean(axis=1, dtype=np.float32)
        return distances

    def save(self, path: Path) -> None:
        """Write it as a file that `read_familiar` reads."""
        np.savez_compressed(path, retriever=np.array(self.retriever), mean=self.mean, whitening=self.whitening)


@dataclass(frozen=True, slots=True)
class Familiarity:
    """Of so many pictures of an archive that were looked at, how many are unlike those that the models know."""

    looked_at: int
    unlike: int

    @property
    def is_strange(self) -> bool:
        """Whether most of them are."""
        return self.unlike > FAR_SHARE * self.looked_at


def fit_familiar(retriever: str, vectors: FloatArray) -> Familiar:
    """The region of these vectors (N, D) of pictures that the models know, N some ten times D."""
    covariance = np.cov(vectors.T) + _RIDGE * np.eye(vectors.shape[1])
    whitening = np.linalg.cholesky(np.linalg.inv(covariance))
    return Familiar(retriever, vectors.mean(axis=0), whitening.astype(np.float32))


def read_familiar(path: Path) -> Familiar:
    """What `Familiar.save` wrote. Raises OSError."""
    with np.load(path, allow_pickle=False) as stored:
        return Familiar(str(stored["retriever"]), stored["mean"], stored["whitening"])


@functools.cache
def mini_familiar() -> Familiar:
    """What the shipped mini retriever knows."""
    return read_familiar(MINI_FOLDER / FAMILIAR_FILE)


def look_at(retriever: str, sample: Callable[[], FloatArray]) -> Familiarity | None:
    """How familiar the pictures of a sample are, whose vectors (N, D) this version of a retriever made.

    None for others than mini's, whose sample is not taken, and for an empty one.
    """
    known = mini_familiar()
    vectors = sample() if retriever == known.retriever else None
    if vectors is None or not len(vectors):
        return None
    return Familiarity(len(vectors), int((known.distances(vectors) > FAR).sum()))
