"""The gate: whether a newly trained version may take the champion's place.

Both versions were evaluated on the same held-out questions. The difference of each question's two scores is resampled
(the paired bootstrap), so what makes a question hard for both does not blur the comparison. Scores of questions about
one image are correlated, so they prove less than those of as many questions about different images. Loads no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ragllava.json_records import rounded, to_json

FloatArray = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # sums of shares such as 2/3 miss zero by less


class VersionScores(Protocol):
    """The scores of one version, which training/version_scores.py makes."""

    @property
    def version(self) -> str:
        """The registered name."""

    @property
    def questions(self) -> Sequence[str]:
        """The held-out questions."""

    @property
    def relevant(self) -> Sequence[Sequence[str]]:
        """The names of each question's relevant images."""

    @property
    def primary(self) -> str:
        """The condition in which a challenger must be better; in all others it must not be worse."""

    @property
    def by_condition(self) -> Mapping[str, Sequence[float]]:
        """A score in [0, 1] for each question, by condition."""


@dataclass(frozen=True, slots=True)
class GateRules:
    """When a challenger passes.

    Better: in the primary condition the mean difference is above 0 with `confidence`. Worse, in any other condition:
    the mean fell by more than `tolerance`, and it is below 0 with `guard_confidence`. Both are needed. The mean alone
    would refuse every second of equal versions where answers are a matter of luck (no captions). Significance alone
    would refuse falls of no weight on a large hold-out. A guard asks for less proof than the primary condition: a
    fall that it misses costs answers, a false alarm only a training; so of equal versions a guard refuses up to one
    in ten. On fewer than `fewest_questions` nothing can be shown.
    """

    confidence: float = 0.95
    guard_confidence: float = 0.9
    tolerance: float = 0.01
    fewest_questions: int = 20
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ConditionFigures:
    """One condition: the means of both versions and their difference, challenger less champion.

    `images` counts those that the questions are about, `changed` the questions with different scores. `low` and `high`
    are one-sided bounds of the difference, each at the confidence that the rules ask of the condition. `broken` tells
    that this condition refuses.
    """

    name: str
    is_primary: bool
    questions: int
    images: int
    changed: int
    champion: float
    challenger: float
    difference: float
    low: float
    high: float
    broken: bool


