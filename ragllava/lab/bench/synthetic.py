"""Vectors drawn to look like CLIP's, for archives larger than anybody wants to embed for a measurement.

What matters to a search is kept: all images lie in one narrow cone and all questions in another (any two images have
a cosine of about 0.5, an image and a question about 0.2), most of the variance is in few directions, and
images come in clusters of one subject. Uniform noise would be another problem: there every neighbour is as far as any
other, and no graph finds the right ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragllava.stores.archives.vectors import Vectors

_CONES_COSINE = 0.4  # between what all images share and what all questions share; each is as long as the content
_SPECTRUM = 0.6  # the n-th direction has n^-0.6 of the first one's spread
_IMAGES_PER_CLUSTER = 50
_WITHIN = 0.7  # spread of a cluster beside that of the centres
_QUESTION_NOISE = 0.5  # how far a question's content is from that of the image that it is about


@dataclass(frozen=True, slots=True)
class DrawnVectors:
    """images (N, D) and questions (Q, D), L2-normalised float32; each question is about one of the images."""

    images: Vectors
    questions: Vectors


def draw_vectors(images: int, questions: int, dim: int, seed: int) -> DrawnVectors:
    """The same for the same seed and sizes."""
    random = np.random.default_rng(seed)
    spread = np.arange(1, dim + 1, dtype=np.float32) ** -_SPECTRUM
    spread /= np.linalg.norm(spread)
    centres = _draw(random, max(1, images // _IMAGES_PER_CLUSTER), spread)
    content = centres[random.integers(len(centres), size=images)] + _WITHIN * _draw(random, images, spread)
    about = content[random.integers(images, size=questions)]
    asked = about + _QUESTION_NOISE * _draw(random, questions, spread)
    of_images, other = _unit(random.standard_normal((2, dim), dtype=np.float32))
    of_questions = _CONES_COSINE * of_images + (1 - _CONES_COSINE**2) ** 0.5 * other
    return DrawnVectors(_unit(_unit(content) + of_images), _unit(_unit(asked) + of_questions))


def _draw(random: np.random.Generator, count: int, spread: NDArray[np.float32]) -> NDArray[np.float32]:
    return random.standard_normal((count, len(spread)), dtype=np.float32) * spread


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found
