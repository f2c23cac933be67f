"""How often the gate lets a version pass whose true quality is known: simulated hold-outs, the gate as it is.

The relevance of a simulated reranker is drawn: that of a question's relevant image, and those of its strongest wrong
candidates. What two versions have in common (the difficulty of an image and of a question) and what they do not is
drawn for each image and for each question. The figures are those of real trainings (`ragllava measure-gate`): relevant
images that a champion gives little relevance come nearer to what it gives the others, by the share `gain` of the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ragllava.training.gate import PRIMARY_SHARES, SOFTENED, WITH_CAPTIONS, decide
from ragllava.training.gate_report import GateRules
from ragllava.training.softened_f1 import softened_f1
from ragllava.training.version_scores import WITHOUT_CAPTIONS

FloatArray = npt.NDArray[np.float64]

GAINS = (-0.05, 0.0, 0.05, 0.1, 0.2, 0.4)  # for the table of `ragllava simulate-gate`; real ones were 0.37 and 0.61
_KEPT = 2  # images of a question, as many as a job keeps
_WRONG = 5  # the strongest wrong candidates of a question
# In logits from η. Relevant images: a spread of 2.2 and 2.6 in two trainings, 0.84 and 0.95 of the variance by image.
_RELEVANT_SPREAD = 2.4
_OF_IMAGE = 0.9  # of its variance
_LEARNED = 5.9  # what a better version comes nearer to
_STRONGEST_MEAN, _STRONGEST_SPREAD = -6.9, 1.9  # of the strongest wrong candidate
_LEARNED_WRONG = 3.4  # by how much a better version raises it, times `gain`
_NEXT_LOWER = 1.0  # of the next wrong candidates, on average
_BARE_MEAN, _BARE_SPREAD = 1.0, 1.5  # of relevant images without captions, from wrong ones
_RELEVANT_NOISE, _WRONG_NOISE = 0.35, 0.7  # different in every version; real twins had 0.21 to 0.38, and 0.49 to 0.69


@dataclass(frozen=True, slots=True)
class HoldOut:
    """So many questions about so many images, which a champion gives `relevance` logits above η on average.

    `shared` is the share of a version's variance that questions about one image have in common. `noise` multiplies what
    is different in every version.
    """

    questions: int = 52
    images: int = 30
    relevance: float = 2.2
    shared: float = 0.5
    noise: float = 1.0


@dataclass(frozen=True, slots=True)
class PassRates:
    """The share of systems whose first version passed, and of those of which any did; with the mean F1 of both."""

    champion: float
    challenger: float
    systems: int
    tries: int
    first: float
    any: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SimulatedScores:
    """The scores of one simulated version, as the gate reads them."""

    version: str
    questions: Sequence[str]
    relevant: Sequence[Sequence[str]]
    by_condition: Mapping[str, Sequence[float]]
    primary: Mapping[str, float]
    tolerances: Mapping[str, float] = field(default_factory=dict)


def simulate(  # noqa: PLR0913 - the situation and what to compare it with
    systems: int,
    tries: int,
    hold_out: HoldOut,
    *,
    gain: float = 0.0,
    rules: GateRules | None = None,
    seed: int = 0,
    f1_alone: bool = False,
    forget_tries: bool = False,
) -> PassRates:
    """Of `systems` hold-outs, each with one champion, try up to `tries` versions that are better by `gain`.

    A system ends with the first version that passes. For comparison, the F1 alone can be the primary condition, and
    each version can be taken for the first one.
    """
    rules = rules or GateRules()
    first = passed = 0
    means = np.zeros(2)
    for number in range(systems):
        draw = _Draw(hold_out, np.random.default_rng([seed, number]), f1_alone=f1_alone)
        champion = draw.version("champion", 0.0)
        for tried in range(tries):
            challenger = draw.version("challenger", gain)
            if not tried:
                means += [np.mean(scores.by_condition[WITH_CAPTIONS]) for scores in (champion, challenger)]
            if decide(champion, challenger, rules, tried=0 if forget_tries else tried).passed:
                passed += 1
                first += tried == 0
                break
    champion_mean, challenger_mean = means / systems
    return PassRates(float(champion_mean), float(challenger_mean), systems, tries, first / systems, passed / systems)


class _Draw:
    """One hold-out, and what all versions have in common on it."""

    def __init__(self, hold_out: HoldOut, rng: np.random.Generator, *, f1_alone: bool) -> None:
        """Every image has at least one question."""
        self._primary = {WITH_CAPTIONS: 1.0} if f1_alone else PRIMARY_SHARES
        self._rng, self._hold_out = rng, hold_out
        drawn = rng.integers(0, hold_out.images, hold_out.questions - hold_out.images)
        self._image = np.concatenate([np.arange(hold_out.images), drawn])
        self._names = [f"question {number}" for number in range(hold_out.questions)]
        self._relevant = [[f"image {image}"] for image in self._image]
        of_image = _OF_IMAGE**0.5 * rng.normal(size=hold_out.images)[self._image]
        of_question = (1 - _OF_IMAGE) ** 0.5 * rng.normal(size=hold_out.questions)
        self._right = hold_out.relevance + _RELEVANT_SPREAD * (of_image + of_question)
        strongest = rng.normal(_STRONGEST_MEAN, _STRONGEST_SPREAD, size=hold_out.questions)
        lower = rng.exponential(_NEXT_LOWER, size=(hold_out.questions, _WRONG)).cumsum(axis=1)
        self._wrong = strongest[:, None] - lower + lower[:, :1]
        self._bare_right = rng.normal(_BARE_MEAN, _BARE_SPREAD, size=hold_out.questions)
        self._bare_wrong = rng.normal(0, _BARE_SPREAD, size=(hold_out.questions, _WRONG))

    def version(self, name: str, gain: float) -> SimulatedScores:
        """One version: its relevances with captions decide, those without are a guard, which no gain changes."""
        right = self._right + gain * (_LEARNED - self._right) + _RELEVANT_NOISE * self._own()
        wrong = self._noisy(self._wrong + max(0.0, gain) * _LEARNED_WRONG)
        top = np.sort(wrong, axis=1)[:, : -_KEPT - 1 : -1]
        best = [
            sorted([(own, True), *((value, False) for value in others)], reverse=True)[:_KEPT]
            for own, others in zip(right.tolist(), top.tolist(), strict=True)
        ]
        relevance = [[(1 / (1 + math.exp(-logit)), correct) for logit, correct in images] for images in best]
        bare_right = self._bare_right + _RELEVANT_NOISE * self._own()
        rank = 1 + (self._noisy(self._bare_wrong) > bare_right[:, None]).sum(axis=1)
        return SimulatedScores(
            name,
            self._names,
            self._relevant,
            {
                WITH_CAPTIONS: [_f1([correct for logit, correct in images if logit >= 0]) for images in best],
                SOFTENED: softened_f1(relevance, [1] * len(relevance), 0.5),
                WITHOUT_CAPTIONS: (1 / rank).tolist(),
            },
            self._primary,
        )

    def _noisy(self, wrong: FloatArray) -> FloatArray:
        """The wrong candidates (N, C) in one version: the strongest by image and question, the others by themselves."""
        noise = self._hold_out.noise * self._rng.normal(size=wrong.shape)
        noise[:, 0] = self._own()
        return wrong + _WRONG_NOISE * noise

    def _own(self) -> FloatArray:
        """(N,) what only this version has: partly for each image, partly for each question."""
        shared = self._hold_out.shared
        of_image = self._rng.normal(size=self._hold_out.images)[self._image]
        own = shared**0.5 * of_image + (1 - shared) ** 0.5 * self._rng.normal(size=len(self._image))
        return np.asarray(self._hold_out.noise * own)


def _f1(kept: Sequence[bool]) -> float:
    """Of a question with one relevant image."""
    return 2 * sum(kept) / (len(kept) + 1)
