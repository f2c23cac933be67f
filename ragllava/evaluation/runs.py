"""One evaluation: rank, cut at each threshold, answer from the evidence that stays and from given evidence
(docs/method.md 7).

Everything goes through the functions of the answer stage, so what is measured is what jobs do. A question that cannot
be asked counts as wrong, as it does in a job. Unless a row says otherwise, candidates are found and reranked as in the
paper: the nearest pictures, all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, partial
from typing import Any

from ragllava.evaluation.datasets.records import EvaluationQuestion, EvaluationSet
from ragllava.evaluation.pools import Pool, Workbench
from ragllava.evaluation.threshold import NATURAL_THRESHOLD, ThresholdFit
from ragllava.evaluation.wrong_evidence import oracle_evidence, with_added_wrong, with_wrong_evidence
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
from ragllava.stages.answer.pipeline import RerankedQuestion
from ragllava.stages.answer.tools import AnswerTools, prepare

DEFAULT_NOISE = (0.2, 0.5)
# Rows of the table that compare the ways of retrieval.
RETRIEVAL_ROWS = {
    Retrieval.PICTURE: "retrieval",
    Retrieval.CAPTION: "caption retrieval",
    Retrieval.HYBRID: "hybrid retrieval",
}
ANSWER_ROWS = {Retrieval.PICTURE: "reranked, adaptive η", Retrieval.HYBRID: "hybrid, reranked, adaptive η"}
ADAPTIVE = "adaptive"  # the name of a fitted threshold that promises nothing

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


_RETRIEVERS = {Ranker.CAPTION_RETRIEVER: Retrieval.CAPTION, Ranker.HYBRID_RETRIEVER: Retrieval.HYBRID}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What is measured. `seed` draws the wrong evidence.

    `hide_captions` adds the ablation in which neither reranker nor generator sees a caption; `noise` are the shares of
    labelled images that are swapped for wrong ones; `promised_precision` adds the threshold that promises it. `depth`
    says how many of the hybrid candidates are reranked. `untuned` adds the row of another reranker, if there is one.
    """

    seed: int = 0
    rerank: bool = True
    hide_captions: bool = False
    oracle: bool = True
    noise: tuple[float, ...] = DEFAULT_NOISE
    promised_precision: float | None = None
    depth: Depth = Depth.NEED
    untuned: bool = True


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


@dataclass(frozen=True, slots=True)
class RunArm:
    """One row of the table, before any figure is made of it.

    `ranked` is empty for evidence that was given. `threshold` is None where none was applied, `answers` where none
    were generated. All hold one entry per question, in the set's order.
    """

    label: str
    ranked: tuple[RankedQuestion, ...] = ()
    by_retrieval: bool = False
    threshold: float | None = None
    answers: tuple[Answer, ...] | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """An η that the run applies, as `name`, and where it comes from; `fit` None: it is the reranker version's own.

    `retrieval` is that of the candidates which it cuts.
    """

    value: float
    source: str
    fit: ThresholdFit | None = None
    name: str = ADAPTIVE
    retrieval: Retrieval = Retrieval.PICTURE

    def as_json(self) -> dict[str, Any]:
        """The η and how it was found."""
        return {"value": self.value, "source": self.source, "fit": to_json(self.fit)}


class Answerer:
    """Answers the questions of a set from any evidence; the same question from the same evidence only once."""

    def __init__(self, questions: Sequence[Question], tools: AnswerTools, bench: Workbench) -> None:
        """`tools` decide the prompt's form."""
        self._questions = questions
        self._tools = tools
        self._progress = bench.progress
        self._answers: dict[tuple[int, tuple[str, ...]], Answer] = {}

    def answers(self, label: str, evidence: Sequence[Sequence[StoredImage]]) -> tuple[Answer, ...]:
        """One answer for each question from its images in the order given; `no_evidence` without any."""
        keys = [
            (question.question_no, tuple(image.sha256 for image in images))
            for question, images in zip(self._questions, evidence, strict=True)
        ]
        asked = [number for number, key in enumerate(keys) if key not in self._answers]
        step = self._tools.settings.questions_per_step
        for start in range(0, len(asked), step):
            numbers = asked[start : start + step]
            shown = {self._questions[number].question_no: evidence[number] for number in numbers}
            batch = [self._questions[number] for number in numbers]
            results = pipeline.isolate_failures(batch, partial(self._answer, shown=shown))
            self._answers.update((keys[number], result) for number, result in zip(numbers, results, strict=True))
            self._progress(f"answer: {label}", start + len(numbers), len(asked))
        return tuple(self._answers[key] for key in keys)

    def _answer(self, questions: Sequence[Question], shown: dict[int, Sequence[StoredImage]]) -> list[Answer]:
        resources = self._tools.resources
        hashes = [image.sha256 for question in questions for image in shown[question.question_no]]
        pictures = resources.pictures.get_many(hashes)
        reranked = [
            RerankedQuestion(
                tuple(
                    Candidate(image, rank, retrieval_score=0.0, relevance=1.0, evidence_no=rank)
                    for rank, image in enumerate(shown[question.question_no])
                    if not isinstance(pictures[image.sha256], str)
                ),
                notes=(),
            )
            for question in questions
        ]
        texts = pipeline.generate(questions, reranked, pictures, self._tools)
        return [
            Answer(question.question_no, AnswerStatus.ANSWERED, text.text, text.confidence)
            if text
            else Answer(question.question_no, AnswerStatus.NO_EVIDENCE)
            for question, text in zip(questions, texts, strict=True)
        ]


