"""What the trainings of one seed gave, and what the gate says on hold-outs of fresh questions. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ragllava.training.gate import SOFTENED, WITH_CAPTIONS
from ragllava.training.version_scores import RerankerScores


@dataclass(frozen=True, slots=True)
class JudgedVersion:
    """A trained version at its own η: the gate's report, and its scores on the held-out questions."""

    threshold: float
    report: Mapping[str, Any]
    held_out: RerankerScores


@dataclass(frozen=True, slots=True)
class FreshScores:
    """A version's scores on one archive that it was not trained on."""

    archive: str
    scores: RerankerScores

    @property
    def is_shifted(self) -> bool:
        """Whether it is of the kind that was labelled."""
        return self.archive.startswith("fresh")


@dataclass(frozen=True, slots=True)
class SeedResult:
    """The gate's `reports` on the held-out questions, by challenger, and the scores of all versions on fresh ones."""

    seed: int
    labelled: int
    trained_on: int
    examples: int
    calibration: int
    reports: Mapping[str, Mapping[str, Any]]
    fresh: Mapping[str, Sequence[FreshScores]]

    def mean(self, version: str, condition: str, *, shifted: bool = True) -> float:
        """A version's mean on the fresh questions."""
        values = (
            fmean(fresh.scores.by_condition[condition]) for fresh in self.fresh[version] if fresh.is_shifted == shifted
        )
        return fmean(values)

    def primary_figures(self, challenger: str) -> list[Mapping[str, Any]]:
        """The gate's figures of the conditions that decide: F1, as it is and softened around η."""
        return [figure for figure in self.reports[challenger]["figures"] if figure["is_primary"]]

    def as_json(self) -> dict[str, Any]:
        """The figures for people."""
        fresh = {
            version: {
                "f1": round(self.mean(version, WITH_CAPTIONS), 4),
                "softened_f1": round(self.mean(version, SOFTENED), 4),
                "in_domain_f1": round(self.mean(version, WITH_CAPTIONS, shifted=False), 4),
                "threshold": round(self.fresh[version][0].scores.threshold, 4),
            }
            for version in self.fresh
        }
        counts = {name: getattr(self, name) for name in ("seed", "labelled", "trained_on", "examples", "calibration")}
        return {**counts, "gate": dict(self.reports), "fresh": fresh}
