"""How far two people who judged the same things agree."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of `count` things that two people called yes or no: the share in which they agree, and Cohen's kappa.

    `raw` is None for no thing. `kappa` is None where chance alone explains all: both said the same of everything.
    """

    count: int
    raw: float | None
    kappa: float | None


def agreement(both_yes: int, only_first: int, only_second: int, both_no: int) -> Agreement:
    """The agreement of two people, by the number of things that both, only one, and neither of them called yes.

    Kappa is (observed − expected) / (1 − expected), where `expected` is the agreement of two people who say yes as
    often as these and know nothing (Cohen 1960, "A coefficient of agreement for nominal scales").

    >>> agreement(20, 5, 10, 15)
    Agreement(count=50, raw=0.7, kappa=0.4)
    """
    count = both_yes + only_first + only_second + both_no
    if not count:
        return Agreement(0, None, None)
    observed = (both_yes + both_no) / count
    yes = (both_yes + only_first) / count, (both_yes + only_second) / count
    expected = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    kappa = None if expected == 1 else round((observed - expected) / (1 - expected), 4)
    return Agreement(count, round(observed, 4), kappa)
