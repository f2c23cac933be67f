"""Which measure scores the answers of a data set: ours, or the official one of its leaderboard."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ragllava.answer_text import exact_match
from ragllava.errors import UsageError
from ragllava.evaluation.datasets.records import EvaluationQuestion
from ragllava.evaluation.metrics import webqa_score
from ragllava.evaluation.official import OfficialWebqa, list_exact_match, list_f1
from ragllava.records import KnownAnswer

Score = Callable[[KnownAnswer, str], float]  # of an answer's text, in [0, 1]

_BETWEEN_ANSWERS = re.compile(r"\s*(?:[,;\n]|\band\b)\s*")


class Metric(StrEnum):
    """Whose measure scores answers."""

    OURS = "ours"
    OFFICIAL = "official"


@dataclass(frozen=True, slots=True)
class Scoring:
    """The measure `score` of the table, what it is called, and others that stand beside it, by their name."""

    name: str
    score: Score
    beside: Mapping[str, Score] = field(default_factory=dict)


def scoring_of(dataset_name: str, metric: Metric = Metric.OURS) -> Scoring:
    """The measures of a data set. UsageError: it has no official one, or what computes it is not installed."""
    if dataset_name == "webqa":
        ours = Scoring("WebQA's words, ours", _webqa_ours)
        if metric is Metric.OURS:
            return ours
        official = OfficialWebqa.load()
        score: Score = lambda known, text: official.score(text, known.answer, known.type)  # noqa: E731
        return Scoring(f"WebQA's official accuracy, {official.name}", score, {"ours": ours.score})
    if dataset_name == "multimodalqa":
        beside: dict[str, Score] = {"list F1": _list_f1}
        if metric is Metric.OFFICIAL:
            return Scoring("list EM, MultimodalQA's official", _list_em, {**beside, "exact match": _exact})
        return Scoring("exact match", _exact, beside)
    if metric is Metric.OFFICIAL:
        raise UsageError(f"{dataset_name} has no official measure of answers; omit --metric")
    return Scoring("exact match", _exact)


def answers_in(text: str, references: Sequence[str]) -> list[str]:
    """The answers that one text gives: several, between commas or "and", only where several are asked for."""
    if len(references) < 2:
        return [text]
    return [piece for piece in _BETWEEN_ANSWERS.split(text) if piece] or [text]


def _webqa_ours(known: KnownAnswer, text: str) -> float:
    return webqa_score(text, known.answer, known.type)


def _exact(known: KnownAnswer, text: str) -> float:
    return float(exact_match(text, known.answer))


def _list_em(known: KnownAnswer, text: str) -> float:
    references = _references(known)
    return list_exact_match(answers_in(text, references), references)


def _list_f1(known: KnownAnswer, text: str) -> float:
    references = _references(known)
    return list_f1(answers_in(text, references), references)


def _references(known: KnownAnswer) -> Sequence[str]:
    """All answers of the list; a question that does not come from a data set has one."""
    return (known.references if isinstance(known, EvaluationQuestion) else ()) or (known.answer,)
