"""The gate on many hold-outs of fresh questions: real versions, judged as if these had been held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ragllava.lab.gate_trainings.results import SeedResult
from ragllava.training.contest import EvaluatedVersion, leave_out_doubtful
from ragllava.training.gate import WITH_CAPTIONS, decide
from ragllava.training.gate_report import GateRules
from ragllava.training.version_scores import RerankerScores

_PARTS = 3  # of a fresh archive, each about as large as a hold-out


@dataclass(frozen=True, slots=True)
class ReplayRates:
    """How often the gate lets one version take the other's place, by real scores.

    `questions` and `images` are the means of a hold-out; `champion` and `challenger` the mean F1.
    """

    hold_outs: int
    questions: float
    images: float
    champion: float
    challenger: float
    passed: float

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def replay(
    results: Sequence[SeedResult], pairs: Sequence[tuple[str, str]], rules: GateRules | None = None
) -> ReplayRates:
    """The gate's first try on all hold-outs of fresh shifted questions, for each of these (champion, challenger)."""
    reports = [
        decide(before, after, rules)
        for result in results
        for champion, challenger in pairs
        for before, after in hold_outs(result, champion, challenger)
    ]
    figures = [next(figure for figure in report.figures if figure.name == WITH_CAPTIONS) for report in reports]
    count = len(reports)
    return ReplayRates(
        hold_outs=count,
        questions=sum(figure.questions for figure in figures) / count,
        images=sum(figure.images for figure in figures) / count,
        champion=sum(figure.champion for figure in figures) / count,
        challenger=sum(figure.challenger for figure in figures) / count,
        passed=sum(report.passed for report in reports) / count,
    )


def replay_all(results: Sequence[SeedResult]) -> dict[str, ReplayRates]:
    """The rates of real improvements, of equal versions, and of what the improvements undo."""
    return {
        "untrained → trained": replay(results, [("champion", "challenger"), ("champion", "twin")]),
        "trained → its twin": replay(results, [("challenger", "twin"), ("twin", "challenger")]),
        "trained → untrained": replay(results, [("challenger", "champion"), ("twin", "champion")]),
    }


def hold_outs(
    result: SeedResult, champion: str, challenger: str
) -> Iterator[tuple[EvaluatedVersion, EvaluatedVersion]]:
    """Parts of the fresh shifted archives, so that questions about one picture are in one part."""
    for before, after in zip(result.fresh[champion], result.fresh[challenger], strict=True):
        if not before.is_shifted:
            continue
        parts = [_part(images) for images in before.scores.relevant]
        for part in range(_PARTS):
            rows = [row for row, own in enumerate(parts) if own == part]
            yield leave_out_doubtful(_subset(before.scores, rows), _subset(after.scores, rows))


def _part(images: Sequence[str]) -> int:
    return hashlib.sha256(images[0].encode()).digest()[0] * _PARTS // 256


def _subset(scores: RerankerScores, rows: Sequence[int]) -> RerankerScores:
    return replace(
        scores,
        questions=tuple(scores.questions[row] for row in rows),
        relevant=tuple(scores.relevant[row] for row in rows),
        conditions={name: tuple(values[row] for row in rows) for name, values in scores.conditions.items()},
    )
