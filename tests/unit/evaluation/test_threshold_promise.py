"""The promised threshold: bounds against sums by hand, and the promise itself over many drawn calibration splits."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragllava.errors import ScoreRejected, UsageError
from ragllava.evaluation.threshold_promise import (
    clustered_lower_bound,
    precision_lower_bound,
    promised_precision_threshold,
)


def binomial_tail(hits: int, trials: int, probability: float) -> float:
    """The probability of `hits` or more, term by term."""
    return sum(
        math.comb(trials, count) * probability**count * (1 - probability) ** (trials - count)
        for count in range(hits, trials + 1)
    )


@given(st.integers(1, 60), st.data(), st.floats(0.01, 0.99))
def test_lower_bound_against_the_plain_sum(kept: int, data: st.DataObject, confidence: float) -> None:
    hits = data.draw(st.integers(1, kept))
    bound = precision_lower_bound(hits, kept, confidence)
    assert binomial_tail(hits, kept, bound) == pytest.approx(1 - confidence, rel=1e-9)


def test_lower_bound_of_many_candidates() -> None:
    """Far beyond what floats hold term by term; by symmetry the upper half has probability 0.5."""
    assert precision_lower_bound(10_001, 20_001, 0.5) == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "kept", "confidence", "bound"),
    [
        (59, 59, 0.95, 0.05 ** (1 / 59)),  # all correct: the bound is the root of the risk
        (10, 10, 0.975, 0.025 ** (1 / 10)),
        (1, 8, 0.95, 1 - 0.95 ** (1 / 8)),  # one correct: all others wrong in all but the risk
        (9, 10, 0.95, 0.6058),  # published tables of Clopper and Pearson
        (8, 10, 0.975, 0.4439),
        (0, 10, 0.95, 0.0),
        (0, 0, 0.95, 0.0),
    ],
)
def test_lower_bound(hits: int, kept: int, confidence: float, bound: float) -> None:
    assert precision_lower_bound(hits, kept, confidence) == pytest.approx(bound, abs=5e-5)


def test_lower_bound_of_the_impossible() -> None:
    with pytest.raises(ValueError, match="5 hits of 4 kept candidates"):
        precision_lower_bound(5, 4)


def test_the_fewest_candidates_that_show_95_percent() -> None:
    relevance = np.linspace(0.9, 0.5, 59)
    fit = promised_precision_threshold(relevance, [True] * 59)
    assert fit.value == 0.5
    assert (
        "at least 0.95 is promised with confidence 0.95: 59 of 59 kept candidates of 59 questions are correct, 0.950"
        in fit.reason
    )
    assert (fit.precision, fit.recall, fit.correct_count, fit.wrong_count) == (1.0, 1.0, 59, 0)
    with pytest.raises(UsageError, match=r"on 58 correct and 0 wrong candidates of 58 questions no threshold"):
        promised_precision_threshold(relevance[:58], [True] * 58)


def test_smallest_threshold_by_hand() -> None:
    """100 correct candidates above 20 wrong ones; so few that there is one walk, with all the risk of 0.05.

    If the precision were 0.95, 100 or more of 101 would be correct with probability 101 · 0.05 · 0.95¹⁰⁰ + 0.95¹⁰¹ =
    0.036, but of 102 with at least 5151 · 0.05² · 0.95¹⁰⁰ = 0.076.
    """
    relevance = np.linspace(0.99, 0.01, 120)
    fit = promised_precision_threshold(relevance, np.arange(120) < 100)
    assert fit.value == pytest.approx(relevance[100])
    assert (fit.precision, fit.recall) == (100 / 101, 1.0)


def test_an_early_mistake_does_not_end_everything() -> None:
    """The best candidates of all are wrong; the walk starts where enough are kept to bear it."""
    relevance = np.linspace(1, 0, 1000)
    is_correct = (np.arange(1000) >= 3) & (np.arange(1000) < 600)
    fit = promised_precision_threshold(relevance, is_correct)
    assert fit.recall == 1.0
    assert fit.precision >= 0.96


def test_a_reranker_that_says_yes_too_often() -> None:
    """400 have more Yes than No, but only the first 150 deserve it: a walk that starts higher up finds them."""
    relevance = np.linspace(1, 0.5, 400)
    is_correct = (np.arange(400) < 150) | (np.arange(400) % 2 == 0)
    fit = promised_precision_threshold(relevance, is_correct)
    assert 0.95 <= fit.precision < 1
    assert relevance[160] <= fit.value <= relevance[149]


def test_a_walk_does_not_jump_over_a_failure() -> None:
    """Six wrong ones right behind 80 correct ones; that 400 more are correct behind them must not be used.

    Choosing the best looking of all thresholds is what would break the promise.
    """
    relevance = np.concatenate([np.linspace(0.9, 0.5, 80), np.linspace(0.4, 0.1, 406)])
    is_correct = (np.arange(486) < 80) | (np.arange(486) >= 86)
    assert precision_lower_bound(480, 486) > 0.97
    fit = promised_precision_threshold(relevance, is_correct)
    assert (fit.value, fit.precision) == (0.5, 1.0)


@pytest.mark.parametrize(("mistakes", "kept"), [(3, True), (4, False)])
def test_walks_share_the_risk(mistakes: int, kept: bool) -> None:
    """200 candidates have more Yes than No, so walks start at 200 and at 100, with a risk of 0.025 each.

    At a precision of 0.95, up to 4 of 200 are wrong with probability 0.0264, up to 3 with 0.0090.
    """
    relevance = np.linspace(1, 0.5, 200)
    is_correct = np.arange(200) >= mistakes
    if kept:
        assert promised_precision_threshold(relevance, is_correct).value == 0.5
    else:
        with pytest.raises(UsageError, match="on 196 correct and 4 wrong candidates of 200 questions no threshold"):
            promised_precision_threshold(relevance, is_correct)


def test_equal_relevances_stay_together() -> None:
    """Of the candidates at 0.4 half is wrong; a threshold cannot keep the correct half alone."""
    relevance = np.repeat([0.9, 0.4], [80, 20])
    is_correct = np.repeat([True, True, False], [80, 10, 10])
    fit = promised_precision_threshold(relevance, is_correct)
    assert (fit.value, fit.recall) == (0.9, 80 / 90)


def test_order_of_candidates_does_not_matter() -> None:
    relevance, is_correct = _draw(np.random.default_rng(3), 1500)
    turned = promised_precision_threshold(relevance[::-1], is_correct[::-1])
    assert turned == promised_precision_threshold(relevance, is_correct)


def test_more_is_promised_from_higher_up() -> None:
    relevance, is_correct = _draw(np.random.default_rng(4), 1500)
    values = [promised_precision_threshold(relevance, is_correct, share).value for share in (0.7, 0.8, 0.9, 0.95)]
    assert values == sorted(values)
    assert len(set(values)) == 4


def test_more_confidence_asks_for_more() -> None:
    relevance, is_correct = _draw(np.random.default_rng(4), 1500)
    fits = [promised_precision_threshold(relevance, is_correct, confidence=share) for share in (0.5, 0.9, 0.999)]
    assert fits[0].value < fits[1].value < fits[2].value
    assert "with confidence 0.999" in fits[2].reason
    with pytest.raises(UsageError, match="the promised confidence must be between 0 and 1, not 1"):
        promised_precision_threshold(relevance, is_correct, confidence=1.0)


@pytest.mark.parametrize(
    ("relevance", "precision", "error", "message"),
    [
        ([0.5], 1.0, UsageError, "the promised precision must be between 0 and 1, not 1"),
        ([1.5], 0.9, ScoreRejected, "relevance 1.5"),
        ([math.nan], 0.9, ScoreRejected, "relevance nan"),
        ([], 0.9, UsageError, "on 0 correct and 0 wrong candidates of 0 questions no threshold"),
    ],
)
def test_what_cannot_be_promised(
    relevance: list[float], precision: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        promised_precision_threshold(relevance, [True] * len(relevance), precision)


def test_the_promise_holds() -> None:
    """500 calibration splits; the true precision of each threshold is known, and rarely below the promise.

    Relevance is uniform in [0, 1] and right with probability 1 − (1 − relevance)⁴, so a threshold t keeps candidates
    of precision 1 − (1 − t)⁴ / 5, which is 0.95 at t = 0.293. Of 500 at most 25 may break the promise; and it must not
    be kept by never promising anything, or far above.
    """
    rng = np.random.default_rng(0)
    fits = []
    for _ in range(500):
        try:
            fits.append(promised_precision_threshold(*_draw(rng, 400)))
        except UsageError:
            continue
    broken = sum(1 - (1 - fit.value) ** 4 / 5 < 0.95 for fit in fits)
    assert broken <= 25
    assert len(fits) >= 400
    assert 0.293 <= np.median([fit.value for fit in fits]) <= 0.55


QUESTIONS, CANDIDATES = 100, 5


def _misread(rng: np.random.Generator, questions: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Five candidates for each question. One question in twenty is misread: all of its candidates look half right."""
    misread = np.repeat(rng.random(questions) < 0.05, CANDIDATES)
    relevance = np.where(misread, rng.random(len(misread)) * 0.4 + 0.3, rng.random(len(misread)))
    return relevance, ~misread & (rng.random(len(misread)) < 1 - (1 - relevance) ** 8)


