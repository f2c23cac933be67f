"""A row of the benchmark, and the comparison of two ways to do the same work.

Both ways run in turns for several rounds, and the best round of each counts: this is the speed of an idle machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Work = Callable[[], Sequence[float]]  # processes all items and returns a number for each

ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """The limit of a ratio, on one side or on neither."""

    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        """`≥ 10`, `≤ 1.05`, or nothing."""
        limits = (("≥", self.at_least), ("≤", self.at_most))
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One comparison: our value and that of the reference in the same unit, and the wanted ratio.

    `reference` names what is compared with. `reference_value` is None where it could not be measured; `note` says why.
    `figures` are additional measurements, by name with the unit in it.
    """

    group: str
    name: str
    reference: str
    unit: str  # `pairs/s`, `s`, `MiB`
    ours: float
    reference_value: float | None
    wanted: Wanted = field(default_factory=Wanted)
    figures: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Our value divided by that of the reference."""
        return None if self.reference_value is None else self.ours / self.reference_value

    @property
    def margin(self) -> float | None:
        """How many times better than wanted the ratio is: 1 at the limit, below 1 missed. None where nothing is wanted
        or nothing could be measured."""
        if not self.ratio:
            return None
        lower, upper = self.wanted.at_least, self.wanted.at_most
        margins = [] if lower is None else [self.ratio / lower]
        margins += [] if upper is None else [upper / self.ratio]
        return min(margins, default=None)

    @property
    def is_reached(self) -> bool | None:
        """Whether the ratio is within the wanted limit; None without a margin."""
        return None if self.margin is None else self.margin >= 1

    def as_json(self) -> dict[str, Any]:
        """All fields, the ratio and whether it is reached, for `--json`."""
        values = asdict(self)
        limits = {f"wanted_{name}": limit for name, limit in values.pop("wanted").items()}
        return values | limits | {"ratio": self.ratio, "reached": self.is_reached}


@dataclass(frozen=True, slots=True)
class Speeds:
    """Items per second of both ways, and the largest difference of their results."""

    ours_per_s: float
    reference_per_s: float
    largest_difference: float


def compare(ours: Work, reference: Work, rounds: int = ROUNDS, every: int = 1) -> Speeds:
    """Run both in turns; the best round of each counts. The reference processes every n-th item of ours."""
    runs = [(timed(ours), timed(reference)) for _ in range(rounds)]
    (ours_s, values), (reference_s, expected) = (min(side, key=lambda run: run[0]) for side in zip(*runs, strict=True))
    difference = float(np.abs(np.subtract(values[::every], expected)).max())
    return Speeds(len(values) / ours_s, len(expected) / reference_s, difference)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """The seconds that `work` takes, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
