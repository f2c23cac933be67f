"""The curve of thresholds against a slow, obvious computation; the agreement of two people against known values."""

from __future__ import annotations

import random

import pytest

from ragllava.errors import ScoreRejected
from ragllava.evaluation.agreement import Agreement, agreement
from ragllava.evaluation.threshold_curve import ThresholdPoint, nearest_point, threshold_points


def test_each_point_is_what_counting_gives() -> None:
    rng = random.Random(3)
    scores = [round(rng.random(), 2) for _ in range(200)]  # many equal ones, and on the points themselves
    correct = [rng.random() < score for score in scores]
    best = [rng.random() for _ in range(60)]
    points = threshold_points(scores, correct, best, steps=50)
    assert [point.threshold for point in points] == [round(step / 50, 6) for step in range(51)]
    for point in points:
        kept = [right for score, right in zip(scores, correct, strict=True) if score >= point.threshold]
        assert point.precision == (round(sum(kept) / len(kept), 4) if kept else None)
        assert point.recall == round(sum(kept) / sum(correct), 4)
        assert point.no_evidence == round(sum(top < point.threshold for top in best) / 60, 4)
    assert nearest_point(points, 0.313).threshold == 0.32


def test_nothing_labelled_is_no_figure_rather_than_zero() -> None:
    assert threshold_points([], [], [], steps=1) == [
        ThresholdPoint(0.0, None, None, None),
        ThresholdPoint(1.0, None, None, None),
    ]
    with pytest.raises(ScoreRejected):
        threshold_points([1.5], [True], [0.5])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 0, 0, 0), Agreement(0, None, None)),
        ((4, 0, 0, 0), Agreement(4, 1.0, None)),
        ((1, 0, 0, 1), Agreement(2, 1.0, 1.0)),
        ((0, 1, 1, 0), Agreement(2, 0.0, -1.0)),
        ((1, 1, 1, 1), Agreement(4, 0.5, 0.0)),
    ],
)
def test_agreement(counts: tuple[int, int, int, int], expected: Agreement) -> None:
    assert agreement(*counts) == expected
