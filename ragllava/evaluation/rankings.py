"""The candidates of the questions of an evaluation set: found, and put in order by a reranker (docs/method.md 7).

Everything goes through the functions of the answer stage. Unless a function says otherwise, candidates are found and
reranked as in the paper: the nearest pictures, all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from ragllava.evaluation.datasets.records import EvaluationQuestion, EvaluationSet
from ragllava.evaluation.pools import Pool, Workbench
from ragllava.json_records import to_json
from ragllava.records import (
    Answer,
    AnswerOptions,
    AnswerStatus,
    Candidate,
    Depth,
    Question,
    Retrieval,
    Role,
    StoredImage,
    by_retrieval,
)
from ragllava.stages.answer import pipeline
from ragllava.stages.answer.tools import AnswerTools, prepare

_QUESTIONS_RANKED_TOGETHER = 300  # the more, the more of them share a candidate's picture


class Ranker(StrEnum):
    """Who puts the candidates in order; the value says it to people."""

    RETRIEVER = "retrieve"
    CHAMPION = "rerank"
    BLIND = "rerank without captions"  # the champion, asked without them
    UNTUNED = "rerank untuned"
    CAPTION_RETRIEVER = "retrieve by caption"
    HYBRID_RETRIEVER = "retrieve by picture and caption"
    HYBRID = "rerank hybrid"  # the champion, on candidates found by picture and by caption


@dataclass(frozen=True, slots=True)
class RankedQuestion:
    """A question with its candidates, best first; `relevant` of `known` are sources, as candidates have them."""

    known: EvaluationQuestion
    candidates: tuple[Candidate, ...]

    @property
    def ranking(self) -> list[str]:
        """The sources of the candidates, best first."""
        return [candidate.image.source for candidate in self.candidates]

    @property
    def retrieval_ranking(self) -> list[str]:
        """The sources in the order of the retrieval."""
        return [candidate.image.source for candidate in by_retrieval(self.candidates)]

    @property
    def relevances(self) -> dict[str, float]:
        """The relevance of each source, best first."""
        return {c.image.source: c.relevance for c in self.candidates if c.relevance is not None}

    def evidence(self, threshold: float, top_n: int) -> list[StoredImage]:
        """What a job with this threshold would answer from."""
        chosen = pipeline.select_evidence(self.candidates, threshold, top_n)
        return [candidate.image for candidate in chosen if candidate.evidence_no is not None]


def rank(
    dataset: EvaluationSet, pool: Pool, bench: Workbench, by: Ranker = Ranker.CHAMPION
) -> tuple[RankedQuestion, ...]:
    """The nearest pictures of each question, all reranked unless the retriever decides (then relevance is 0)."""
    tools = tools_for(dataset, pool, bench, paper_options(bench))
    reranking = _untuned(tools, bench) if by is Ranker.UNTUNED else tools
    return _in_batches(dataset, pool, bench, by, partial(_rank_batch, tools=tools, reranking=reranking, by=by))


def retrieve(dataset: EvaluationSet, pool: Pool, bench: Workbench, retrieval: Retrieval) -> tuple[RankedQuestion, ...]:
    """The candidates of each question by this retrieval, in its order and not reranked."""
    tools = tools_for(dataset, pool, bench, replace(paper_options(bench), retrieval=retrieval))

    def retrieved(questions: Sequence[Question]) -> list[Answer]:
        return _with_candidates(questions, pipeline.retrieve(questions, tools))

    by = Ranker.CAPTION_RETRIEVER if retrieval is Retrieval.CAPTION else Ranker.HYBRID_RETRIEVER
    return _in_batches(dataset, pool, bench, by, retrieved)


def rank_further(
    dataset: EvaluationSet, pool: Pool, bench: Workbench, ranked: Sequence[RankedQuestion]
) -> tuple[RankedQuestion, ...]:
    """All hybrid candidates of questions whose nearest pictures are `ranked` already; only the others are reranked, or
    all where a caption corrects the question."""
    options = replace(paper_options(bench), retrieval=Retrieval.HYBRID)
    tools = tools_for(dataset, pool, bench, options)

    def further(questions: Sequence[Question]) -> list[Answer]:
        candidates = pipeline.retrieve(questions, tools)
        scores = [
            {c.image.image_id: c.relevance for c in ranked[question.question_no].candidates}
            if not any(c.spellings for c in listed)
            else {}
            for question, listed in zip(questions, candidates, strict=True)
        ]
        new = [
            [candidate for candidate in listed if candidate.image.image_id not in row]
            for listed, row in zip(candidates, scores, strict=True)
        ]
        for reranked, row in zip(pipeline.rerank(questions, new, tools), scores, strict=True):
            row.update((candidate.image.image_id, candidate.relevance) for candidate in reranked.candidates)
        scored = [
            [replace(c, relevance=row[c.image.image_id]) for c in listed if c.image.image_id in row]
            for listed, row in zip(candidates, scores, strict=True)
        ]
        return _with_candidates(questions, [pipeline.select_evidence(listed, 0.0, 1) for listed in scored])

    return _in_batches(dataset, pool, bench, Ranker.HYBRID, further)


def rank_hybrid(
    dataset: EvaluationSet, pool: Pool, bench: Workbench, threshold: float, depth: Depth
) -> tuple[RankedQuestion, ...]:
    """The hybrid candidates of each question, reranked by the champion as in a job with this η and depth."""
    options = replace(
        paper_options(bench), retrieval=Retrieval.HYBRID, depth=depth, threshold=threshold, top_n=dataset.top_n
    )
    tools = tools_for(dataset, pool, bench, options)

    def ranked(questions: Sequence[Question]) -> list[Answer]:
        reranked = pipeline.rerank(questions, pipeline.retrieve(questions, tools), tools)
        return _with_candidates(questions, [row.candidates for row in reranked])

    return _in_batches(dataset, pool, bench, Ranker.HYBRID, ranked)


class ScoredCandidates(NamedTuple):
    """The relevance of candidates, whether each is labelled, and the number of its question: to fit a threshold on."""

    relevance: list[float]
    is_labelled: list[bool]
    question: list[int]


def scored_candidates(ranked: Sequence[RankedQuestion], best: int | None = None) -> ScoredCandidates:
    """All reranked candidates of all questions, or only the `best` of each."""
    scored = [
        (relevance, source in question.known.relevant, number)
        for number, question in enumerate(ranked)
        for source, relevance in sorted(question.relevances.items(), key=lambda pair: -pair[1])[:best]
    ]
    return ScoredCandidates([row[0] for row in scored], [row[1] for row in scored], [row[2] for row in scored])


def has_untuned(bench: Workbench) -> bool:
    """Whether another reranker was named as the untuned one, or the champion is an adapter, on a base without it."""
    models = bench.resources.models
    return bench.untuned is not None or models.reranker.version != models.base_version


def apply_champions(pool: Pool, bench: Workbench) -> float:
    """Let the champions compute from here on, as every ranking does; returns the η that jobs use."""
    options = to_json(AnswerOptions())
    return prepare(bench.engine, bench.settings, bench.resources, pool.archive_id, options).threshold


def as_questions(dataset: EvaluationSet) -> list[Question]:
    """The set's questions as the stages take them."""
    return [
        Question(number, number + 1, question.custom_id, question.text)
        for number, question in enumerate(dataset.questions)
    ]


