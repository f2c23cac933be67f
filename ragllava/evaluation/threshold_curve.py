"""What each threshold would do to labelled questions: precision, recall, and how many would have no evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ragllava.evaluation.threshold import Labels, Relevances, checked

STEPS = 200  # between η = 0 and η = 1


@dataclass(frozen=True, slots=True)
class ThresholdPoint:
    """Of one η: the share of kept candidates that are correct (None: none is kept), the share of correct candidates
    that are kept (None: there is none), and the share of questions that keep no candidate."""

    threshold: float
    precision: float | None
    recall: float | None
    no_evidence: float | None


def threshold_points(
    relevance: Relevances, is_correct: Labels, best: Relevances, steps: int = STEPS
) -> list[ThresholdPoint]:
    """The points from η = 0 to 1. `relevance` and `is_correct` (N,) are labelled candidates; `best` (Q,) is the highest
    relevance among all candidates of each question. A candidate is kept if its relevance is at least η.

    ScoreRejected: a relevance that is not a probability.
    """
    scores, correct = checked(relevance, is_correct)
    strongest, _ = checked(best, [True] * len(best))
    thresholds = np.round(np.linspace(0.0, 1.0, steps + 1), 6)
    right, everything, tops = np.sort(scores[correct]), np.sort(scores), np.sort(strongest)
    kept = len(everything) - np.searchsorted(everything, thresholds)
    hits = len(right) - np.searchsorted(right, thresholds)
    without = np.searchsorted(tops, thresholds)
    return [
        ThresholdPoint(
            threshold=float(thresholds[number]),
            precision=_share(hits[number], kept[number]),
            recall=_share(hits[number], len(right)),
            no_evidence=_share(without[number], len(tops)),
        )
        for number in range(steps + 1)
    ]


def _share(part: float, whole: float) -> float | None:
    return round(float(part) / float(whole), 4) if whole else None


def nearest_point(points: Sequence[ThresholdPoint], threshold: float) -> ThresholdPoint:
    """The point whose η is nearest."""
    return min(points, key=lambda point: abs(point.threshold - threshold))
