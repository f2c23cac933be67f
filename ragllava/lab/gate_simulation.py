"""How often the gate lets a version pass whose true quality is known: simulated hold-outs, the gate as it is.

The relevance of a simulated reranker is drawn: that of a question's relevant image, and those of its strongest wrong
candidates. What two versions have in common (the difficulty of an image and of a question) and what they do not is
drawn for each image and for each question. A better version separates the two by `gain` more logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ragllava.training.gate import PRIMARY_SHARES, SEPARATION, WITH_CAPTIONS, GateRules, decide
from ragllava.training.version_scores import WITHOUT_CAPTIONS, separation

FloatArray = npt.NDArray[np.float64]

GAINS = (-0.5, 0.0, 0.5, 1.0, 1.3, 2.0)  # logits, for the table of `ragllava simulate-gate`
_WRONG = 5  # the strongest wrong candidates of a question
_RELEVANT_MEAN = 2.25  # logits of relevance
_WRONG_MEAN = -4.5
_STRONGEST_MEAN = -1.8  # of the strongest wrong candidate, as a rule
_IMAGE_SPREAD = 1.8  # what all versions have in common
_WRONG_SPREAD = 2.0
_VERSION_SPREAD = 0.7  # what is different in every version


@dataclass(frozen=True, slots=True)
class HoldOut:
    """So many questions about so many images. `shared` is the share of a version's variance that questions about one
    image have in common."""

    questions: int = 52
    images: int = 30
    shared: float = 0.5


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
    """Of `systems` hold-outs, each with one champion, try up to `tries` versions that are better by `gain` logits.

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
        self._right = _RELEVANT_MEAN + _IMAGE_SPREAD * rng.normal(size=hold_out.images)[self._image]
        self._wrong = rng.normal(_WRONG_MEAN, _WRONG_SPREAD, size=(hold_out.questions, _WRONG))
        self._wrong[:, 0] += _STRONGEST_MEAN - _WRONG_MEAN + rng.normal(size=hold_out.images)[self._image]

    def version(self, name: str, gain: float) -> SimulatedScores:
        """One version: its relevances with captions decide, those without are a guard."""
        right, wrong = self._logits(gain)
        kept = 1 + np.clip((wrong >= 0).sum(axis=1), 0, 1)
        is_kept = (right >= 0) & ((wrong > right[:, None]).sum(axis=1) < 2)
        bare_right, bare_wrong = self._logits(gain)
        rank = 1 + (bare_wrong > bare_right[:, None]).sum(axis=1)
        return SimulatedScores(
            name,
            self._names,
            self._relevant,
            {
                WITH_CAPTIONS: np.where(is_kept, 2 / (kept + 1), 0.0).tolist(),
                SEPARATION: separation(right[:, None].tolist(), wrong.max(axis=1).tolist()),
                WITHOUT_CAPTIONS: (1 / rank).tolist(),
            },
            self._primary,
        )

    def _logits(self, gain: float) -> tuple[FloatArray, FloatArray]:
        """Of the relevant image (N,), and of the wrong candidates (N, C)."""
        right = self._right + gain / 2 + _VERSION_SPREAD * self._own()
        wrong = self._wrong + _VERSION_SPREAD * 0.5**0.5 * self._rng.normal(size=self._wrong.shape)
        wrong[:, 0] += _VERSION_SPREAD * 0.5**0.5 * self._own() - gain / 2
        return right, wrong

    def _own(self) -> FloatArray:
        """(N,) what only this version has: partly for each image, partly for each question."""
        shared = self._hold_out.shared
        of_image = self._rng.normal(size=self._hold_out.images)[self._image]
        return np.asarray(shared**0.5 * of_image + (1 - shared) ** 0.5 * self._rng.normal(size=len(self._image)))
