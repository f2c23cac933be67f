"""A threshold η that keeps a promise: of what it keeps, at least a given share (such as 95 %) is correct.

The precision that a threshold shows on a calibration split is an estimate, and the smallest threshold that looks good
enough is chosen because it looks good. So candidates are tested one threshold after the other, from high to low, each
against "its precision is below the promise"; the walk stops at the first test that fails. In such a fixed sequence the
chance that any test passes wrongly is that of the first wrong one alone ("Learn then Test", arXiv 2110.01052).

A walk from the very top would be ended by one early mistake. So it starts where the reranker itself says more Yes than
No, and, in case that is too low, others start at half as many kept candidates, a quarter, and so on; they share the
risk equally. All this follows from the relevances alone: if it depended on the labels, the risk would be larger.

**Candidates of one question are not independent**: a question that is misread has several wrong ones. So questions are
what was drawn, not candidates. If at most one candidate of a question counts, the test is the exact binomial one, whose
dual is the Clopper-Pearson bound. Otherwise it is a test by betting (Waudby-Smith and Ramdas, arXiv 2010.09686):
for a precision p, a question that keeps k candidates, h of them correct, gains h - p·k. If the precision is at most p,
the expected gain is at most 0, so whoever stakes a share λ of his money on each question does not win on average, and
has 1/risk times his money or more with a probability of at most the risk. This holds whatever the candidates of a
question have to do with each other. λ must be so small that no question costs everything, so at most `best` candidates
of a question count: those that a job keeps as evidence. The stakes are spread over several λ.

What remains of assumptions: the questions of the split are drawn independently, and from the same distribution as those
that are asked later.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
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

# λ as shares of the largest possible one, and how much money is staked so. Large ones win soonest if all is correct,
# small ones bear more mistakes.
_STAKES = np.array([0.25, 0.5, 0.75, 0.98])
_MONEY = np.array([0.15, 0.2, 0.2, 0.45])


def promised_precision_threshold(
    relevance: Relevances,
    is_correct: Labels,
    precision: float = 0.95,
    confidence: float = 0.95,
    *,
    question: Sequence[Hashable] | None = None,
    best: int | None = None,
) -> ThresholdFit:
    """The smallest η for which precision ≥ `precision` can be promised with `confidence`.

    `relevance` (N,) in [0, 1] and `is_correct` (N,) describe candidates of a calibration split in any order, `question`
    (N,) says whose candidates they are; None: each is that of another question. The promise is about the `best`
    candidates of each question, as many as a job keeps; None: all of them, which takes far more questions.

    `reason` of the result names the promise and the bound. Raises UsageError when no threshold can keep the promise on
    so few or such candidates (a threshold of another kind would break it silently), ScoreRejected for a relevance that
    is no probability. To show 95 % with 95 % takes 59 questions with one kept candidate if all are correct, 181 if four
    are wrong.
    """
    for name, share in (("precision", precision), ("confidence", confidence)):
        if not 0 < share < 1:
            raise UsageError(f"the promised {name} must be between 0 and 1, not {share:g}")
    scores, correct = checked(relevance, is_correct)
    clusters = _clusters(question, len(scores))
    counted = _best_of_each(scores, clusters, best)
    limit = max(1, int(np.bincount(clusters[counted], minlength=1).max())) if best is None else best
    walked = _Candidates(scores[counted], correct[counted], clusters[counted], limit)
    starts, risk = _walks(int((walked.scores >= NATURAL_THRESHOLD).sum()), limit, precision, confidence)
    passed = [_walk(walked, start, precision, risk) for start in starts]
    lowest = max((level for level in passed if level is not None), default=None)
    if lowest is None:
        counts = f"{int(correct.sum())} correct and {int((~correct).sum())} wrong candidates"
        raise UsageError(
            f"on {counts} of {len(set(clusters.tolist()))} questions no threshold shows a precision of {precision:g} "
            f"with confidence {confidence:g}; calibrate on more questions or promise less"
        )
    hits, kept = walked.by_question(lowest)
    bound = clustered_lower_bound(hits, kept, limit, 1 - risk)
    reason = (
        f"a precision of at least {precision:g} is promised with confidence {confidence:g}: {hits.sum()} of "
        f"{kept.sum()} kept candidates of {(kept > 0).sum()} questions are correct, {bound:.3f} at the least"
    )
    fit = fixed_threshold(float(walked.levels[lowest]), walked.scores, walked.correct)
    return replace(fit, method="promised", reason=reason)


def precision_lower_bound(hits: int, kept: int, confidence: float = 0.95) -> float:
    """The one-sided Clopper-Pearson bound: the precision under which ≥ `hits` of `kept` has probability 1 − confidence.

    The true precision is above it in a share ≥ `confidence` of all samples of independent candidates. 0 where nothing
    is hit.
    """
    if not 0 <= hits <= kept:
        raise ValueError(f"{hits} hits of {kept} kept candidates are impossible")
    return float(betaincinv(hits, kept - hits + 1, 1 - confidence)) if hits else 0.0


def clustered_lower_bound(hits: IntArray, kept: IntArray, limit: int, confidence: float = 0.95) -> float:
    """The bound of the precision when `hits` (Q,) of the `kept` (Q,) candidates of each of Q questions are correct.

    No question can keep more than `limit`. If that is 1, the bound is that of Clopper and Pearson; otherwise it is the
    smallest precision that the test by betting does not refute. The candidates of a question need not be independent.
    """
    if not ((hits >= 0) & (hits <= kept) & (kept <= limit)).all():
        raise ValueError(f"a question has more hits than kept candidates, or keeps more than {limit}")
    if limit == 1:
        return precision_lower_bound(int(hits.sum()), int(kept.sum()), confidence)
    wanted = -math.log1p(-confidence)

    def excess(precision: float) -> float:
        return _log_wealth(hits, kept, limit, precision) - wanted

    return float(brentq(excess, 1e-9, 1 - 1e-9)) if excess(1e-9) > 0 else 0.0


class _Candidates:
    """Candidates in the order of their relevance, with the distinct relevances as `levels`, from high to low.

    No question has more than `limit` of them.
    """

    def __init__(self, scores: FloatArray, correct: BoolArray, clusters: IntArray, limit: int) -> None:
        order = np.argsort(-scores, kind="stable")
        self.scores, self.correct, self.limit = scores[order], correct[order], limit
        self._clusters = clusters[order]
        self._questions = int(clusters.max(initial=-1)) + 1
        levels, counts = np.unique(-self.scores, return_counts=True)
        self.levels = -levels
        self.kept: IntArray = counts.cumsum()

    def by_question(self, level: int) -> tuple[IntArray, IntArray]:
        """Of each question, how many kept candidates are correct at this level, and how many are kept."""
        clusters = self._clusters[: int(self.kept[level])]
        hits = np.bincount(clusters, self.correct[: len(clusters)], self._questions)
        return hits.astype(np.int64), np.bincount(clusters, minlength=self._questions).astype(np.int64)


def _clusters(question: Sequence[Hashable] | None, count: int) -> IntArray:
    if question is None:
        return np.arange(count)
    if len(question) != count:
        raise ValueError(f"one question per relevance is needed, got {len(question)} for {count}")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(question))}
    return np.array([numbers[name] for name in question], dtype=np.int64)


def _best_of_each(scores: FloatArray, clusters: IntArray, best: int | None) -> IntArray:
    """Which candidates are among the `best` of their question, in input order; of equal ones the first."""
    order = np.lexsort((np.arange(len(scores)), -scores, clusters))
    ordered = clusters[order]
    first = np.searchsorted(ordered, ordered)  # where the question begins
    ranks = np.arange(len(order)) - first
    return np.sort(order[ranks < (len(scores) if best is None else best)])


def _walks(likely: int, limit: int, precision: float, confidence: float) -> tuple[list[int], float]:
    """How many candidates each walk keeps at its start, and the risk that each may take.

    `likely`, half of it, a quarter, … as long as a test with so few can pass at all, if everything is correct. What it
    takes grows with the number of walks, since these share the risk.
    """

    def fewest(walks: int) -> int:
        risk = (1 - confidence) / walks
        if limit == 1:
            return math.ceil(math.log(risk) / math.log(precision))
        growth = math.log1p(_STAKES[-1] * (1 - precision) / (precision * limit))  # of the boldest stake
        return math.ceil(-math.log(risk * _MONEY[-1]) / growth)

    walks = 1
    while likely // 2**walks >= fewest(walks + 1):
        walks += 1
    return [max(likely // 2**walk, fewest(walks)) for walk in range(walks)], (1 - confidence) / walks


def _walk(candidates: _Candidates, start: int, precision: float, risk: float) -> int | None:
    """The last level that passes in a walk from the first level that keeps ≥ `start`; None if not even that does."""
    passed = None
    for level in range(int(np.searchsorted(candidates.kept, start)), len(candidates.levels)):
        hits, kept = candidates.by_question(level)
        if not _refutes(hits, kept, candidates.limit, precision, risk):
            break
        passed = level
    return passed


def _refutes(hits: IntArray, kept: IntArray, limit: int, precision: float, risk: float) -> bool:
    """Whether so many hits refute, with this risk of an error, that the precision is at most `precision`."""
    if limit == 1:
        return bool(bdtrc(hits.sum() - 1, kept.sum(), precision) <= risk)
    return _log_wealth(hits, kept, limit, precision) >= -math.log(risk)


def _log_wealth(hits: IntArray, kept: IntArray, limit: int, precision: float) -> float:
    """The logarithm of what 1 has become after a bet on each question; none can lose more than precision · `limit`."""
    gains = (hits - precision * kept)[None]
    grown = np.log1p(_STAKES[:, None] / (precision * limit) * gains).sum(axis=1)
    return float(np.logaddexp.reduce(grown + np.log(_MONEY)))
