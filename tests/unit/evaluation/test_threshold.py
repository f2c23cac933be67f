"""The adaptive threshold on distributions whose crossing is known."""

from __future__ import annotations

import json
import math
from statistics import quantiles, stdev

import numpy as np
import numpy.typing as npt
import pytest

from ragllava.errors import ScoreRejected, UsageError
from ragllava.evaluation.threshold import (
    ThresholdFit,
    adaptive_threshold,
    fixed_threshold,
    steady_threshold,
)
from ragllava.json_records import from_json, to_json


def _two_normals(
    wrong: tuple[float, float], correct: tuple[float, float], count: int = 4000
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Relevances whose exponentials are normal with (mean, standard deviation), in a mixed order."""
    rng = np.random.default_rng(0)
    exponentials = np.concatenate([rng.normal(*wrong, count), rng.normal(*correct, count)])
    is_correct = np.arange(2 * count) >= count
    order = rng.permutation(2 * count)
    return np.log(np.clip(exponentials, 1, math.e))[order], is_correct[order]


def _normal_crossing(wrong: tuple[float, float], correct: tuple[float, float]) -> float:
    """Where the two normal densities are equal between the means, from the quadratic equation of their logarithms."""
    (m, s), (n, t) = wrong, correct
    roots = np.roots(
        [
            1 / s**2 - 1 / t**2,
            2 * (n / t**2 - m / s**2),
            m**2 / s**2 - n**2 / t**2 + 2 * math.log(s / t),
        ]
    )
    (between,) = [root.real for root in roots if m < root.real < n]
    return float(between)


@pytest.mark.parametrize(
    ("wrong", "correct"),
    [((1.5, 0.1), (2.1, 0.2)), ((1.5, 0.2), (2.0, 0.1)), ((1.6, 0.15), (2.1, 0.151))],
)
def test_crossing_of_two_normals(wrong: tuple[float, float], correct: tuple[float, float]) -> None:
    fit = adaptive_threshold(*_two_normals(wrong, correct))
    assert fit.method == "adaptive"
    assert math.exp(fit.value) == pytest.approx(_normal_crossing(wrong, correct), abs=0.03)
    assert (fit.correct_count, fit.wrong_count) == (4000, 4000)
    assert f"{fit.value:.3f}" in fit.reason


def test_crossing_does_not_depend_on_how_many_wrong_ones_there_are() -> None:
    relevance, is_correct = _two_normals((1.5, 0.15), (2.1, 0.15))
    few_correct = ~is_correct | (np.cumsum(is_correct) <= 400)
    full = adaptive_threshold(relevance, is_correct)
    lopsided = adaptive_threshold(relevance[few_correct], is_correct[few_correct])
    assert lopsided.correct_count == 400
    assert math.exp(lopsided.value) == pytest.approx(math.exp(full.value), abs=0.03)


def test_relevances_piled_up_at_both_ends_part_in_the_middle() -> None:
    """All kernels have the narrowest width; in the middle both densities are far below the smallest float."""
    fit = adaptive_threshold([0.0] * 1000 + [0.9] * 50, [False] * 1000 + [True] * 50)
    assert fit.method == "adaptive"
    assert math.exp(fit.value) == pytest.approx((1 + math.exp(0.9)) / 2, abs=1e-6)
    assert (fit.precision, fit.recall) == (1.0, 1.0)


def test_of_several_crossings_the_one_with_fewest_errors() -> None:
    wrong = [0.05] * 80 + [0.45] * 20
    correct = [0.95] * 90 + [0.25] * 10
    fit = adaptive_threshold(wrong + correct, [False] * 100 + [True] * 100)
    # Between 0.05 and 0.25 a fifth of the wrong ones stays; between 0.45 and 0.95 a tenth of the correct ones goes.
    assert 0.45 < fit.value < 0.95
    assert (fit.precision, fit.recall) == (1.0, 0.9)


def test_order_of_candidates_does_not_matter() -> None:
    relevance, is_correct = _two_normals((1.5, 0.2), (2.1, 0.2), count=200)
    fit = adaptive_threshold(relevance, is_correct)
    assert adaptive_threshold(relevance[::-1], is_correct[::-1]).value == pytest.approx(fit.value, abs=1e-9)


def test_curve_against_a_plain_kernel_density() -> None:
    rng = np.random.default_rng(1)
    relevance = np.concatenate([rng.beta(0.3, 2, 150), rng.beta(4, 0.8, 100)])  # with long tails, as relevances have
    is_correct = np.arange(250) >= 150
    curve = adaptive_threshold(relevance, is_correct).curve
    assert curve is not None
    assert len(curve.relevance) == len(curve.correct) == len(curve.wrong) == 101
    assert (curve.relevance[0], curve.relevance[-1]) == (0.0, 1.0)
    for line, sample in ((curve.correct, relevance[is_correct]), (curve.wrong, relevance[~is_correct])):
        exponentials = [math.exp(value) for value in sample]
        for index in (20, 50, 70):
            density = _plain_density(exponentials, math.exp(curve.relevance[index]))
            assert line[index] == pytest.approx(density, rel=0.01, abs=1e-5)


def _plain_density(sample: list[float], point: float) -> float:
    low, _, high = quantiles(sample, n=4, method="inclusive")
    width: float = max(0.9 * min(stdev(sample), (high - low) / 1.34) * math.pow(len(sample), -0.2), 0.02)
    kernels = [math.exp(-(((point - value) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi)) for value in sample]
    return sum(kernels) / len(sample)


@pytest.mark.parametrize(("wrong", "correct"), [(29, 500), (500, 29), (0, 0)])
def test_too_few_candidates(wrong: int, correct: int) -> None:
    fit = adaptive_threshold([0.1] * wrong + [0.9] * correct, [False] * wrong + [True] * correct)
    assert (fit.value, fit.method, fit.curve) == (0.5, "natural", None)
    assert fit.reason == f"{correct} correct and {wrong} wrong candidates are too few: 30 of each are needed"


def test_thirty_candidates_of_each_are_enough() -> None:
    assert adaptive_threshold([0.1] * 30 + [0.9] * 30, [False] * 30 + [True] * 30).method == "adaptive"


def test_inverted_order() -> None:
    relevance, is_correct = _two_normals((1.5, 0.1), (2.1, 0.1), count=100)
    fit = adaptive_threshold(relevance, ~is_correct)
    assert (fit.value, fit.method) == (0.5, "natural")
    assert "inverted" in fit.reason
    assert fit.curve is not None


def test_a_reranker_that_tells_nothing_apart() -> None:
    """Both densities are the same line, which crosses nothing; what a rounding error would find is no threshold."""
    relevance = np.linspace(0, 1, 100)
    fit = adaptive_threshold(np.tile(relevance, 2), np.arange(200) < 100)
    assert (fit.value, fit.method, fit.precision) == (0.5, "natural", 0.5)
    assert "inverted" in fit.reason


def test_no_crossing_between_the_means() -> None:
    """The wrong ones lie at both ends, so between the two means the correct ones are everywhere more likely."""
    relevance = [0.5] * 100 + [0.0] * 63 + [1.0] * 37
    fit = adaptive_threshold(relevance, [True] * 100 + [False] * 100)
    assert (fit.value, fit.method) == (0.5, "natural")
    assert "do not cross" in fit.reason


def test_precision_and_recall_worked_by_hand() -> None:
    relevance, is_correct = [0.9, 0.6, 0.5, 0.1], [True, False, True, True]
    natural = fixed_threshold(0.5, relevance, is_correct)
    assert (natural.value, natural.precision, natural.recall) == (0.5, 2 / 3, 2 / 3)  # 0.5 itself is kept
    everything = fixed_threshold(0.0, relevance, is_correct)
    assert (everything.method, everything.precision, everything.recall) == ("fixed", 0.75, 1.0)
    nothing = fixed_threshold(0.95, relevance, is_correct)
    assert (nothing.precision, nothing.recall) == (0.0, 0.0)


def test_steady_threshold_is_natural_where_no_candidate_speaks_against_it() -> None:
    relevance, is_correct = [0.0] * 1000 + [0.9] * 50, [False] * 1000 + [True] * 50
    fit = steady_threshold(relevance, is_correct)
    assert fit.value == 0.5 != adaptive_threshold(relevance, is_correct).value
    assert (fit.method, fit.precision, fit.recall) == ("adaptive", 1.0, 1.0)
    assert "cross at relevance 0.548, and 0.500, nearer to 0.5, makes no more mistakes than that" in fit.reason


def test_steady_threshold_does_not_say_one_number_twice() -> None:
    relevance, is_correct = _two_normals((1.6, 0.15), (2.2, 0.15))
    fit = steady_threshold(relevance, is_correct)
    assert 0 < adaptive_threshold(relevance, is_correct).value - fit.value < 5e-4
    assert fit.reason.endswith(f"cross at relevance {fit.value:.3f}")


@pytest.mark.parametrize(
    ("wrong", "correct", "expected"),
    [
        ([0.0] * 1000 + [0.6], [0.95] * 50, math.nextafter(0.6, 1)),  # from above, until the wrong one would be kept
        ([0.0] * 1000, [0.3] * 3 + [0.6] * 47, 0.3),  # from below, until the correct ones would be dropped
        ([0.0] * 1000 + [0.7], [0.6, 0.65] + [0.99] * 50, 0.5),  # keeps one wrong one, but two correct ones more
    ],
)
def test_steady_threshold_goes_as_far_as_mistakes_do_not_become_more(
    wrong: list[float], correct: list[float], expected: float
) -> None:
    relevance, is_correct = wrong + correct, [False] * len(wrong) + [True] * len(correct)
    crossing = adaptive_threshold(relevance, is_correct).value
    fit = steady_threshold(relevance, is_correct)
    assert fit.value == expected
    assert abs(crossing - 0.5) > abs(expected - 0.5)


def test_steady_threshold_stays_where_the_candidates_put_it() -> None:
    relevance, is_correct = _two_normals((1.2, 0.05), (1.45, 0.05))
    fit = steady_threshold(relevance, is_correct)
    assert fit.value < 0.35  # 0.5 would drop nearly all correct ones
    assert steady_threshold([0.1] * 3, [True, False, False]).method == "natural"


def test_json_round_trip() -> None:
    for fit in (adaptive_threshold(*_two_normals((1.5, 0.1), (2.1, 0.1), 50)), fixed_threshold(0.5, [0.2], [True])):
        assert from_json(ThresholdFit, json.loads(json.dumps(to_json(fit)))) == fit


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1, math.inf])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ScoreRejected, match="candidate 1 has relevance"):
        adaptive_threshold([0.5, bad], [True, False])


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="one label per relevance"):
        adaptive_threshold([0.5, 0.5], [True])
    with pytest.raises(UsageError, match="from 0 to 1"):
        fixed_threshold(1.5, [0.5], [True])
