"""The F1 at η, softened around η: images close to it count in part (docs/method.md 7). Loads no torch.

The F1 changes only where an image crosses η, on few of the held-out questions. This score also tells by how much images
close to η moved, so it shows the same improvement on fewer questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

_WIDTH = 0.4  # of the usual distance from η: so close, an image counts in part
_SMALLEST_WIDTH = 0.01  # logits, where most images are at η itself
_CERTAIN = 1e-7  # a relevance of 0 or 1 is rounded, and has no logit

FloatArray = npt.NDArray[np.float64]
BestImages = Sequence[tuple[float, bool]]  # relevance, and whether it is relevant, of the best N of a question


def softened_f1(best: Sequence[BestImages], relevant: Sequence[int], threshold: float) -> tuple[float, ...]:
    """For each question, the F1 of its best images; `relevant` counts its relevant ones. 0 without any image.

    An image counts as kept by the share ½ + d / 2w, limited to [0, 1], where d is its distance from η in logits; w is
    0.4 of the median distance of all these images. So the score does not depend on the scale of the logits, and what is
    far from η on its side does not matter.
    """
    rows = np.repeat(np.arange(len(best)), [len(images) for images in best])
    images = np.asarray(list(chain.from_iterable(best)), dtype=np.float64).reshape(-1, 2)
    distances = _logits(images[:, 0]) - _logits(np.asarray(threshold))
    width = max(_WIDTH * float(np.median(np.abs(distances))), _SMALLEST_WIDTH) if len(images) else 1.0
    kept = np.clip(0.5 + distances / (2 * width), 0, 1)
    hits, sums = (np.bincount(rows, weights=part, minlength=len(best)) for part in (kept * images[:, 1], kept))
    scores = 2 * hits / np.maximum(sums + np.asarray(relevant, dtype=np.float64), 1e-9)
    return tuple(scores.tolist())


def _logits(relevances: FloatArray) -> FloatArray:
    values = np.clip(relevances, _CERTAIN, 1 - _CERTAIN)
    return np.asarray(np.log(values / (1 - values)))
