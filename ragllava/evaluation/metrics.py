"""How good an answer job was: retrieval figures, answer scores, and the figures of a whole job (docs/method.md 7).

Every score is in [0, 1], greater is better. A share of nothing (no picture kept, none labelled) counts as 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ragllava.answer_text import exact_match, normalise_answer
from ragllava.errors import UsageError
from ragllava.json_records import rounded, to_json
from ragllava.records import AnswerStatus, KnownAnswer

RETRIEVAL_RECALL_DEPTHS = (1, 2, 5, 20)
RERANKED_RECALL_DEPTHS = (1, 2)

_COLOR_WORDS = (
    "red orange yellow green blue purple violet pink brown black white gray grey silver gold golden beige tan ivory "
    "cream maroon crimson turquoise teal cyan magenta bronze copper rainbow transparent blond blonde"
)
_SHAPE_WORDS = (
    "round circle circular oval ellipse sphere spherical ball globe ring square rectangle rectangular cube triangle "
    "triangular pyramid pyramidal pointed cone conical cylinder cylindrical tube dome arch crescent star cross heart "
    "diamond pentagon hexagon hexagonal octagon octagonal spiral wave wavy curve flat straight stepped semicircle "
    "bell teardrop flower"
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
    For any other category: which share of the reference's distinct words the answer holds. Instead of a
    lemmatiser, a plural ending is taken off each word of both texts; other inflections stay different.
    """
    given, wanted = _lemmas(answer), _lemmas(reference)
    belongs = _CATEGORY_TESTS.get(category)
    if belongs is None:
        return _share(len(given & wanted), len(wanted))
    category_words = {word for word in wanted if belongs(word)}
    if category_words:
        given, wanted = {word for word in given if belongs(word)}, category_words
    return _share(2 * len(given & wanted), len(given) + len(wanted))


