"""The gate: whether a newly trained version may take the champion's place.

Both versions were evaluated on the same held-out questions. The difference of each question's two scores is tested, so
what makes a question hard for both does not blur the comparison. Scores of questions about one image are correlated,
so they prove less than those of as many questions about different images. Every version that is tried against the same
champion may pass by chance, so each try gets a smaller share of the error. Loads no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ragllava.training.gate_report import ConditionFigures, GateReport, GateRules

FloatArray = npt.NDArray[np.float64]

WITH_CAPTIONS = "with captions"
SOFTENED = "with captions, softened around the threshold"
PRIMARY_SHARES: Mapping[str, float] = {WITH_CAPTIONS: 0.2, SOFTENED: 0.8}  # of a reranker, of the error
# What a gain in the first primary condition is compared with before anything was evaluated. Of the F1, which the
# softened F1 proves: by real trainings, 0.37 and 0.31 where the gain was above ten points (0.01 and 0.07 where it was
# small). Of answers, where one in six changes.
GAIN_SPREAD = 0.3
ANSWER_SPREAD = 0.4

_ROUNDING = 1e-9  # sums of shares such as 2/3 miss zero by less
_FLIPS_AT_ONCE = 10_000
_MOST_FLIPS = 1_000_000
_FAR_ABOVE = 4  # times what is enough: flips would not come down to it


class VersionScores(Protocol):
    """The scores of one version, which training/scoring.py makes."""

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
    def primary(self) -> Mapping[str, float]:
        """The conditions in one of which a challenger must be better, the most important first, each with its share of
        the error; the shares sum up to 1. In no condition may it be worse."""

    @property
    def tolerances(self) -> Mapping[str, float]:
        """The falls that are accepted in guards with another tolerance than that of the rules."""

    @property
    def by_condition(self) -> Mapping[str, Sequence[float]]:
        """A score for each question, by condition; its mean is in [0, 1]."""


def decide(
    champion: VersionScores,
    challenger: VersionScores,
    rules: GateRules | None = None,
    *,
    others: Mapping[str, tuple[VersionScores, VersionScores]] | None = None,
    tried: int = 0,
    groups: Mapping[str, str] | None = None,
) -> GateReport:
    """Whether the challenger passes: better in a primary condition, worse in no other.

    `others` are scores (champion, challenger) on hold-outs of other archives, by a name for people; of each, the
    first primary condition is one more guard. `tried` counts the versions that were tried against this champion
    before. `groups` names the near-duplicates of images: those of one name count as one image. Raises ValueError when
    two versions were evaluated on different questions.
    """
    rules = rules or GateRules()
    error = rules.error(tried)
    about = named_groups(champion.relevant, groups or {})
    figures = [_figures(name, champion, challenger, about, rules, error) for name in champion.by_condition]
    for name, (before, after) in (others or {}).items():
        about = named_groups(before.relevant, groups or {})
        figures.append(_figures(next(iter(before.primary)), before, after, about, rules, error, guards=name))
    primary = {condition.name: condition for condition in figures if condition.is_primary}
    first = primary[next(iter(champion.primary))]
    if first.questions < rules.fewest_questions:
        reasons = [
            f"only {first.questions} questions are held out, and {rules.fewest_questions} are needed "
            "to compare two versions; label more questions"
        ]
    else:
        better = first.difference >= -_ROUNDING and _is_better(primary, champion.primary, error)
        worse = [condition for condition in figures if condition.broken and (better or not condition.is_primary)]
        reasons = [] if better else [_why_not_better(list(primary.values()), error, tried)]
        reasons += [_why_worse(condition, rules) for condition in worse]
    return GateReport(
        passed=not reasons,
        reasons=tuple(reasons) or (_why_better(list(primary.values()), error, tried),),
        champion=champion.version,
        challenger=challenger.version,
        rules=rules,
        figures=tuple(figures),
        tried=tried,
        error=error,
    )


def named_groups(relevant: Sequence[Sequence[str]], groups: Mapping[str, str]) -> list[tuple[str, ...]]:
    """The images of each question, near-duplicates under one name: scores of questions about them are correlated as
    those of questions about one image."""
    return [tuple(dict.fromkeys(groups.get(image, image) for image in images)) for images in relevant]


def bounds_of_mean(
    differences: Sequence[float] | FloatArray, relevant: Sequence[Sequence[str]], confidence: float
) -> tuple[float, float]:
    """One-sided lower and upper bounds of the mean of (N,) differences, by Student's t.

    `relevant` names the images that each question is about; where all are about one, or N < 2, both bounds are 0.
    """
    independent = effective_questions(relevant)
    if independent < 2:
        return 0.0, 0.0
    from scipy.special import stdtrit  # heavy, and the client only needs the rules

    values = np.asarray(differences, dtype=np.float64)
    reach = float(stdtrit(independent - 1, confidence)) * _standard_error(values, relevant, independent)
    return float(values.mean()) - reach, float(values.mean()) + reach


def chance_of_equal(
    differences: Sequence[float] | FloatArray,
    relevant: Sequence[Sequence[str]],
    rules: GateRules,
    enough: float = 1.0,
) -> float:
    """The probability with which the mean of (N,) differences of equal versions is at least as large as this one.

    The differences of equal versions have either sign as often, so their signs are flipped at random, and what is
    counted is how often the sum is as large. Questions that share an image, directly or through others, flip together.
    Where questions about several images tie most of the others together, each flips alone, the sums are spread by what
    such questions have in common, and the result is at least the probability of Student's t.

    Signs are not flipped where Student's t gives much more than `enough`. 1 where all questions are about one image.
    """
    independent = effective_questions(relevant)
    values = np.asarray(differences, dtype=np.float64)
    if independent < 2 or values.mean() <= _ROUNDING:
        return 1.0
    from scipy.special import stdtr  # as above

    error = _standard_error(values, relevant, independent)
    chance = float(stdtr(independent - 1, -values.mean() / error)) if error else 0.0
    if chance > _FAR_ABOVE * enough:
        return chance
    # As many flips as it takes to see a chance well below `enough`.
    flips = round(min(max(rules.flips, 50 / max(enough, 1e-9)), _MOST_FLIPS))
    clusters = _clusters(relevant)
    sizes = np.bincount(clusters)
    if len(values) ** 2 / float(sizes @ sizes) >= independent / 2:
        sums: FloatArray = np.bincount(clusters, weights=values).astype(np.float64)
        return _chance_by_flips(sums, 1.0, flips, rules.seed)
    return max(chance, _chance_by_flips(values, _common_spread(values, relevant), flips, rules.seed))


def effective_questions(relevant: Sequence[Sequence[str]]) -> float:
    """As how many questions that have nothing to do with each other these count, at most: as many as there are images
    where each has as many questions, fewer where one image has most of them (Kish's effective number of clusters)."""
    weights: defaultdict[object, float] = defaultdict(float)
    for number, images in enumerate(relevant):
        about: Sequence[object] = images or [number]
        for image in about:
            weights[image] += 1 / len(about)
    effective = len(relevant) ** 2 / sum(weight * weight for weight in weights.values()) if weights else 0.0
    return min(float(len(relevant)), effective)


def provable_gain(
    relevant: Sequence[Sequence[str]], spread: float, rules: GateRules, share: float = 1.0, tried: int = 0
) -> float | None:
    """The gain of the first primary condition that passes in four of five trainings; None where no gain can.

    It is an estimate before any version was evaluated: `spread` is the standard deviation of a question's difference
    that is assumed, and half of its variance is assumed to be that of the image. `share` of the error is that of the
    condition which proves the gain.
    """
    count, independent = len(relevant), effective_questions(relevant)
    if count < rules.fewest_questions or independent < 2:
        return None
    from scipy.special import ndtri

    clustered = 1 + (count / independent - 1) / 2
    needed = float(ndtri(1 - share * rules.error(tried)) + ndtri(0.8))
    return needed * spread * math.sqrt(clustered / count)


def _standard_error(values: FloatArray, relevant: Sequence[Sequence[str]], independent: float) -> float:
    """Of the mean. The variance of few misses a factor N / (N − 1)."""
    count = len(values)
    spread = float(values.std()) * _common_spread(values, relevant)
    return spread * math.sqrt(independent / (independent - 1) / count)


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
        if not images:
            of_sharing = float(deviations[number])
        elif len(images) == 1:
            of_sharing = sums[images[0]]
        else:
            of_sharing = float(deviations[sorted({number}.union(*(about[image] for image in images)))].sum())
        together += float(deviations[number]) * of_sharing
    return math.sqrt(max(1.0, together / alone))


def _chance_by_flips(sums: FloatArray, spread: float, flips: int, seed: int) -> float:
    """The share of random flips of signs with a total, times `spread`, as large as that of `sums`."""
    sizes = np.abs(sums[np.abs(sums) > _ROUNDING])
    rng = np.random.default_rng(seed)
    as_large = 0
    for start in range(0, flips, _FLIPS_AT_ONCE):
        signs = rng.integers(0, 2, size=(min(_FLIPS_AT_ONCE, flips - start), len(sizes)), dtype=np.int8)
        totals = spread * (2.0 * (signs @ sizes) - sizes.sum())
        as_large += int((totals >= sums.sum() - _ROUNDING).sum())
    return (as_large + 1) / (flips + 1)


def _clusters(relevant: Sequence[Sequence[str]]) -> npt.NDArray[np.int64]:
    """The number of each question's cluster: questions that share an image, directly or through others."""
    parent = list(range(len(relevant)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first: dict[str, int] = {}
    for number, images in enumerate(relevant):
        for image in images:
            parent[root(number)] = root(first.setdefault(image, number))
    return np.asarray([root(number) for number in range(len(relevant))], dtype=np.int64)


def _is_better(figures: Mapping[str, ConditionFigures], shares: Mapping[str, float], error: float) -> bool:
    """Simes' test with weights: one condition at its share of the error, or all of them at the whole error."""
    chances = {name: figures[name].chance for name in shares}
    return any(chance is not None and chance <= shares[name] * error for name, chance in chances.items()) or all(
        chance is not None and chance <= error for chance in chances.values()
    )


def _figures(
    condition: str,
    champion: VersionScores,
    challenger: VersionScores,
    relevant: Sequence[Sequence[str]],
    rules: GateRules,
    error: float,
    *,
    guards: str | None = None,
) -> ConditionFigures:
    """`relevant` names the images of each question, near-duplicates under one name. `guards` names another archive,
    whose primary condition is a guard here."""
    if tuple(champion.questions) != tuple(challenger.questions):
        raise ValueError(f"{champion.version} and {challenger.version} were evaluated on different questions")
    before, after = (np.asarray(scores.by_condition[condition], dtype=np.float64) for scores in (champion, challenger))
    differences = after - before
    is_primary = guards is None and condition in champion.primary
    low, high = bounds_of_mean(differences, relevant, rules.guard_confidence)
    mean = _mean(differences)
    tolerance = champion.tolerances.get(condition, rules.tolerance)
    return ConditionFigures(
        name=guards or condition,
        is_primary=is_primary,
        questions=len(differences),
        images=len(set(chain.from_iterable(relevant))),
        changed=int((np.abs(differences) > _ROUNDING).sum()),
        champion=_mean(before),
        challenger=_mean(after),
        difference=mean,
        low=low,
        high=high,
        broken=bool(mean < -tolerance - _ROUNDING and high < -_ROUNDING),
        chance=chance_of_equal(differences, relevant, rules, error) if is_primary else None,
    )


def _mean(scores: FloatArray) -> float:
    return float(scores.mean()) if len(scores) else 0.0


def _why_worse(figures: ConditionFigures, rules: GateRules) -> str:
    return (
        f"worse, {figures.name}: {_change(figures)}, a fall that is not due to chance "
        f"with {100 * rules.guard_confidence:g} % confidence"
    )


def _why_not_better(primary: Sequence[ConditionFigures], error: float, tried: int) -> str:
    names = " and ".join(figures.name for figures in primary)
    if not any(figures.changed for figures in primary):
        return f"no difference, {names}: both versions score the same on each of {primary[0].questions} questions"
    return f"not better, {_changes(primary)}; {_accepted(error, tried)}"


def _why_better(primary: Sequence[ConditionFigures], error: float, tried: int) -> str:
    return f"better, {_changes(primary)}; {_accepted(error, tried)}; worse in nothing else"


def _changes(primary: Sequence[ConditionFigures]) -> str:
    return "; ".join(f"{figures.name}: {_change(figures)}, {_chance(figures)}" for figures in primary)


def _chance(figures: ConditionFigures) -> str:
    if figures.difference <= _ROUNDING or figures.chance is None:
        return "no gain"
    return f"a gain that equal versions show with a probability of {100 * figures.chance:.2g} %"


def _accepted(error: float, tried: int) -> str:
    before = "the first version" if not tried else f"version {tried + 1}"
    return f"{before} tried against this champion may pass by chance with {100 * error:.2g} %"


def _change(figures: ConditionFigures) -> str:
    asked = f"{figures.questions} questions about {figures.images} images"
    return f"{figures.champion:.3f} → {figures.challenger:.3f} on {asked}"