def _lowest_true(best: int) -> float:
    """The lowest threshold from which on the precision of the `best` of each question is 0.9, from many questions."""
    relevance, correct = _misread(np.random.default_rng(9), 20_000)
    first = np.argsort(relevance.reshape(-1, CANDIDATES), axis=1)[:, -best:]
    counted = (first + CANDIDATES * np.arange(len(first))[:, None]).ravel()
    counted = counted[np.argsort(relevance[counted])][::-1]
    precision = correct[counted].cumsum() / np.arange(1, len(counted) + 1)
    return float(relevance[counted][np.flatnonzero(precision >= 0.9)[-1]])


def test_the_promise_holds_where_candidates_of_a_question_are_wrong_together() -> None:
    """Of 300 splits at most 15 may break a promise of 90 %. Taken as independent, the candidates break it in more."""
    true = {best: _lowest_true(best) for best in (2, CANDIDATES)}
    question = np.repeat(np.arange(QUESTIONS), CANDIDATES).tolist()
    broken = {"by question": 0, "by candidate": 0}
    promised = 0
    for seed in range(300):
        relevance, correct = _misread(np.random.default_rng(seed), QUESTIONS)
        alone = promised_precision_threshold(relevance, correct, 0.9)
        broken["by candidate"] += alone.value < true[CANDIDATES]
        try:
            fit = promised_precision_threshold(relevance, correct, 0.9, question=question, best=2)
        except UsageError:
            continue
        promised += 1
        broken["by question"] += fit.value < true[2]
    assert broken["by question"] <= 15 < broken["by candidate"]
    assert promised >= 250


