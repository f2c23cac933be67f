"""How far two people who judged the same things agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of `count` things that two people called yes or no: the share in which they agree, and Cohen's kappa.

    `raw` is None for no thing. `kappa` is None where chance alone explains all: both said the same of everything.
    """

    count: int
    raw: float | None
    kappa: float | None


def agreement(pairs: Sequence[tuple[bool, bool]]) -> Agreement:
    """The agreement of pairs (first person, second person).

    Kappa is (observed − expected) / (1 − expected), where `expected` is the agreement of two people who say yes as
    often as these and know nothing (Cohen 1960, "A coefficient of agreement for nominal scales").

    >>> agreement([(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15)
    Agreement(count=50, raw=0.7, kappa=0.4)
    """
    count = len(pairs)
    if not count:
        return Agreement(0, None, None)
    observed = sum(first == second for first, second in pairs) / count
    yes = sum(first for first, _ in pairs) / count, sum(second for _, second in pairs) / count
    expected = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    kappa = None if expected == 1 else round((observed - expected) / (1 - expected), 4)
    return Agreement(count, round(observed, 4), kappa)
