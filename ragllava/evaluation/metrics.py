"""How good an answer job was: retrieval figures, answer scores, and the figures of a whole job (docs/method.md 7).

Every score is in [0, 1], greater is better. A share of nothing (no picture kept, none labelled) counts as 0.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from ragllava.answer_text import exact_match, normalise_answer
from ragllava.errors import UsageError
from ragllava.json_records import rounded
from ragllava.records import AnswerStatus, Candidate, KnownAnswer, by_relevance, by_retrieval
from ragllava.stages.results.results import ResultRow

Key = TypeVar("Key", str, int)

RETRIEVAL_RECALL_DEPTHS = (1, 2, 5, 20)
RERANKED_RECALL_DEPTHS = (1, 2)

_COLOR_WORDS = (
    "red orange yellow green blue purple violet pink brown black white gray grey silver gold golden beige tan ivory "
    "cream maroon crimson turquoise teal cyan magenta bronze copper rainbow transparent blond blonde"
)
_SHAPE_WORDS = (
    "round circle circular oval ellipse sphere spherical ball globe ring square rectangle rectangular cube triangle "
    "triangular pyramid pyramidal pointed cone conical cylinder cylindrical tube dome domed arch arched crescent star "
    "cross heart diamond pentagon hexagon hexagonal octagon octagonal spiral wave wavy curve curved rounded flat "
    "straight stepped semicircle bell teardrop flower"
)


@dataclass(frozen=True, slots=True)
class RetrievalFigures:
    """Hits among what was kept and what was labelled, summed over all questions before any division."""

    hits: int
    kept: int
    labelled: int

    @property
    def precision(self) -> float:
        """Which share of the kept pictures is labelled."""
        return _share(self.hits, self.kept)

    @property
    def recall(self) -> float:
        """Which share of the labelled pictures is kept."""
        return _share(self.hits, self.labelled)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _share(2 * self.hits, self.kept + self.labelled)


def retrieval_at(k: int, ranked: Sequence[Sequence[str]], relevant: Sequence[Collection[str]]) -> RetrievalFigures:
    """Figures for the first k of each ranked list, micro-averaged as in the reference implementation.

    `ranked` and `relevant` hold one entry per question, in the same order; a list may be shorter than k (cut by
    the threshold) or empty.
    """
    hits = kept = labelled = 0
    for sources, right in zip(ranked, relevant, strict=True):
        first = set(sources[:k])
        hits += len(first & set(right))
        kept += len(first)
        labelled += len(set(right))
    return RetrievalFigures(hits, kept, labelled)


def webqa_score(answer: str, reference: str, category: str) -> float:
    """WebQA's measure for one answer.

    For the categories color, shape, number and YesNo: F1 of the distinct words of that category in the two
    texts; a reference without any such word is compared by all its words, as the reference implementation does.
    For any other category: which share of the reference's distinct words the answer holds. The words are those of
    `normalise_answer`.
    """
    given, wanted = (set(normalise_answer(text).split()) for text in (answer, reference))
    belongs = _CATEGORY_TESTS.get(category)
    if belongs is None:
        return _share(len(given & wanted), len(wanted))
    category_words = {word for word in wanted if belongs(word)}
    if category_words:
        given, wanted = {word for word in given if belongs(word)}, category_words
    return _share(2 * len(given & wanted), len(given) + len(wanted))


_CATEGORY_TESTS: Mapping[str, Callable[[str], object]] = {
    "color": frozenset(_COLOR_WORDS.split()).__contains__,
    "shape": frozenset(_SHAPE_WORDS.split()).__contains__,
    "number": re.compile(r"\d+(\.\d+)?").fullmatch,
    "YesNo": frozenset({"yes", "no"}).__contains__,
}


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """Figures of a group of questions. Recalls by depth k, as shares; `candidate_recall` is that of all candidates.

    `failed` counts results that are failed, dead, expired or cancelled, `missing` questions without a result:
    questions = answered + no_evidence + failed + missing, and all but the answered count as wrong.
    """

    questions: int
    answered: int
    no_evidence: int
    failed: int
    missing: int
    retrieval_recall: Mapping[int, float]
    candidate_recall: float
    reranked_recall: Mapping[int, float]
    answer_accuracy: float

    def by_name(self) -> dict[str, float]:
        """All figures in one level, with names such as retrieval_recall_at_5."""
        counts = ("questions", "answered", "no_evidence", "failed", "missing")
        return {
            **{name: getattr(self, name) for name in counts},
            **{f"retrieval_recall_at_{k}": share for k, share in self.retrieval_recall.items()},
            "candidate_recall": self.candidate_recall,
            **{f"reranked_recall_at_{k}": share for k, share in self.reranked_recall.items()},
            "answer_accuracy": self.answer_accuracy,
        }


@dataclass(frozen=True, slots=True)
class TypeScore:
    """Answers to one type of question; `majority_share`: what always giving the commonest answer would score."""

    questions: int
    score: float
    majority_share: float


@dataclass(frozen=True, slots=True)
class JobFigures:
    """Figures of a job: over all known questions, over those of one and of two pictures, and by type.

    A group without questions is None.
    """

    all: GroupFigures
    one_image: GroupFigures | None
    two_image: GroupFigures | None
    by_type: Mapping[str, TypeScore]

    def as_json(self) -> dict[str, Any]:
        """The figures of all questions at the top, the groups below them; shares with four decimals."""
        by_type = {
            name: {
                "questions": kind.questions,
                "right": round(kind.score * kind.questions),
                "accuracy": kind.score,
                "majority_share": kind.majority_share,
            }
            for name, kind in self.by_type.items()
        }
        one, two = (group and group.by_name() for group in (self.one_image, self.two_image))
        values: dict[str, Any] = rounded(self.all.by_name() | {"one_image": one, "two_image": two, "by_type": by_type})
        return values


def score_job(questions: Sequence[KnownAnswer], rows: Iterable[ResultRow]) -> JobFigures:
    """Compares a job's results with the known answers.

    Sources of candidates are compared with `relevant` as they stand; of candidates with equal scores the one that was
    retrieved first ranks first. Results of unknown questions are left out. UsageError: nothing is known, or a question
    has two results.
    """
    if not questions:
        raise UsageError("no known answers to compare the results with")
    by_id: dict[str | None, ResultRow] = {}
    for row in rows:
        if row.custom_id in by_id:
            raise UsageError(f"question {row.custom_id} has two results; compare one job at a time")
        by_id[row.custom_id] = row
    one_image, two_image = ([known for known in questions if len(known.relevant) == count] for count in (1, 2))
    scores = [float(is_right(by_id.get(known.custom_id), known)) for known in questions]
    return JobFigures(
        all=_group_figures(questions, by_id),
        one_image=_group_figures(one_image, by_id) if one_image else None,
        two_image=_group_figures(two_image, by_id) if two_image else None,
        by_type=scores_by_type(questions, scores, lambda known, text: exact_match(text, known.answer)),
    )


def is_right(row: ResultRow | None, known: KnownAnswer) -> bool:
    """Whether there is a result and it is the right answer."""
    answer = row.answer if row is not None and row.status is AnswerStatus.ANSWERED else None
    return answer is not None and exact_match(answer, known.answer)


def scores_by_type(
    questions: Sequence[KnownAnswer], scores: Sequence[float], score_text: Callable[[KnownAnswer, str], float]
) -> dict[str, TypeScore]:
    """The mean scores of the types of question in order of their names; `score_text` scores the commonest answer."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        answers[question.type][normalise_answer(question.answer)] += 1
    commonest = {name: counts.most_common(1)[0][0] for name, counts in answers.items()}
    types = [question.type for question in questions]
    majority_shares = means_by(types, [score_text(question, commonest[question.type]) for question in questions])
    return {
        name: TypeScore(answers[name].total(), score, majority_shares[name])
        for name, score in means_by(types, scores).items()
    }