def paper_options(bench: Workbench) -> AnswerOptions:
    """The nearest pictures as candidates, all of them reranked and kept."""
    return AnswerOptions(bench.settings.top_k, top_n=1, threshold=0.0, retrieval=Retrieval.PICTURE, depth=Depth.FIXED)


def _in_batches(
    dataset: EvaluationSet,
    pool: Pool,
    bench: Workbench,
    by: Ranker,
    work: Callable[[Sequence[Question]], list[Answer]],
) -> tuple[RankedQuestion, ...]:
    """The candidates that `work` gives to many questions at once."""
    questions = as_questions(dataset)
    ranked: list[Answer] = []
    for start in range(0, len(questions), _QUESTIONS_RANKED_TOGETHER):
        batch = questions[start : start + _QUESTIONS_RANKED_TOGETHER]
        ranked += pipeline.isolate_failures(batch, work)
        bench.progress(f"{by}: {pool.archive_name}", len(ranked), len(questions))
    return tuple(
        RankedQuestion(pool.known_here(question), result.candidates)
        for question, result in zip(dataset.questions, ranked, strict=True)
    )


def _with_candidates(questions: Sequence[Question], candidates: Sequence[Sequence[Candidate]]) -> list[Answer]:
    return [
        Answer(question.question_no, AnswerStatus.ANSWERED, candidates=tuple(listed))
        for question, listed in zip(questions, candidates, strict=True)
    ]


def tools_for(dataset: EvaluationSet, pool: Pool, bench: Workbench, options: AnswerOptions) -> AnswerTools:
    """What answers the set with these options; the champions compute from here on."""
    tools = prepare(bench.engine, bench.settings, bench.resources, pool.archive_id, to_json(options))
    return replace(tools, by_caption=dataset.by_caption)


def _untuned(tools: AnswerTools, bench: Workbench) -> AnswerTools:
    """Tools whose reranker is the untuned one. The champion's base loses its adapter until the next `tools_for`."""
    if bench.untuned is not None:
        return replace(tools, resources=bench.untuned)
    tools.resources.models.apply_adapter(Role.RERANKER, None, None)
    return tools


def _rank_batch(
    questions: Sequence[Question], *, tools: AnswerTools, reranking: AnswerTools, by: Ranker
) -> list[Answer]:
    candidates = pipeline.retrieve(questions, tools)
    if by is Ranker.BLIND:
        candidates = [[replace(c, image=replace(c.image, caption=None)) for c in listed] for listed in candidates]
    if by is Ranker.RETRIEVER:  # all are equally relevant, so that the first ones are kept as evidence
        return _with_candidates(questions, [[replace(c, relevance=0.0) for c in listed] for listed in candidates])
    return _with_candidates(questions, [row.candidates for row in pipeline.rerank(questions, candidates, reranking)])
