"""A threshold η that keeps a promise: of what it keeps, at least a given share (such as 95 %) is correct.

The precision that a threshold shows on a calibration split is an estimate, and the smallest threshold that looks good
enough is chosen because it looks good. So candidates are tested one threshold after the other, from high to low, each
against "its precision is below the promise" by the exact binomial test, whose dual is the Clopper-Pearson bound; the
walk stops at the first test that fails. In such a fixed sequence the chance that any test passes wrongly is that of
the first wrong one alone ("Learn then Test", arXiv 2110.01052).

A walk from the very top would be ended by one early mistake. So it starts where the reranker itself says more Yes than
No, and, in case that is too low, others start at half as many kept candidates, a quarter, and so on; they share the
risk equally. All this follows from the relevances alone: if it depended on the labels, the risk would be larger.

The promise is about candidates like those of the split, drawn independently, from a reranker whose precision does
not fall when the threshold rises. Candidates of one question are not quite independent: with many of them wrong
together the true confidence is a little lower than the one asked for.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc, betaincinv

from ragllava.errors import UsageError
from ragllava.evaluation.threshold import (
    NATURAL_THRESHOLD,
    BoolArray,
    FloatArray,
    Labels,
    Relevances,
    ThresholdFit,
    checked,
    fixed_threshold,
)

IntArray = npt.NDArray[np.int64]


def promised_precision_threshold(
    relevance: Relevances,
    is_correct: Labels,
    precision: float = 0.95,
    confidence: float = 0.95,
) -> ThresholdFit:
    """The smallest η for which precision ≥ `precision` can be promised with `confidence`.

    `relevance` (N,) in [0, 1] and `is_correct` (N,) describe candidates of a calibration split in any order. `reason`
    of the result names the promise and the bound. Raises UsageError when no threshold can keep the promise on so few
    or such candidates (a threshold of another kind would break it silently), ScoreRejected for a relevance that is no
    probability. To show 95 % with 95 % takes 59 kept candidates if all are correct, 181 if four are wrong.
    """
    for name, share in (("precision", precision), ("confidence", confidence)):
        if not 0 < share < 1:
            raise UsageError(f"the promised {name} must be between 0 and 1, not {share:g}")
    scores, correct = checked(relevance, is_correct)
    levels, kept, hits = _levels(scores, correct)
    starts, risk = _walks(int((scores >= NATURAL_THRESHOLD).sum()), precision, confidence)
    passed = [_walk(kept, hits, start, precision, risk) for start in starts]
    lowest = max((level for level in passed if level is not None), default=None)
    if lowest is None:
        counts = f"{int(correct.sum())} correct and {int((~correct).sum())} wrong candidates"
        raise UsageError(
            f"on {counts} no threshold shows a precision of {precision:g} with confidence {confidence:g}; "
            "calibrate on more questions or promise less"
        )
    bound = precision_lower_bound(int(hits[lowest]), int(kept[lowest]), 1 - risk)
    reason = (
        f"a precision of at least {precision:g} is promised with confidence {confidence:g}: "
        f"{hits[lowest]} of {kept[lowest]} kept candidates are correct, {bound:.3f} at the least"
    )
    return replace(fixed_threshold(float(levels[lowest]), scores, correct), method="promised", reason=reason)


def precision_lower_bound(hits: int, kept: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson bound: the precision under which ≥ `hits` of `kept` has probability 1 − confidence.

    The true precision is above it in a share ≥ `confidence` of all samples. 0 where nothing is hit.
    """
    if not 0 <= hits <= kept:
        raise ValueError(f"{hits} hits of {kept} kept candidates are impossible")
    return float(betaincinv(hits, kept - hits + 1, 1 - confidence)) if hits else 0.0


def _levels(scores: FloatArray, correct: BoolArray) -> tuple[FloatArray, IntArray, IntArray]:
    """The distinct relevances from high to low, with how many candidates each keeps and how many are correct."""
    levels, level_of, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    hits = np.bincount(level_of, weights=correct, minlength=len(levels)).astype(np.int64)
    return -levels, counts.cumsum(), hits.cumsum()


def _walks(likely: int, precision: float, confidence: float) -> tuple[list[int], float]:
    """How many candidates each walk keeps at its start, and the risk that each may take.

    `likely`, half of it, a quarter, … as long as a test with so few can pass at all, if everything is correct. What it
    takes grows with the number of walks, since these share the risk.
    """

    def fewest(walks: int) -> int:
        return math.ceil(math.log((1 - confidence) / walks) / math.log(precision))

    walks = 1
    while likely // 2**walks >= fewest(walks + 1):
        walks += 1
    return [max(likely // 2**walk, fewest(walks)) for walk in range(walks)], (1 - confidence) / walks


def _walk(kept: IntArray, hits: IntArray, start: int, precision: float, risk: float) -> int | None:
    """The last level that passes in a walk from the first level that keeps ≥ `start`; None if not even that does."""
    first = int(np.searchsorted(kept, start))
    chances = bdtrc(hits[first:] - 1, kept[first:], precision)  # of so many hits or more, if the precision were this
    failed = np.flatnonzero(chances > risk)
    passed = int(failed[0]) if len(failed) else len(chances)
    return first + passed - 1 if passed else None
