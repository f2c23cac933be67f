"""Scores of answers that others gave to WebQA's questions, in a table as the public baseline has it; no model runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ragllava.errors import UsageError
from ragllava.evaluation.datasets.webqa_keywords import read_table
from ragllava.evaluation.metrics import means_by
from ragllava.evaluation.paper_table import markdown_table, percent
from ragllava.evaluation.scoring import Metric, scoring_of
from ragllava.json_records import rounded
from ragllava.records import KnownAnswer

_ALL = "all"


@dataclass(frozen=True, slots=True)
class GivenAnswers:
    """The mean scores by category, `all` first, of each measure; `with_keywords` of the questions have keywords."""

    path: Path
    counts: dict[str, int]
    scores: dict[str, dict[str, float]]
    with_keywords: int

    def as_json(self) -> dict[str, Any]:
        """Shares with four decimals."""
        scores: dict[str, Any] = rounded(self.scores)
        return {"file": str(self.path), "questions": self.counts, "with_keywords": self.with_keywords, "scores": scores}

    def as_text(self) -> str:
        """A table of categories and measures, in percent."""
        head = ["", "questions", *self.scores]
        lines = [
            [category, str(count), *(percent(means[category]) for means in self.scores.values())]
            for category, count in self.counts.items()
        ]
        return (
            f"{self.path.name}: {self.with_keywords} of {self.counts[_ALL]} questions have keywords; shares in percent"
            f"\n\n{markdown_table([head, *lines])}"
        )


def score_given(path: Path, metric: Metric) -> GivenAnswers:
    """Score the first answer of each row, by our measure and by `metric`.

    UsageError: the official measure cannot be computed here, or the table has no row.
    """
    rows = read_table(path)
    if not rows:
        raise UsageError(f"{path} has no row below its head")
    measures = {metric.value: scoring_of("webqa", metric).score, Metric.OURS.value: scoring_of("webqa").score}
    categories = [row.category for row in rows]
    counts = {_ALL: len(rows)} | {category: categories.count(category) for category in sorted(set(categories))}
    scores = {}
    for name, score in measures.items():
        values = [score(KnownAnswer(row.guid, row.reference, row.category, ()), row.output) for row in rows]
        scores[name] = {_ALL: fmean(values)} | means_by(categories, values)
    return GivenAnswers(path, counts, scores, sum(row.keywords is not None for row in rows))
