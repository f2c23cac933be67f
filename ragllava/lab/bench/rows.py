"""A row of the bench, and the fair comparison of two ways to do the same work.

Both sides take turns, several rounds long, and each side's best round counts: these are rates of the machine when
nobody disturbs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """Between which limits a ratio should lie; None: no limit on that side."""

    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio lies between the limits."""
        return (self.at_least is None or ratio >= self.at_least) and (self.at_most is None or ratio <= self.at_most)

    def __str__(self) -> str:
        """`≥ 10`, `≤ 1.05`, or nothing."""
        limits = (("≥", self.at_least), ("≤", self.at_most))
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One comparison: ours and the reference in the same unit, and what their ratio should be.

    A row whose reference could not be measured here has `reference` None, and its note says why. `figures` hold
    what else was measured, by name with the unit in it.
    """

    group: str
    name: str
    reference_name: str
    unit: str  # `pairs/s`, `s`, `MiB`
    ours: float
    reference: float | None
    wanted: Wanted = field(default_factory=Wanted)
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours by the reference, in the row's unit."""
        return None if self.reference is None else self.ours / self.reference

    @property
    def is_reached(self) -> bool | None:
        """Whether the ratio is as wanted; None without a ratio or a wish."""
        ratio = self.ratio
        return None if ratio is None or self.wanted == Wanted() else self.wanted.is_met(ratio)

    def as_json(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return {
            "group": self.group,
            "name": self.name,
            "reference": self.reference_name,
            "unit": self.unit,
            "ours": self.ours,
            "reference_value": self.reference,
            "ratio": self.ratio,
            "wanted_at_least": self.wanted.at_least,
            "wanted_at_most": self.wanted.at_most,
            "reached": self.is_reached,
            "figures": self.figures,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Side:
    """One way to do the work: `run` does all `items` of it and returns a number for each."""

    items: int
    run: Callable[[], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Compared:
    """Items per second of both sides, and how far their results differ at most."""

    ours_per_s: float
    reference_per_s: float
    largest_difference: float


def compare(ours: Side, reference: Side, rounds: int = ROUNDS, every: int = 1) -> Compared:
    """Both sides in turns; the best round of each counts. The reference does every n-th item of ours."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    results: dict[bool, Sequence[float]] = {}
    for _ in range(rounds):
        for is_ours, side in ((True, ours), (False, reference)):
            seconds_taken, results[is_ours] = timed(side.run)
            seconds[is_ours].append(seconds_taken)
    difference = float(np.abs(np.subtract(results[True][::every], results[False])).max())
    return Compared(ours.items / min(seconds[True]), reference.items / min(seconds[False]), difference)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a piece of work takes, and what it returns."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
