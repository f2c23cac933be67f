"""A table like the paper's: retrieval before and after reranking, under each threshold, and answers with noise.

Make rows with `ranked_row` and `threshold_row`; a PaperRow may also hold answers alone. `paper_table` sets them in
Markdown, `as_json` of each row is the same for programs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ragllava.evaluation.metrics import RetrievalFigures, retrieval_at
from ragllava.json_records import rounded

RECALL_DEPTHS = (1, 2, 5, 10, 20)

_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class CandidateFigures:
    """The recall of all candidates, and how many a question has and how many of them were reranked, on average.

    `reranked` is None for a row of the retrieval alone.
    """

    recall_of_all: float
    candidates: float
    reranked: float | None


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One line of the table; what was not measured is empty or None.

    `recall_at` maps a depth to the recall of the first so many images. `kept` are the figures of what stays as
    evidence: the best N, and of these the ones with relevance ≥ `threshold`. `answer_score` is in [0, 1], and so are
    `other_scores`, those by other measures under their names. `candidates` describe what the row was ranked from.
    """

    label: str
    recall_at: Mapping[int, float] = field(default_factory=dict)
    kept: RetrievalFigures | None = None
    threshold: float | None = None
    answer_score: float | None = None
    candidates: CandidateFigures | None = None
    other_scores: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Flat, with names such as recall_at_5; four decimals, null for what was not measured."""
        shares: dict[str, float | None] = {f"recall_at_{k}": share for k, share in self.recall_at.items()}
        shares |= {name: getattr(self.kept, name, None) for name in ("precision", "recall", "f1")}
        shares["answer_score"] = self.answer_score
        shares |= {f"answer_{name.replace(' ', '_')}": score for name, score in self.other_scores.items()}
        shares |= asdict(self.candidates) if self.candidates else {}
        return {"label": self.label, "threshold": self.threshold, **rounded(shares)}


def ranked_row(
    label: str,
    ranked: Sequence[Sequence[str]],
    relevant: Sequence[Collection[str]],
    top_n: int,
    answer_score: float | None = None,
) -> PaperRow:
    """A row of whole rankings, before or after reranking, of which the best `top_n` are kept.

    `ranked` and `relevant` hold one entry per question, in the same order.
    """
    recall_at = {k: retrieval_at(k, ranked, relevant).recall for k in RECALL_DEPTHS}
    return PaperRow(label, recall_at, retrieval_at(top_n, ranked, relevant), None, answer_score)


def threshold_row(
    label: str,
    threshold: float,
    relevances: Sequence[Mapping[str, float]],
    relevant: Sequence[Collection[str]],
    top_n: int,
    answer_score: float | None = None,
) -> PaperRow:
    """A row of what a threshold leaves: of the best `top_n` candidates those with relevance ≥ `threshold`.

    `relevances` maps, for each question, its candidates to their relevance; equal ones rank in their order there.
    """
    ranked = [
        [image_id for image_id, _ in sorted(scored.items(), key=lambda pair: -pair[1]) if scored[image_id] >= threshold]
        for scored in relevances
    ]
    return PaperRow(label, {}, retrieval_at(top_n, ranked, relevant), threshold, answer_score)


def paper_table(rows: Sequence[PaperRow]) -> str:
    """The rows as a Markdown table that reads well as plain text too; shares in percent, as published."""
    others = list(dict.fromkeys(name for row in rows for name in row.other_scores))
    head = ["", "η", *(f"R@{k}" for k in RECALL_DEPTHS), "precision", "recall", "F1", "answers", *others]
    return markdown_table(
        [head, *([*_cells(row), *(percent(row.other_scores.get(name)) for name in others)] for row in rows)]
    )


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, also readable as plain text; the first line is the head, labels are left, numbers right."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join(f"| {' | '.join(_aligned(line, widths))} |\n" for line in (lines[0], rule, *lines[1:]))


def _cells(row: PaperRow) -> list[str]:
    kept = row.kept
    return [
        row.label,
        _ABSENT if row.threshold is None else f"{row.threshold:.3f}",
        *(percent(row.recall_at.get(k)) for k in RECALL_DEPTHS),
        *(percent(share) for share in ((kept.precision, kept.recall, kept.f1) if kept else (None, None, None))),
        percent(row.answer_score),
    ]


def average(value: float | None) -> str:
    """With one decimal; a dash for what was not measured."""
    return _ABSENT if value is None else f"{value:.1f}"


def percent(share: float | None) -> str:
    """A share in percent, as `average`."""
    return average(None if share is None else 100 * share)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Labels to the left, numbers to the right."""
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
