"""Vectors drawn to look like CLIP's, for archives that would take too long to embed for a measurement.

What matters to a search is kept: all images are in one narrow cone and all questions in another (two images have a
cosine of about 0.5, an image and a question about 0.2), most of the variance is in few directions, and images form
clusters. Uniform noise would be a different problem: all neighbors are equally far, and no graph finds the right ones.
"""

from __future__ import annotations

import numpy as np

from ragllava.stores.archives.vectors import Vectors

_CONES_COSINE = 0.4  # between the common parts of images and of questions; each is as long as the content
_SPECTRUM = 0.6  # the n-th direction has n^-0.6 of the spread of the first
_IMAGES_PER_CLUSTER = 50
_WITHIN = 0.7  # spread of a cluster relative to that of the centers
_QUESTION_NOISE = 0.5  # distance of a question's content from that of its image


def draw_vectors(images: int, questions: int, dim: int, seed: int) -> tuple[Vectors, Vectors]:
    """Vectors of images (N, D) and questions (Q, D), L2-normalised float32; each question is about one image.

    The same seed and sizes give the same vectors.
    """
    random = np.random.default_rng(seed)
    spread = np.arange(1, dim + 1, dtype=np.float32) ** -_SPECTRUM
    spread /= np.linalg.norm(spread)

    def draw(count: int) -> Vectors:
        return random.standard_normal((count, dim), dtype=np.float32) * spread

    centers = draw(max(1, images // _IMAGES_PER_CLUSTER))
    content = centers[random.integers(len(centers), size=images)] + _WITHIN * draw(images)
    subjects = content[random.integers(images, size=questions)]
    asked = subjects + _QUESTION_NOISE * draw(questions)
    of_images, across = normalised(random.standard_normal((2, dim), dtype=np.float32))
    of_questions = _CONES_COSINE * of_images + (1 - _CONES_COSINE**2) ** 0.5 * across
    return normalised(normalised(content) + of_images), normalised(normalised(asked) + of_questions)


def mix_vectors(real: Vectors, number: int, seed: int) -> Vectors:
    """`number` vectors (N, D) of length 1: each a real one plus half of the difference of two others.

    So their spread equals that of the real ones, in every direction.
    """
    random = np.random.default_rng(seed)
    base, plus, minus = (real[random.integers(len(real), size=number)] for _ in range(3))
    return normalised(base + 0.5 * (plus - minus))


def normalised(vectors: Vectors) -> Vectors:
    """The vectors (N, D) divided by their lengths."""
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