def means_by(keys: Sequence[Key], values: Sequence[float]) -> dict[Key, float]:
    """The mean of the values of each key, in the order of the keys."""
    groups: dict[Key, list[float]] = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        groups[key].append(value)
    return {key: fmean(group) for key, group in sorted(groups.items())}


def _group_figures(questions: Sequence[KnownAnswer], by_id: Mapping[str | None, ResultRow]) -> GroupFigures:
    rows = [by_id.get(known.custom_id) for known in questions]
    statuses = Counter(row.status if row else None for row in rows)
    answered, no_evidence = statuses[AnswerStatus.ANSWERED], statuses[AnswerStatus.NO_EVIDENCE]

    every = max((len(row.candidates) for row in rows if row), default=0)

    def recall(order: Callable[[Iterable[Candidate]], list[Candidate]], depths: Iterable[int]) -> dict[int, float]:
        ranked = [[candidate.image.source for candidate in order(row.candidates if row else ())] for row in rows]
        relevant = [known.relevant for known in questions]
        return {k: retrieval_at(k, ranked, relevant).recall for k in depths}

    return GroupFigures(
        questions=len(rows),
        answered=answered,
        no_evidence=no_evidence,
        failed=len(rows) - answered - no_evidence - statuses[None],
        missing=statuses[None],
        retrieval_recall=recall(by_retrieval, RETRIEVAL_RECALL_DEPTHS),
        candidate_recall=recall(by_retrieval, [every])[every],
        reranked_recall=recall(by_relevance, RERANKED_RECALL_DEPTHS),
        answer_accuracy=_share(sum(map(is_right, rows, questions)), len(rows)),
    )


def _share(part: float, total: float) -> float:
    return part / total if total else 0.0
