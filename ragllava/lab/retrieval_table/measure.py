"""Candidates, evidence and answers of one archive and one style of questions, by each way of retrieval.

All candidates of the hybrid way are reranked once. The paper's way has a part of them, and depth by need reranks a part
of them; both are derived from the same relevances, so the ways are compared question by question without noise. Only
where a caption corrects the question, its nearest pictures are reranked once more for the paper's way, as it was asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import Engine

from ragllava.answer_text import exact_match
from ragllava.evaluation.pools import Workbench
from ragllava.evaluation.runs import Answerer
from ragllava.json_records import to_json
from ragllava.lab.retrieval_table.archives import Progress
from ragllava.postcards.archive import KnownQuestion
from ragllava.records import AnswerOptions, Candidate, Depth, Origin, Question, Retrieval, StoredImage
from ragllava.settings import Settings
from ragllava.stages.answer import pipeline
from ragllava.stages.answer.tools import AnswerTools, prepare
from ragllava.stages.answer.waves import is_done, waves_of
from ragllava.stages.resources import Resources

_QUESTIONS_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class QuestionOutcome:
    """One question. `found` by way of retrieval: whether all of its pictures are candidates. `right` by way of
    retrieval and depth: whether the answer is right; empty where nothing was answered.

    `candidates` and `pairs` count the candidates of the hybrid way and those that depth by need reranks;
    `stopped_wrong` tells that it stopped although a labelled picture that all candidates would have given as evidence
    was left.
    """

    about_two: bool
    found: Mapping[str, bool]
    right: Mapping[str, bool]
    candidates: int
    pairs: int
    stopped_wrong: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """The outcomes of the questions of one style, and the milliseconds that retrieval took for each."""

    outcomes: tuple[QuestionOutcome, ...]
    picture_ms: float
    hybrid_ms: float


PICTURE, HYBRID, NEED = "picture", "hybrid", "hybrid by need"


def measure(
    engine: Engine,
    settings: Settings,
    resources: Resources,
    archive_id: int,
    known: Sequence[KnownQuestion],
    progress: Progress,
    *,
    answers: bool,
) -> Measured:
    """Ask the questions in all ways; without `answers`, only retrieve."""

    def tools_for(retrieval: Retrieval) -> AnswerTools:
        options = AnswerOptions(settings.top_k, settings.top_n, retrieval=retrieval, depth=Depth.FIXED)
        return prepare(engine, settings, resources, archive_id, to_json(options))

    questions = [Question(number, number + 1, row.custom_id, row.text) for number, row in enumerate(known)]
    picture_ms, _ = _retrieve(questions, tools_for(Retrieval.PICTURE))
    _, by_caption = _retrieve(questions, tools_for(Retrieval.CAPTION))
    tools = tools_for(Retrieval.HYBRID)
    hybrid_ms, candidates = _retrieve(questions, tools)
    ranked, right = candidates, [dict[str, bool]() for _ in known]
    if answers:
        ranked = _rerank(questions, candidates, tools, progress)
        nearest = _nearest(questions, ranked, tools, progress)
        right = _answer(questions, known, ranked, nearest, tools, Workbench(engine, settings, resources, progress))
    outcomes = [
        _outcome(row, caption, scored, answered, tools)
        for row, caption, scored, answered in zip(known, by_caption, ranked, right, strict=True)
    ]
    return Measured(tuple(outcomes), picture_ms, hybrid_ms)


def by_need(candidates: Sequence[Candidate], tools: AnswerTools) -> tuple[list[Candidate], list[Candidate]]:
    """Those of the reranked candidates that depth by need reranks, and those that it leaves."""
    waves = waves_of(candidates, Depth.NEED)
    reranked: list[Candidate] = []
    for number, wave in enumerate(waves, start=1):
        reranked += wave
        left = [candidate for later in waves[number:] for candidate in later]
        if is_done(reranked, left, tools.threshold):
            return reranked, left
    return reranked, []


def _retrieve(questions: Sequence[Question], tools: AnswerTools) -> tuple[float, list[list[Candidate]]]:
    """Milliseconds for each question, and its candidates."""
    pipeline.retrieve(questions[:1], tools)
    started = time.monotonic()
    rows: list[list[Candidate]] = []
    for start in range(0, len(questions), _QUESTIONS_TOGETHER):
        rows += pipeline.retrieve(questions[start : start + _QUESTIONS_TOGETHER], tools)
    return (time.monotonic() - started) * 1000 / max(1, len(questions)), rows


def _rerank(
    questions: Sequence[Question], candidates: Sequence[list[Candidate]], tools: AnswerTools, progress: Progress
) -> list[list[Candidate]]:
    total = sum(map(len, candidates))
    progress("rerank", 0, total)
    ranked = pipeline.rerank(questions, candidates, tools)
    progress("rerank", total, total)
    return [sorted(row.candidates, key=lambda candidate: candidate.retrieval_rank) for row in ranked]


def _nearest(
    questions: Sequence[Question], ranked: Sequence[Sequence[Candidate]], tools: AnswerTools, progress: Progress
) -> list[list[Candidate]]:
    """The nearest pictures with the relevance that they have where no caption corrects the question."""
    rows = [[replace(c, spellings=()) for c in row if c.origin is not Origin.CAPTION] for row in ranked]
    corrected = [number for number, row in enumerate(ranked) if any(candidate.spellings for candidate in row)]
    asked = [questions[number] for number in corrected], [rows[number] for number in corrected]
    for number, row in zip(corrected, _rerank(*asked, tools, progress), strict=True):
        rows[number] = row
    return rows


def _answer(
    questions: Sequence[Question],
    known: Sequence[KnownQuestion],
    ranked: Sequence[Sequence[Candidate]],
    nearest: Sequence[Sequence[Candidate]],
    tools: AnswerTools,
    bench: Workbench,
) -> list[dict[str, bool]]:
    answerer = Answerer(questions, tools, bench)
    evidence = partial(_evidence, tools=tools)
    shown = {
        PICTURE: ([evidence(row) for row in nearest], nearest),
        HYBRID: ([evidence(row) for row in ranked], ranked),
        NEED: ([evidence(by_need(row, tools)[0]) for row in ranked], ranked),
    }
    right: list[dict[str, bool]] = [{} for _ in known]
    for way, (images, candidates) in shown.items():
        for row, answer, results in zip(known, answerer.answers(way, images, candidates), right, strict=True):
            results[way] = answer.text is not None and exact_match(answer.text, row.answer)
    return right


def _evidence(candidates: Sequence[Candidate], tools: AnswerTools) -> list[StoredImage]:
    chosen = pipeline.select_evidence(candidates, tools.threshold, tools.options.top_n)
    return [candidate.image for candidate in chosen if candidate.evidence_no is not None]


def _outcome(
    known: KnownQuestion,
    by_caption: Sequence[Candidate],
    candidates: Sequence[Candidate],
    right: Mapping[str, bool],
    tools: AnswerTools,
) -> QuestionOutcome:
    def has_all(rows: Sequence[Candidate]) -> bool:
        return set(known.relevant) <= {candidate.image.source for candidate in rows}

    reranked, _ = by_need(candidates, tools) if right else (candidates, [])
    wanted = {image.source for image in _evidence(candidates, tools)} & set(known.relevant)
    kept = {image.source for image in _evidence(reranked, tools)}
    found = {
        "picture": has_all([candidate for candidate in candidates if candidate.origin is not Origin.CAPTION]),
        "caption": has_all(by_caption),
        "hybrid": has_all(candidates),
    }
    return QuestionOutcome(
        about_two=len(known.relevant) > 1,
        found=found,
        right=right,
        candidates=len(candidates),
        pairs=len(reranked),
        stopped_wrong=not wanted <= kept,
    )
