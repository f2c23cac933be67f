"""What an evaluation found, as tables for people and figures for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from ragllava.evaluation.metrics import TypeScore, retrieval_at, scores_by_type
from ragllava.evaluation.paper_table import (
    RECALL_DEPTHS,
    CandidateFigures,
    PaperRow,
    average,
    markdown_table,
    paper_table,
    percent,
    ranked_row,
    threshold_row,
)
from ragllava.evaluation.runs import ANSWER_ROWS, RETRIEVAL_ROWS, RunArm
from ragllava.evaluation.scoring import Score, Scoring
from ragllava.json_records import rounded, to_json
from ragllava.records import Answer, AnswerStatus, KnownAnswer


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The rows of the table by group of questions (`all`, `one image`, `two images`) and the scores by type.

    `sizes` counts the questions of each group. `by_type` and `outcomes` (answered, no_evidence, failed) are by the
    label of the row that they belong to.
    """

    sizes: Mapping[str, int]
    rows: Mapping[str, Sequence[PaperRow]]
    by_type: Mapping[str, Mapping[str, TypeScore]]
    outcomes: Mapping[str, Mapping[str, int]]

    def row(self, group: str, label: str) -> PaperRow | None:
        """The row with this label, if there is one."""
        return next((row for row in self.rows[group] if row.label == label), None)

    def as_json(self) -> dict[str, Any]:
        """Groups under `rows`, each a list of PaperRow.as_json; shares with four decimals."""
        return {
            "sizes": {group.replace(" ", "_"): size for group, size in self.sizes.items()},
            "rows": {group.replace(" ", "_"): [row.as_json() for row in rows] for group, rows in self.rows.items()},
            "by_type": rounded(to_json(self.by_type)),
            "outcomes": to_json(self.outcomes),
        }

    def as_text(self) -> str:
        """The table of each group, then the answers by type."""
        parts = [f"{group} ({self.sizes[group]})\n\n{paper_table(rows)}" for group, rows in self.rows.items()]
        if self.by_type:
            parts.append(f"answers by type\n\n{_type_table(self.by_type)}")
        return "\n".join(parts)


def style_table(by_style: Mapping[str, RunFigures]) -> str:
    """The ways of retrieval side by side for each style and each number of pictures, in Markdown and in percent.

    For each way the recall of the first candidates and of all, how many candidates a question has and how many of them
    were reranked, and the answers at the adaptive η.
    """
    head = ["", "questions", "retrieval", f"R@{RECALL_DEPTHS[-1]}", "R@all", "candidates", "reranked", "answers"]
    lines = [head]
    for style, figures in by_style.items():
        groups = [group for group in figures.rows if group != "all"] or ["all"]
        for group in groups:
            name = style if group == "all" else f"{style}, {group}"
            for retrieval, label in RETRIEVAL_ROWS.items():
                row = figures.row(group, label)
                if row is not None:
                    answered = figures.row(group, ANSWER_ROWS.get(retrieval, ""))
                    lines.append([name, str(figures.sizes[group]), retrieval.value, *_style_cells(row, answered)])
    return markdown_table(lines)


def _style_cells(retrieved: PaperRow, answered: PaperRow | None) -> list[str]:
    candidates, reranked = retrieved.candidates, answered.candidates if answered else None
    return [
        percent(retrieved.recall_at.get(RECALL_DEPTHS[-1])),
        percent(candidates.recall_of_all if candidates else None),
        average(candidates.candidates if candidates else None),
        average(reranked.reranked if reranked else None),
        percent(answered.answer_score if answered else None),
    ]


def figures_of(scoring: Scoring, questions: Sequence[KnownAnswer], arms: Sequence[RunArm], top_n: int) -> RunFigures:
    """The figures of all arms. `questions` have their labelled images as `relevant`, in the order of the arms."""
    answered = [arm for arm in arms if arm.answers is not None]
    scores = {arm.label: score_answers(scoring.score, questions, arm.answers or ()) for arm in answered}
    beside = {
        arm.label: {name: score_answers(score, questions, arm.answers or ()) for name, score in scoring.beside.items()}
        for arm in answered
    }
    groups = {"all": list(range(len(questions)))}
    for title, count in (("one image", 1), ("two images", 2)):
        numbers = [number for number, question in enumerate(questions) if len(question.relevant) == count]
        if 0 < len(numbers) < len(questions):
            groups[title] = numbers
    return RunFigures(
        sizes={title: len(numbers) for title, numbers in groups.items()},
        rows={
            title: [
                replace(
                    _row(arm, scores.get(arm.label), questions, numbers, top_n),
                    other_scores={
                        name: fmean(own_scores[number] for number in numbers)
                        for name, own_scores in beside.get(arm.label, {}).items()
                    },
                )
                for arm in arms
            ]
            for title, numbers in groups.items()
        },
        by_type={label: scores_by_type(questions, own_scores, scoring.score) for label, own_scores in scores.items()},
        outcomes={arm.label: Counter(a.status.value for a in arm.answers or ()) for arm in answered},
    )


def score_answers(score: Score, questions: Sequence[KnownAnswer], answers: Sequence[Answer]) -> list[float]:
    """The score of each answer, in [0, 1]; 0 where there is none."""
    return [
        score(question, answer.text) if answer.status is AnswerStatus.ANSWERED and answer.text is not None else 0.0
        for question, answer in zip(questions, answers, strict=True)
    ]


def _row(
    arm: RunArm,
    scores: Sequence[float] | None,
    questions: Sequence[KnownAnswer],
    numbers: Sequence[int],
    top_n: int,
) -> PaperRow:
    """The row of the questions with these numbers."""
    score = None if scores is None else fmean(scores[number] for number in numbers)
    if not arm.ranked:
        return PaperRow(arm.label, answer_score=score or 0.0)
    return replace(_ranked_row(arm, score, questions, numbers, top_n), candidates=_candidates(arm, questions, numbers))


def _ranked_row(
    arm: RunArm, score: float | None, questions: Sequence[KnownAnswer], numbers: Sequence[int], top_n: int
) -> PaperRow:
    relevant = [questions[number].relevant for number in numbers]
    ranked = [arm.ranked[number] for number in numbers]
    if arm.threshold is not None:
        relevances = [question.relevances for question in ranked]
        return threshold_row(arm.label, arm.threshold, relevances, relevant, top_n, score)
    orders = [question.retrieval_ranking if arm.by_retrieval else question.ranking for question in ranked]
    return ranked_row(arm.label, orders, relevant, top_n, score)


def _candidates(arm: RunArm, questions: Sequence[KnownAnswer], numbers: Sequence[int]) -> CandidateFigures:
    ranked = [arm.ranked[number] for number in numbers]
    relevant = [questions[number].relevant for number in numbers]
    counts = [len(question.candidates) for question in ranked]
    return CandidateFigures(
        recall_of_all=retrieval_at(max(counts), [question.ranking for question in ranked], relevant).recall,
        candidates=fmean(counts),
        reranked=None if arm.by_retrieval else fmean(len(question.relevances) for question in ranked),
    )


def _type_table(by_type: Mapping[str, Mapping[str, TypeScore]]) -> str:
    """In Markdown, in percent: a column for each type, a row for each arm below what needs no picture."""
    first = next(iter(by_type.values()))
    lines = [
        ["", *first],
        ["questions", *(str(score.questions) for score in first.values())],
        ["always the commonest answer", *(f"{100 * score.majority_share:.1f}" for score in first.values())],
        *([label, *(f"{100 * score.score:.1f}" for score in scores.values())] for label, scores in by_type.items()),
    ]
    return markdown_table(lines)