@dataclass(frozen=True, slots=True)
class GateReport:
    """The decision. `reasons` are sentences for people: why it was refused, else what it is better in."""

    passed: bool
    reasons: tuple[str, ...]
    champion: str
    challenger: str
    rules: GateRules
    figures: tuple[ConditionFigures, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """As stored beside a version; figures with four decimals."""
        return {**to_json(self), "figures": rounded(to_json(self.figures))}


def decide(
    champion: VersionScores,
    challenger: VersionScores,
    rules: GateRules | None = None,
    *,
    others: Mapping[str, tuple[VersionScores, VersionScores]] | None = None,
) -> GateReport:
    """Whether the challenger passes: better in the primary condition, worse in no other.

    `others` are scores (champion, challenger) on hold-outs of other archives, by a name for people; of each, the
    primary condition is one more guard. Raises ValueError when two versions were evaluated on different questions.
    """
    rules = rules or GateRules()
    figures = [_figures(name, champion, challenger, rules) for name in champion.by_condition]
    for name, (before, after) in (others or {}).items():
        figures.append(_figures(before.primary, before, after, rules, guards=name))
    primary = next(condition for condition in figures if condition.is_primary)
    if primary.questions < rules.fewest_questions:
        reasons = [
            f"only {primary.questions} questions are held out, and {rules.fewest_questions} are needed "
            "to compare two versions; label more questions"
        ]
    else:
        reasons = [_why_broken(condition, rules) for condition in figures if condition.broken]
    return GateReport(
        passed=not reasons,
        reasons=tuple(reasons) or (_why_better(primary, rules),),
        champion=champion.version,
        challenger=challenger.version,
        rules=rules,
        figures=tuple(figures),
    )


def bounds_of_mean(
    differences: Sequence[float] | FloatArray,
    relevant: Sequence[Sequence[str]],
    confidence: float,
    rules: GateRules,
) -> tuple[float, float]:
    """One-sided lower and upper bounds of the mean of (N,) differences, by the bootstrap.

    `relevant` names the images that each question is about; where all are about one, or N < 2, both bounds are 0.
    Resampled are questions, as if they were independent; what those about one image have in common spreads the means
    further. A plain percentile is too narrow for few, as if their spread were known: at 20, it would let 6 % of equal
    versions pass instead of 5 %. So the percentile is taken further out, as Student's t is further out than the normal.
    """
    independent = _independent(relevant)
    if independent < 2:
        return 0.0, 0.0
    values = np.asarray(differences, dtype=np.float64)
    middle, spread = values.mean(), _common_spread(values, relevant)
    means = middle + spread * (resampled_means(values, rules.resamples, rules.seed) - middle)
    tail = _tail(1 - confidence, independent)
    low = np.quantile(means, tail, method="inverted_cdf")
    high = -np.quantile(-means, tail, method="inverted_cdf")
    return float(low), float(high)


def resampled_means(differences: Sequence[float] | FloatArray, resamples: int, seed: int) -> FloatArray:
    """The means (resamples,) of as many draws, with replacement, of N from N differences."""
    # VersionScores take few values, and how often each of them is drawn is all that matters.
    values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
    count = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(count, counts / count, size=resamples)
    return np.asarray(drawn @ values / count)


def _common_spread(differences: FloatArray, relevant: Sequence[Sequence[str]]) -> float:
    """By which factor the mean spreads more than that of independent questions, at least 1.

    The variance counts every two questions that share an image, as for dyads (Aronow, Samii and Assenova 2015,
    "Cluster-robust variance estimation for dyadic data"): resampling whole images instead would not know where a
    question about two of them belongs, or would take it for three times less certain than it is.
    """
    deviations = differences - differences.mean()
    alone = float(deviations @ deviations)
    if not alone:
        return 1.0
    about: dict[str, list[int]] = defaultdict(list)
    for number, images in enumerate(relevant):
        for image in images:
            about[image].append(number)
    sums = {image: float(deviations[numbers].sum()) for image, numbers in about.items()}
    together = 0.0
    for number, images in enumerate(relevant):
        if len(images) == 1:
            of_sharing = sums[images[0]]
        else:
            of_sharing = float(deviations[sorted({number}.union(*(about[image] for image in images)))].sum())
        together += float(deviations[number]) * of_sharing
    return math.sqrt(max(1.0, together / alone))


def _independent(relevant: Sequence[Sequence[str]]) -> float:
    """As how many questions that have nothing to do with each other these count, at most: as many as there are images
    where each has as many questions, fewer where one image has most of them (Kish's effective number of clusters)."""
    weights: defaultdict[object, float] = defaultdict(float)
    for number, images in enumerate(relevant):
        about: Sequence[object] = images or [number]
        for image in about:
            weights[image] += 1 / len(about)
    effective = len(relevant) ** 2 / sum(weight * weight for weight in weights.values()) if weights else 0.0
    return min(float(len(relevant)), effective)


def _tail(share: float, count: float) -> float:
    """The percentile to take instead of `share`: 0.038 instead of 0.05 for 20 questions, almost 0.05 for 200.

    The spread of a bootstrap misses a factor sqrt(N / (N − 1)), and its tails are a normal distribution's instead of
    those of Student's t with N − 1 degrees of freedom.
    """
    from scipy.special import ndtr, stdtrit  # heavy, and the client only needs the rules

    freedom = count - 1
    return float(ndtr(math.sqrt(count / freedom) * stdtrit(freedom, share)))


def _figures(
    condition: str, champion: VersionScores, challenger: VersionScores, rules: GateRules, *, guards: str | None = None
) -> ConditionFigures:
    """`guards` names another archive, whose primary condition is a guard here."""
    if tuple(champion.questions) != tuple(challenger.questions):
        raise ValueError(f"{champion.version} and {challenger.version} were evaluated on different questions")
    before, after = (np.asarray(scores.by_condition[condition], dtype=np.float64) for scores in (champion, challenger))
    differences = after - before
    is_primary = guards is None and condition == champion.primary
    confidence = rules.confidence if is_primary else rules.guard_confidence
    low, high = bounds_of_mean(differences, champion.relevant, confidence, rules)
    mean = _mean(differences)
    is_worse = mean < -rules.tolerance and high < -_ROUNDING
    return ConditionFigures(
        name=guards or condition,
        is_primary=is_primary,
        questions=len(differences),
        images=len(set(chain.from_iterable(champion.relevant))),
        changed=int((np.abs(differences) > _ROUNDING).sum()),
        champion=_mean(before),
        challenger=_mean(after),
        difference=mean,
        low=low,
        high=high,
        broken=bool(low <= _ROUNDING if is_primary else is_worse),
    )


def _mean(scores: FloatArray) -> float:
    return float(scores.mean()) if len(scores) else 0.0


def _why_broken(figures: ConditionFigures, rules: GateRules) -> str:
    if not figures.is_primary:
        return (
            f"worse, {figures.name}: {_change(figures)}, a fall that is not due to chance "
            f"with {100 * rules.guard_confidence:g} % confidence"
        )
    if not figures.changed:
        return f"no difference, {figures.name}: both versions score the same on each of {figures.questions} questions"
    return (
        f"not better, {figures.name}: {_change(figures)}; with {100 * rules.confidence:g} % confidence "
        f"the difference is only known to be above {figures.low:+.3f}"
    )


def _why_better(figures: ConditionFigures, rules: GateRules) -> str:
    return (
        f"better, {figures.name}: {_change(figures)}, by more than {figures.low:.3f} "
        f"with {100 * rules.confidence:g} % confidence; worse in nothing else"
    )


def _change(figures: ConditionFigures) -> str:
    asked = f"{figures.questions} questions about {figures.images} images"
    return f"{figures.champion:.3f} → {figures.challenger:.3f} on {asked}"