def rank(
    dataset: EvaluationSet, pool: Pool, bench: Workbench, by: Ranker = Ranker.CHAMPION
) -> tuple[RankedQuestion, ...]:
    """The nearest pictures of each question, all reranked unless the retriever decides (then relevance is 0)."""
    tools = _tools(dataset, pool, bench, paper_options(bench))
    reranking = _untuned(tools, bench) if by is Ranker.UNTUNED else tools
    return _in_batches(dataset, pool, bench, by, partial(_rank_batch, tools=tools, reranking=reranking, by=by))


def retrieve(dataset: EvaluationSet, pool: Pool, bench: Workbench, retrieval: Retrieval) -> tuple[RankedQuestion, ...]:
    """The candidates of each question by this retrieval, in its order and not reranked."""
    tools = _tools(dataset, pool, bench, replace(paper_options(bench), retrieval=retrieval))

    def retrieved(questions: Sequence[Question]) -> list[Answer]:
        return _with_candidates(questions, pipeline.retrieve(questions, tools))

    by = Ranker.CAPTION_RETRIEVER if retrieval is Retrieval.CAPTION else Ranker.HYBRID_RETRIEVER
    return _in_batches(dataset, pool, bench, by, retrieved)


def rank_further(
    dataset: EvaluationSet, pool: Pool, bench: Workbench, ranked: Sequence[RankedQuestion]
) -> tuple[RankedQuestion, ...]:
    """All hybrid candidates of questions whose nearest pictures are `ranked` already; only the others are reranked."""
    options = replace(paper_options(bench), retrieval=Retrieval.HYBRID)
    tools = _tools(dataset, pool, bench, options)

    def further(questions: Sequence[Question]) -> list[Answer]:
        known = [
            {c.image.image_id: c.relevance for c in ranked[question.question_no].candidates} for question in questions
        ]
        candidates = pipeline.retrieve(questions, tools)
        new = [
            [candidate for candidate in listed if candidate.image.image_id not in relevances]
            for listed, relevances in zip(candidates, known, strict=True)
        ]
        for row, relevances in zip(pipeline.rerank(questions, new, tools), known, strict=True):
            relevances.update((candidate.image.image_id, candidate.relevance) for candidate in row.candidates)
        scored = [
            [replace(c, relevance=relevances[c.image.image_id]) for c in listed if c.image.image_id in relevances]
            for listed, relevances in zip(candidates, known, strict=True)
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
    tools = _tools(dataset, pool, bench, options)

    def ranked(questions: Sequence[Question]) -> list[Answer]:
        reranked = pipeline.rerank(questions, pipeline.retrieve(questions, tools), tools)
        return _with_candidates(questions, [row.candidates for row in reranked])

    return _in_batches(dataset, pool, bench, Ranker.HYBRID, ranked)


def rank_by_all(
    dataset: EvaluationSet,
    pool: Pool,
    bench: Workbench,
    options: RunOptions,
    thresholds: Sequence[Threshold] = (),
) -> dict[Ranker, tuple[RankedQuestion, ...]]:
    """The rankings that the options ask for; by the untuned reranker too where there is one (see `has_untuned`).

    The hybrid candidates are reranked only where one of the `thresholds` is for them.
    """
    rankers = [Ranker.CHAMPION if options.rerank else Ranker.RETRIEVER]
    if options.rerank and options.hide_captions:
        rankers.append(Ranker.BLIND)
    if options.rerank and options.untuned and has_untuned(bench):
        rankers.append(Ranker.UNTUNED)
    rankings = {ranker: rank(dataset, pool, bench, ranker) for ranker in rankers}
    if dataset.has_captions:
        rankings[Ranker.CAPTION_RETRIEVER] = retrieve(dataset, pool, bench, Retrieval.CAPTION)
        rankings[Ranker.HYBRID_RETRIEVER] = retrieve(dataset, pool, bench, Retrieval.HYBRID)
    for threshold in thresholds:
        if threshold.retrieval is Retrieval.HYBRID:
            rankings[Ranker.HYBRID] = rank_hybrid(dataset, pool, bench, threshold.value, options.depth)
    return rankings


def scored_candidates(ranked: Sequence[RankedQuestion]) -> tuple[list[float], list[bool]]:
    """The relevance of every candidate of every question, and whether the image is labelled, to fit a threshold on."""
    scored = [
        (candidate.relevance, candidate.image.source in question.known.relevant)
        for question in ranked
        for candidate in question.candidates
        if candidate.relevance is not None
    ]
    return [relevance for relevance, _ in scored], [is_labelled for _, is_labelled in scored]


def has_untuned(bench: Workbench) -> bool:
    """Whether another reranker was named as the untuned one, or the champion is an adapter, on a base without it."""
    models = bench.resources.models
    return bench.untuned is not None or models.reranker.version != models.base_version


def apply_champions(pool: Pool, bench: Workbench) -> float:
    """Let the champions compute from here on, as every ranking does; returns the η that jobs use."""
    options = to_json(AnswerOptions())
    return prepare(bench.engine, bench.settings, bench.resources, pool.archive_id, options).threshold


def run_arms(
    dataset: EvaluationSet,
    pool: Pool,
    bench: Workbench,
    rankings: Mapping[Ranker, tuple[RankedQuestion, ...]],
    thresholds: Sequence[Threshold],
    options: RunOptions,
) -> list[RunArm]:
    """All rows that the options ask for; `rankings` are those of `rank_by_all`, `thresholds` join the natural one."""

    @cache
    def answerer(hide_captions: bool) -> Answerer:
        options = replace(paper_options(bench), top_n=dataset.top_n, captions_in_answer=not hide_captions)
        tools = _tools(dataset, pool, bench, options)
        return Answerer(as_questions(dataset), tools, bench)

    def answered(arm: RunArm, *, hide_captions: bool = False) -> RunArm:
        """The arm with answers from what it keeps, if the set has questions to answer."""
        if dataset.retrieval_only:
            return arm
        evidence = [question.evidence(arm.threshold or 0.0, dataset.top_n) for question in arm.ranked]
        return replace(arm, answers=answerer(hide_captions).answers(arm.label, evidence))

    found = [
        RunArm(RETRIEVAL_ROWS[retrieval], rankings[ranker], by_retrieval=True)
        for ranker, retrieval in _RETRIEVERS.items()
        if ranker in rankings
    ]
    if options.rerank:
        ranked = rankings[Ranker.CHAMPION]
        first = RunArm(RETRIEVAL_ROWS[Retrieval.PICTURE], ranked, by_retrieval=True)
        arms = [first, *found, answered(RunArm("reranked", ranked))]
        if Ranker.BLIND in rankings:
            arms.append(answered(RunArm("reranked, captions hidden", rankings[Ranker.BLIND]), hide_captions=True))
        if Ranker.UNTUNED in rankings:
            arms.append(RunArm("reranked, untuned", rankings[Ranker.UNTUNED]))
        arms.append(answered(RunArm("reranked, natural η", ranked, threshold=NATURAL_THRESHOLD)))
        for threshold in thresholds:
            by_both = threshold.retrieval is Retrieval.HYBRID
            label = f"{'hybrid, ' if by_both else ''}reranked, {threshold.name} η"
            own_ranked = rankings[Ranker.HYBRID] if by_both else ranked
            arms.append(answered(RunArm(label, own_ranked, threshold=threshold.value)))
    else:
        ranked = rankings[Ranker.RETRIEVER]
        first = RunArm(RETRIEVAL_ROWS[Retrieval.PICTURE], ranked, by_retrieval=True)
        arms = [answered(first), *found]
        if options.hide_captions:
            arms.append(answered(RunArm("retrieval, captions hidden", ranked, by_retrieval=True), hide_captions=True))
    if options.oracle and not dataset.retrieval_only:
        arms += _given_arms(ranked, pool, answerer(False), options)
    return arms


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


def _tools(dataset: EvaluationSet, pool: Pool, bench: Workbench, options: AnswerOptions) -> AnswerTools:
    tools = prepare(bench.engine, bench.settings, bench.resources, pool.archive_id, to_json(options))
    return replace(tools, by_caption=dataset.by_caption)


def _untuned(tools: AnswerTools, bench: Workbench) -> AnswerTools:
    """Tools whose reranker is the untuned one. The champion's base loses its adapter until the next `_tools`."""
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


def _given_arms(ranked: Sequence[RankedQuestion], pool: Pool, answerer: Answerer, options: RunOptions) -> list[RunArm]:
    """Answers from the labelled images, and from these with wrong ones among them."""
    questions = [question.known for question in ranked]
    candidates = {question.known.custom_id: question.ranking for question in ranked}

    def rng() -> random.Random:
        return random.Random(options.seed)  # noqa: S311 - repeatable on purpose; the same draw for every share

    rows = {"labelled images": oracle_evidence(questions)}
    for share in options.noise:
        rows[f"labelled, {100 * share:g} % wrong"] = with_wrong_evidence(questions, share, rng(), candidates)
    if options.noise:
        rows["labelled and a wrong one"] = with_added_wrong(questions, rng(), candidates)
    images = {image.source: image for image in pool.images.values()}
    return [
        RunArm(
            label,
            answers=answerer.answers(label, [[images[i] for i in shown.images if i in images] for shown in evidence]),
        )
        for label, evidence in rows.items()
    ]
