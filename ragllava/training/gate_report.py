"""What the gate demands of a version, and what it reports of one. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ragllava.json_records import rounded, to_json


@dataclass(frozen=True, slots=True)
class GateRules:
    """When a challenger passes.

    Better: equal versions would differ so much in a primary condition with a probability of at most the condition's
    share of the error of this try, or in all primary conditions of at most the error of this try. All tries together
    have the error 1 − `confidence`; the first one gets `first_share` of it, and try k of the others 1 / ((k − 1) · k)
    of what is left. Worse, in any condition: the mean fell by more than `tolerance`, and it is below 0 with
    `guard_confidence`. Both are needed. The mean alone would refuse every second of equal versions where answers are a
    matter of luck (no captions). Significance alone would refuse falls of no weight on a large hold-out. A guard asks
    for less proof than a primary condition: a fall that it misses costs answers, a false alarm only a training; so of
    equal versions a guard refuses up to one in ten. On fewer than `fewest_questions` nothing can be shown.
    """

    confidence: float = 0.95
    guard_confidence: float = 0.9
    tolerance: float = 0.01
    fewest_questions: int = 20
    first_share: float = 0.85
    flips: int = 10_000
    seed: int = 0

    def error(self, tried: int) -> float:
        """The probability with which equal versions may pass after `tried` others were tried against the champion."""
        error = 1 - self.confidence
        if tried == 0:
            return error * self.first_share
        return error * (1 - self.first_share) / (tried * (tried + 1))


@dataclass(frozen=True, slots=True)
class ConditionFigures:
    """One condition: the means of both versions and their difference, challenger less champion.

    `images` counts those that the questions are about, `changed` the questions with different scores. `low` and `high`
    are one-sided bounds of the difference at the confidence of a guard. `chance` is the probability with which equal
    versions differ so much, None for a guard. `broken` tells that this condition refuses.
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
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class GateReport:
    """The decision. `reasons` are sentences for people: why it was refused, else what it is better in.

    `tried` counts the versions that were tried against this champion before; `error` is the probability with which
    equal versions pass this try.
    """

    passed: bool
    reasons: tuple[str, ...]
    champion: str
    challenger: str
    rules: GateRules
    figures: tuple[ConditionFigures, ...] = field(default=())
    tried: int = 0
    error: float = 0.05

    def as_json(self) -> dict[str, Any]:
        """As stored beside a version; figures with four decimals."""
        return {**to_json(self), "figures": rounded(to_json(self.figures))}