@pytest.mark.parametrize(
    ("hits", "kept", "limit", "bound"),
    [
        ([1] * 59, [1] * 59, 1, 0.05 ** (1 / 59)),  # of one candidate each: Clopper and Pearson
        ([0, 0], [1, 1], 2, 0.0),
        ([], [], 2, 0.0),
    ],
)
def test_bound_by_question(hits: list[int], kept: list[int], limit: int, bound: float) -> None:
    counts = np.array(hits, dtype=np.int64), np.array(kept, dtype=np.int64)
    assert clustered_lower_bound(*counts, limit) == pytest.approx(bound, abs=1e-6)


def test_the_bound_of_many_wrong_together_is_lower() -> None:
    """Ten wrong ones of 200: of ten questions with one wrong each, or of five with two."""
    kept = np.full(100, 2)
    apart, together = np.full(100, 2), np.full(100, 2)
    apart[:10], together[:5] = 1, 0
    bounds = [clustered_lower_bound(hits, kept, 2) for hits in (apart, together)]
    assert precision_lower_bound(190, 200) > bounds[0] > bounds[1] > 0.8
    with pytest.raises(ValueError, match="keeps more than 1"):
        clustered_lower_bound(apart, kept, 1)


def test_only_the_best_of_a_question_count() -> None:
    """Each of 200 questions has a correct candidate and, less relevant, a wrong one."""
    relevance, is_correct = [0.9, 0.8] * 200, [True, False] * 200
    question = [number // 2 for number in range(400)]
    fit = promised_precision_threshold(relevance, is_correct, question=question, best=1)
    assert (fit.value, fit.precision, fit.wrong_count) == (0.9, 1.0, 0)
    both = promised_precision_threshold(relevance, is_correct, question=question, best=2)
    assert (both.value, both.precision, both.recall) == (0.9, 1.0, 1.0)
    with pytest.raises(ValueError, match="got 3 for 400"):
        promised_precision_threshold(relevance, is_correct, question=[1, 2, 3])


def _draw(rng: np.random.Generator, count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    relevance = rng.random(count)
    return relevance, rng.random(count) < 1 - (1 - relevance) ** 4