def _is_number(word: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", word) is not None


_CATEGORY_TESTS: Mapping[str, Callable[[str], bool]] = {
    "color": frozenset(_COLOR_WORDS.split()).__contains__,
    "shape": frozenset(_SHAPE_WORDS.split()).__contains__,
    "number": _is_number,
    "YesNo": frozenset({"yes", "no"}).__contains__,
}


def _lemmas(text: str) -> set[str]:
    return {_without_plural_ending(word) for word in normalise_answer(text).split()}


def _without_plural_ending(word: str) -> str:
    """A plain guess: windows → window, boxes → box, cherries → cherry; glass, bus and iris stay as they are."""
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word[:-1]


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """Figures of a group of questions. Recalls by depth k, as shares.

    `failed` counts results that are failed, dead or cancelled, `missing` questions without a result:
    questions = answered + no_evidence + failed + missing, and all but the answered count as wrong.
    """

    questions: int
    answered: int
    no_evidence: int
    failed: int
    missing: int
    retrieval_recall: Mapping[int, float]
    reranked_recall: Mapping[int, float]
    answer_accuracy: float

    def as_json(self) -> dict[str, Any]:
        """Flat, with names such as retrieval_recall_at_5; shares with four decimals."""
        return {
            **{name: getattr(self, name) for name in ("questions", "answered", "no_evidence", "failed", "missing")},
            **{f"retrieval_recall_at_{k}": round(share, 4) for k, share in self.retrieval_recall.items()},
            **{f"reranked_recall_at_{k}": round(share, 4) for k, share in self.reranked_recall.items()},
            "answer_accuracy": round(self.answer_accuracy, 4),
        }


@dataclass(frozen=True, slots=True)
class TypeFigures:
    """Accuracy on one type of question. `majority_share`: what always giving its most common answer would score."""

    questions: int
    right: int
    accuracy: float
    majority_share: float


@dataclass(frozen=True, slots=True)
class JobFigures:
    """Figures of a job: over all known questions, over those of one and of two pictures, and by type.

    A group without questions is None.
    """

    all: GroupFigures
    one_image: GroupFigures | None
    two_image: GroupFigures | None
    by_type: Mapping[str, TypeFigures]

    def as_json(self) -> dict[str, Any]:
        """The figures of all questions at the top, the groups below them."""
        return {
            **self.all.as_json(),
            "one_image": self.one_image and self.one_image.as_json(),
            "two_image": self.two_image and self.two_image.as_json(),
            "by_type": rounded(to_json(self.by_type)),
        }


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A known question beside what the job gave for it. `status` None: no result at all."""

    question: KnownAnswer
    status: str | None
    right: bool
    by_retrieval: tuple[str, ...]
    by_relevance: tuple[str, ...]


def score_job(questions: Sequence[KnownAnswer], results: Iterable[Mapping[str, Any]]) -> JobFigures:
    """Compares a job's results with the known answers.

    Each result is a line of the result file (custom_id, status, answer) with one more key, `candidates`: all K
    retrieved pictures, each with source, retrieval_score and relevance, in any order (in case of a tie the earlier
    one ranks first). Sources are compared with `relevant` as they stand. Results of unknown questions are left
    out. UsageError: nothing is known, a key is missing, or a question has two results.
    """
    if not questions:
        raise UsageError("no known answers to compare the results with")
    by_id: dict[str, Mapping[str, Any]] = {}
    for result in results:
        custom_id = _field(result, "custom_id")
        if custom_id in by_id:
            raise UsageError(f"question {custom_id} has two results; compare one job at a time")
        by_id[custom_id] = result
    outcomes = [_outcome(answer, by_id.get(answer.custom_id)) for answer in questions]
    one_image = [outcome for outcome in outcomes if len(outcome.question.relevant) == 1]
    two_image = [outcome for outcome in outcomes if len(outcome.question.relevant) == 2]
    types = sorted({answer.type for answer in questions})
    return JobFigures(
        all=_group_figures(outcomes),
        one_image=_group_figures(one_image) if one_image else None,
        two_image=_group_figures(two_image) if two_image else None,
        by_type={name: _type_figures([o for o in outcomes if o.question.type == name]) for name in types},
    )


def _outcome(question: KnownAnswer, result: Mapping[str, Any] | None) -> _Outcome:
    if result is None:
        return _Outcome(question, None, right=False, by_retrieval=(), by_relevance=())
    status = _field(result, "status")
    answer = _field(result, "answer")
    candidates = _field(result, "candidates")
    return _Outcome(
        question,
        status,
        right=status == AnswerStatus.ANSWERED and answer is not None and exact_match(answer, question.answer),
        by_retrieval=_sources_by("retrieval_score", candidates),
        by_relevance=_sources_by("relevance", candidates),
    )


def _field(result: Mapping[str, Any], name: str) -> Any:
    if name not in result:
        where = result.get("custom_id", "without custom_id")
        raise UsageError(f"result {where} has no {name!r}; scoring needs custom_id, status, answer, candidates")
    return result[name]


def _sources_by(score: str, candidates: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    best_first = sorted(candidates, key=lambda candidate: -float(candidate[score]))
    return tuple(candidate["source"] for candidate in best_first)


def _group_figures(outcomes: Sequence[_Outcome]) -> GroupFigures:
    statuses = Counter(outcome.status for outcome in outcomes)
    answered, no_evidence = statuses[AnswerStatus.ANSWERED], statuses[AnswerStatus.NO_EVIDENCE]
    relevant = [outcome.question.relevant for outcome in outcomes]
    by_retrieval = [outcome.by_retrieval for outcome in outcomes]
    by_relevance = [outcome.by_relevance for outcome in outcomes]
    return GroupFigures(
        questions=len(outcomes),
        answered=answered,
        no_evidence=no_evidence,
        failed=len(outcomes) - answered - no_evidence - statuses[None],
        missing=statuses[None],
        retrieval_recall={k: retrieval_at(k, by_retrieval, relevant).recall for k in RETRIEVAL_RECALL_DEPTHS},
        reranked_recall={k: retrieval_at(k, by_relevance, relevant).recall for k in RERANKED_RECALL_DEPTHS},
        answer_accuracy=_share(sum(outcome.right for outcome in outcomes), len(outcomes)),
    )


def _type_figures(outcomes: Sequence[_Outcome]) -> TypeFigures:
    right = sum(outcome.right for outcome in outcomes)
    answers = Counter(normalise_answer(outcome.question.answer) for outcome in outcomes)
    return TypeFigures(
        questions=len(outcomes),
        right=right,
        accuracy=_share(right, len(outcomes)),
        majority_share=_share(max(answers.values()), len(outcomes)),
    )


def _share(part: float, total: float) -> float:
    return part / total if total else 0.0
