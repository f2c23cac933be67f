"""One evaluation: rank, cut at each threshold, answer from the evidence that stays and from given evidence
(docs/method.md 7).

Everything goes through the functions of the answer stage, so what is measured is what jobs do. A question that cannot
be asked counts as wrong, as it does in a job. Unless a row says otherwise, candidates are found and reranked as in the
paper: the nearest pictures, all of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from ragllava.evaluation.datasets.records import EvaluationSet
from ragllava.evaluation.pools import Pool, Workbench
from ragllava.evaluation.rankings import (
    RankedQuestion,
    Ranker,
    as_questions,
    has_untuned,
    paper_options,
    rank,
    rank_hybrid,
    retrieve,
    tools_for,
)
from ragllava.evaluation.scoring import Metric
from ragllava.evaluation.threshold import NATURAL_THRESHOLD, ThresholdFit
from ragllava.evaluation.wrong_evidence import (
    oracle_evidence,
    with_added_wrong,
    with_permuted_evidence,
    with_wrong_evidence,
)
from ragllava.json_records import to_json
from ragllava.records import Answer, AnswerStatus, Candidate, Depth, Question, Retrieval, StoredImage
from ragllava.stages.answer import pipeline
from ragllava.stages.answer.pipeline import RerankedQuestion
from ragllava.stages.answer.reading import as_read
from ragllava.stages.answer.tools import AnswerTools

DEFAULT_NOISE = (0.2, 0.5)
# Rows of the table that compare the ways of retrieval.
RETRIEVAL_ROWS = {
    Retrieval.PICTURE: "retrieval",
    Retrieval.CAPTION: "caption retrieval",
    Retrieval.HYBRID: "hybrid retrieval",
}
ANSWER_ROWS = {Retrieval.PICTURE: "reranked, adaptive η", Retrieval.HYBRID: "hybrid, reranked, adaptive η"}
ADAPTIVE = "adaptive"  # the name of a fitted threshold that promises nothing
PAPER = "paper's"  # of the one that is fitted as in the paper, on the kept candidates alone
PAPER_GENERATOR = "generator without captions"
BARE_QUESTION = "bare question"

_RETRIEVERS = {Ranker.CAPTION_RETRIEVER: Retrieval.CAPTION, Ranker.HYBRID_RETRIEVER: Retrieval.HYBRID}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What is measured. `seed` draws the wrong evidence.

    `hide_captions` adds the ablation in which neither reranker nor generator sees a caption; `noise` are the shares of
    labelled images that are swapped for wrong ones; `promised_precision` adds the threshold that promises it. `depth`
    says how many of the hybrid candidates are reranked. `untuned` adds the row of another reranker, if there is one.
    `metric` scores the answers. `paper` adds rows of the paper's set-up: the reranker sees captions and the generator
    none, with the instruction to answer shortly and without it; and labelled images exchanged for one another.
    """

    seed: int = 0
    rerank: bool = True
    hide_captions: bool = False
    oracle: bool = True
    noise: tuple[float, ...] = DEFAULT_NOISE
    promised_precision: float | None = None
    depth: Depth = Depth.NEED
    untuned: bool = True
    metric: Metric = Metric.OURS
    paper: bool = False


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
        self._answers: dict[tuple[int, str, tuple[str, ...]], Answer] = {}

    def answers(
        self, label: str, evidence: Sequence[Sequence[StoredImage]], candidates: Sequence[Sequence[Candidate]] = ()
    ) -> tuple[Answer, ...]:
        """One answer for each question from its images in the order given; `no_evidence` without any.

        Each question is read as its `candidates` spell it (stages/answer/reading.py); without these as it was asked.
        """
        read = list(map(as_read, self._questions, candidates)) if candidates else self._questions
        keys = [
            (question.question_no, question.text, tuple(image.sha256 for image in images))
            for question, images in zip(read, evidence, strict=True)
        ]
        asked = [number for number, key in enumerate(keys) if key not in self._answers]
        step = self._tools.settings.questions_per_step
        for start in range(0, len(asked), step):
            numbers = asked[start : start + step]
            shown = {read[number].question_no: evidence[number] for number in numbers}
            batch = [read[number] for number in numbers]
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
    def answerer(hide_captions: bool, question_only: bool = False) -> Answerer:
        options = replace(paper_options(bench), top_n=dataset.top_n, captions_in_answer=not hide_captions)
        tools = replace(tools_for(dataset, pool, bench, options), question_only=question_only)
        return Answerer(as_questions(dataset), tools, bench)

    def answered(arm: RunArm, *, hide_captions: bool = False, question_only: bool = False) -> RunArm:
        """The arm with answers from what it keeps, if the set has questions to answer."""
        if dataset.retrieval_only:
            return arm
        evidence = [question.evidence(arm.threshold or 0.0, dataset.top_n) for question in arm.ranked]
        candidates = [question.candidates for question in arm.ranked]
        return replace(arm, answers=answerer(hide_captions, question_only).answers(arm.label, evidence, candidates))

    by_other_ways = [
        RunArm(RETRIEVAL_ROWS[retrieval], rankings[ranker], by_retrieval=True)
        for ranker, retrieval in _RETRIEVERS.items()
        if ranker in rankings
    ]
    if options.rerank:
        ranked = rankings[Ranker.CHAMPION]
        first = RunArm(RETRIEVAL_ROWS[Retrieval.PICTURE], ranked, by_retrieval=True)
        arms = [first, *by_other_ways, answered(RunArm("reranked", ranked))]
        if options.paper and not dataset.retrieval_only:
            arms.append(answered(RunArm(f"reranked, {PAPER_GENERATOR}", ranked), hide_captions=True))
            bare = RunArm(f"reranked, {BARE_QUESTION}", ranked)
            arms.append(answered(bare, hide_captions=True, question_only=True))
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
        arms = [answered(first), *by_other_ways]
        if options.hide_captions:
            arms.append(answered(RunArm("retrieval, captions hidden", ranked, by_retrieval=True), hide_captions=True))
    if options.oracle and not dataset.retrieval_only:
        arms += _given_arms(ranked, pool, answerer(False), options)
        if options.paper:
            given = _given_arms(ranked, pool, answerer(True, True), replace(options, noise=(), paper=False))
            arms += [replace(arm, label=f"{arm.label}, {BARE_QUESTION}") for arm in given]
    return arms


def _given_arms(ranked: Sequence[RankedQuestion], pool: Pool, answerer: Answerer, options: RunOptions) -> list[RunArm]:
    """Answers from the labelled images, and from these with wrong ones among them."""
    questions = [question.known for question in ranked]
    candidates = {question.known.custom_id: question.ranking for question in ranked}

    def rng() -> random.Random:
        return random.Random(options.seed)  # noqa: S311 - repeatable on purpose; the same draw for every share

    rows = {"labelled images": oracle_evidence(questions)}
    for share in options.noise:
        rows[f"labelled, {100 * share:g} % wrong"] = with_wrong_evidence(questions, share, rng(), candidates)
        if options.paper:
            rows[f"labelled, {100 * share:g} % permuted"] = with_permuted_evidence(questions, share, rng())
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
