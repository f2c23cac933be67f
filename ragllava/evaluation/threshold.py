"""The threshold η: from which relevance on a candidate is kept as evidence (docs/method.md 3).

The adaptive threshold is where the densities of correct and of wrong candidates cross. Fit it on all K candidates of
each question of a calibration split, never on the split that is reported; it belongs to one reranker version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ragllava.errors import ScoreRejected, UsageError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Relevances = Sequence[float] | FloatArray
Labels = Sequence[bool] | BoolArray

NATURAL_THRESHOLD = 0.5
FEWEST_CANDIDATES = 30  # of correct and of wrong ones, for a density that means something

_GRID_STEPS = 1000
_CURVE_STEPS = 100
_NARROWEST_BANDWIDTH = 0.02  # on the scale of exp(relevance), about 1 % of its range

ThresholdMethod = Literal["adaptive", "natural", "fixed", "promised"]


@dataclass(frozen=True, slots=True)
class DensityCurve:
    """The two densities at the same points, to be drawn. They are densities of exp(relevance), not of relevance."""

    relevance: tuple[float, ...]
    correct: tuple[float, ...]
    wrong: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ThresholdFit:
    """A threshold with where it came from and what it does on the candidates that it was fitted on.

    `precision` and `recall` are of candidates with relevance ≥ `value`; 0 where nothing is kept or nothing is
    correct. `curve` is None when there were too few candidates to draw one, or none was requested.
    """

    value: float
    method: ThresholdMethod
    reason: str
    precision: float
    recall: float
    correct_count: int
    wrong_count: int
    curve: DensityCurve | None = None


def adaptive_threshold(relevance: Relevances, is_correct: Labels) -> ThresholdFit:
    """The relevance at which a candidate is as likely among the correct ones as among the wrong ones.

    `relevance` (N,) in [0, 1] and `is_correct` (N,) describe candidates in any order. Both densities are
    estimated on exp(relevance) with Gaussian kernels; their crossing from below to above between the two means is
    η, interpolated. Of several crossings, the one with the smallest sum of both error rates. With fewer than 30
    candidates on a side, wrong ones that score higher on average, or no crossing, η is 0.5 and `reason` says why.
    ScoreRejected: a relevance that is not a probability.
    """
    scores, correct = checked(relevance, is_correct)
    counts = f"{int(correct.sum())} correct and {int((~correct).sum())} wrong candidates"
    if min(correct.sum(), (~correct).sum()) < FEWEST_CANDIDATES:
        reason = f"{counts} are too few: {FEWEST_CANDIDATES} of each are needed"
        return _describe(NATURAL_THRESHOLD, "natural", reason, scores, correct)
    points = np.linspace(1.0, math.e, _GRID_STEPS + 1)
    log_correct = _log_density(np.exp(scores[correct]), points)
    log_wrong = _log_density(np.exp(scores[~correct]), points)
    curve = _curve(points, log_correct, log_wrong)
    mean_correct, mean_wrong = float(np.exp(scores[correct]).mean()), float(np.exp(scores[~correct]).mean())
    if mean_correct <= mean_wrong:
        reason = f"the order is inverted: of {counts}, the wrong ones score at least as high on average"
        return _describe(NATURAL_THRESHOLD, "natural", reason, scores, correct, curve)
    crossings = _upward_crossings(points, log_correct - log_wrong)
    between = [float(np.log(point)) for point in crossings if mean_wrong <= point <= mean_correct]
    if not between:
        reason = f"the densities of {counts} do not cross between their means"
        return _describe(NATURAL_THRESHOLD, "natural", reason, scores, correct, curve)
    value = min(between, key=lambda crossing: _error_rates(crossing, scores, correct))
    reason = f"the densities of {counts} cross at relevance {value:.3f}"
    return _describe(value, "adaptive", reason, scores, correct, curve)


def steady_threshold(relevance: Relevances, is_correct: Labels) -> ThresholdFit:
    """The adaptive threshold, moved towards 0.5 as far as it makes no more mistakes on these candidates.

    A well-trained reranker gives few candidates or none a relevance in the middle, and where the densities cross there
    depends on these few: with fifty correct candidates, anywhere from 0.06 to 0.81. Unless the candidates contradict, a
    version with few labels keeps near to what it was trained for, "more Yes than No". A mistake is a correct candidate
    dropped or a wrong one kept. ScoreRejected as for the adaptive threshold.
    """
    fit = adaptive_threshold(relevance, is_correct)
    scores, correct = checked(relevance, is_correct)
    low, high = sorted((fit.value, NATURAL_THRESHOLD))
    between = np.unique(scores[(scores >= low) & (scores < high)])
    possible = np.concatenate(([NATURAL_THRESHOLD, fit.value], between, np.nextafter(between, 1.0)))
    mistakes = _mistakes(possible, scores, correct)
    fine = possible[mistakes <= mistakes[1]]
    value = float(fine[np.argmin(np.abs(fine - NATURAL_THRESHOLD))])
    if value == fit.value:
        return fit
    reason = fit.reason
    if f"{value:.3f}" != f"{fit.value:.3f}":
        reason += f", and {value:.3f}, nearer to {NATURAL_THRESHOLD:g}, makes no more mistakes than that"
    return _describe(value, "adaptive", reason, scores, correct, fit.curve)


def fixed_threshold(value: float, relevance: Relevances, is_correct: Labels) -> ThresholdFit:
    """A given η in [0, 1], with its precision and recall on these candidates; 0 keeps everything."""
    if not 0 <= value <= 1:
        raise UsageError(f"a threshold must be from 0 to 1, not {value:g}")
    scores, correct = checked(relevance, is_correct)
    return _describe(value, "fixed", f"{value:g} was asked for", scores, correct)


def checked(relevance: Relevances, is_correct: Labels) -> tuple[FloatArray, BoolArray]:
    """Both as arrays (N,). ScoreRejected: a relevance that is not a probability."""
    scores = np.asarray(relevance, dtype=np.float64)
    correct = np.asarray(is_correct, dtype=np.bool_)
    if scores.ndim != 1 or scores.shape != correct.shape:
        raise ValueError(f"one label per relevance is needed, got shapes {scores.shape} and {correct.shape}")
    bad = np.flatnonzero(~((scores >= 0) & (scores <= 1)))  # NaN is in no range
    if len(bad):
        raise ScoreRejected(f"candidate {bad[0]} has relevance {scores[bad[0]]}, which is not a probability")
    return scores, correct


def _log_density(sample: FloatArray, points: FloatArray) -> FloatArray:
    """Logarithm of the Gaussian kernel density of `sample` (N,) at `points` (P,).

    In logarithms, so that the densities still compare in the empty middle, where both would underflow to 0. The
    bandwidth is Silverman's rule, 0.9 · min(standard deviation, interquartile range / 1.34) · N^(-1/5), but at
    least 0.02: relevances pile up at 0 and 1, where half of them may be equal and the rule would give 0.
    """
    quartiles = np.quantile(sample, (0.25, 0.75))
    spread = min(float(sample.std()), float(quartiles[1] - quartiles[0]) / 1.34)
    bandwidth = max(0.9 * spread * len(sample) ** -0.2, _NARROWEST_BANDWIDTH)
    log_scale = math.log(len(sample) * bandwidth * math.sqrt(2 * math.pi))
    exponents = (-0.5 * ((point - sample) / bandwidth) ** 2 for point in points)
    return np.array([np.logaddexp.reduce(exponent) for exponent in exponents]) - log_scale


def _upward_crossings(points: FloatArray, difference: FloatArray) -> FloatArray:
    """Where `difference` goes from negative to positive, linearly interpolated between the points."""
    before = np.flatnonzero((difference[:-1] < 0) & (difference[1:] >= 0))
    share = difference[before] / (difference[before] - difference[before + 1])
    return np.asarray(points[before] + share * (points[before + 1] - points[before]))


def _error_rates(threshold: float, scores: FloatArray, correct: BoolArray) -> float:
    """Share of correct candidates dropped plus share of wrong ones kept."""
    return float((scores[correct] < threshold).mean() + (scores[~correct] >= threshold).mean())


def _mistakes(thresholds: FloatArray, scores: FloatArray, correct: BoolArray) -> npt.NDArray[np.int64]:
    """How many correct candidates each threshold drops and how many wrong ones it keeps, together."""
    dropped = np.searchsorted(np.sort(scores[correct]), thresholds)
    below = np.searchsorted(np.sort(scores[~correct]), thresholds)
    return np.asarray(dropped + (~correct).sum() - below)


def _curve(points: FloatArray, log_correct: FloatArray, log_wrong: FloatArray) -> DensityCurve:
    """Every tenth point, enough for a drawing."""
    every = slice(None, None, _GRID_STEPS // _CURVE_STEPS)

    def rounded(line: FloatArray) -> tuple[float, ...]:
        return tuple(round(float(value), 6) for value in line[every])

    return DensityCurve(rounded(np.log(points)), rounded(np.exp(log_correct)), rounded(np.exp(log_wrong)))


def _describe(
    value: float,
    method: ThresholdMethod,
    reason: str,
    scores: FloatArray,
    correct: BoolArray,
    curve: DensityCurve | None = None,
) -> ThresholdFit:
    kept = scores >= value
    hits = int((kept & correct).sum())
    return ThresholdFit(
        value=value,
        method=method,
        reason=reason,
        precision=hits / int(kept.sum()) if kept.any() else 0.0,
        recall=hits / int(correct.sum()) if correct.any() else 0.0,
        correct_count=int(correct.sum()),
        wrong_count=int((~correct).sum()),
        curve=curve,
    )
