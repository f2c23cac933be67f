"""One evaluation: rank, cut at each threshold, answer from the evidence that stays and from given evidence (METHOD 7).

Everything goes through the functions of the answer stage, so what is measured is what jobs do. A question that cannot
be asked counts as wrong, as it does in a job.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ragllava.evaluation.dataset_records import EvaluationQuestion, EvaluationSet
from ragllava.evaluation.pools import Pool, Workbench
from ragllava.evaluation.threshold import NATURAL_THRESHOLD, ThresholdFit, adaptive_threshold
from ragllava.evaluation.wrong_evidence import ShownEvidence, oracle_evidence, with_added_wrong, with_wrong_evidence
from ragllava.records import Answer, AnswerOptions, AnswerStatus, Candidate, Question, StoredImage
from ragllava.stages import answer
from ragllava.stages.answer import AnswerTools, Judged

DEFAULT_NOISE = (0.2, 0.5)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What is measured. `seed` draws the wrong evidence; `top_n` None means as many images as the set's figures keep.

    `hide_captions` adds the ablation in which neither reranker nor generator sees a caption; `noise` are the shares of
    labelled images that are swapped for wrong ones.
    """

    seed: int = 0
    top_n: int | None = None
    rerank: bool = True
    hide_captions: bool = False
    oracle: bool = True
    noise: tuple[float, ...] = DEFAULT_NOISE


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
    def clip_ranking(self) -> list[str]:
        """The sources in the order in which CLIP found them."""
        return [c.image.source for c in sorted(self.candidates, key=lambda candidate: candidate.clip_rank)]

    @property
    def relevances(self) -> dict[str, float]:
        """The relevance of each source, best first."""
        return {candidate.image.source: candidate.relevance for candidate in self.candidates}

    def evidence(self, threshold: float, top_n: int) -> list[StoredImage]:
        """What a job with this threshold would answer from."""
        chosen = answer.select_evidence(self.candidates, threshold, top_n)
        return [candidate.image for candidate in chosen if candidate.evidence_no is not None]


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table, before any figure is made of it.

    `ranked` is empty for evidence that was given. `threshold` is None where none was applied, `answers` where nobody
    answered. All hold one entry per question, in the set's order.
    """

    label: str
    ranked: tuple[RankedQuestion, ...] = ()
    by_clip: bool = False
    threshold: float | None = None
    answers: tuple[Answer, ...] | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """The adaptive η of a run and where it comes from; `fit` is None when it is the reranker version's own."""

    value: float
    source: str
    fit: ThresholdFit | None = None


class Answerer:
    """Answers the questions of a set from any evidence; the same question from the same evidence only once."""

    def __init__(self, questions: Sequence[Question], tools: AnswerTools, bench: Workbench) -> None:
        """`tools` decide the prompt's form."""
        self._questions = questions
        self._tools = tools
        self._progress = bench.progress
        self._known: dict[tuple[int, tuple[str, ...]], Answer] = {}

    def answers(self, label: str, evidence: Sequence[Sequence[StoredImage]]) -> tuple[Answer, ...]:
        """One answer for each question from its images in the order given; `no_evidence` without any."""
        keys = [
            (question.question_no, tuple(image.sha256 for image in images))
            for question, images in zip(self._questions, evidence, strict=True)
        ]
        asked = [number for number, key in enumerate(keys) if key not in self._known]
        step = self._tools.settings.questions_per_step
        for start in range(0, len(asked), step):
            numbers = asked[start : start + step]
            shown = {self._questions[number].question_no: evidence[number] for number in numbers}
            batch = [self._questions[number] for number in numbers]
            found = answer.answer_each(batch, lambda some, shown=shown: self._answer(some, shown))  # type: ignore[misc]
            self._known.update((keys[number], result) for number, result in zip(numbers, found, strict=True))
            self._progress(f"answer: {label}", start + len(numbers), len(asked))
        return tuple(self._known[key] for key in keys)

    def _answer(self, questions: Sequence[Question], shown: dict[int, Sequence[StoredImage]]) -> list[Answer]:
        resources = self._tools.resources
        hashes = [image.sha256 for question in questions for image in shown[question.question_no]]
        pictures = resources.pictures.get_many(hashes, resources.threads)
        judged = [
            Judged(
                tuple(
                    Candidate(image, place, clip_score=0.0, relevance=1.0, evidence_no=place)
                    for place, image in enumerate(shown[question.question_no])
                    if not isinstance(pictures[image.sha256], str)
                ),
                notes=(),
            )
            for question in questions
        ]
        texts = answer.generate(questions, judged, pictures, self._tools)
        return [
            Answer(question.question_no, AnswerStatus.ANSWERED, text.text, text.confidence)
            if text
            else Answer(question.question_no, AnswerStatus.NO_EVIDENCE)
            for question, text in zip(questions, texts, strict=True)
        ]


def rank(
    dataset: EvaluationSet, pool: Pool, bench: Workbench, *, rerank: bool = True, hide_captions: bool = False
) -> tuple[RankedQuestion, ...]:
    """The candidates of each question: retrieved, then reranked unless `rerank` is off (then relevance is 0)."""
    tools = _tools(pool, bench, dataset.top_n, hide_captions=hide_captions)
    questions = as_questions(dataset)
    step = bench.settings.questions_per_step
    what = "rerank without captions" if hide_captions else "rerank" if rerank else "retrieve"
    ranked: list[Answer] = []
    for start in range(0, len(questions), step):
        ranked += answer.answer_each(
            questions[start : start + step],
            lambda some: _rank_batch(some, tools, rerank=rerank, hide_captions=hide_captions),
        )
        bench.progress(f"{what}: {pool.archive_name}", len(ranked), len(questions))
    return tuple(
        RankedQuestion(pool.known_here(known), result.candidates)
        for known, result in zip(dataset.questions, ranked, strict=True)
    )


def calibrate(dataset: EvaluationSet, pool: Pool, bench: Workbench) -> ThresholdFit:
    """The adaptive η of the reranker on all candidates of a set, which must not be the one that is reported."""
    ranked = rank(dataset, pool, bench)
    scored = [(c.relevance, c.image.source in one.known.relevant) for one in ranked for c in one.candidates]
    return adaptive_threshold([relevance for relevance, _ in scored], [correct for _, correct in scored])


def own_threshold(pool: Pool, bench: Workbench) -> Threshold:
    """The η that jobs use: that of the champion reranker, else of the profile."""
    options = AnswerOptions().as_json()
    tools = answer.prepare(bench.engine, bench.settings, bench.resources, pool.archive_id, options)
    return Threshold(tools.threshold, f"of the reranker {bench.resources.models.reranker.version}")


def run_arms(
    dataset: EvaluationSet, pool: Pool, bench: Workbench, threshold: Threshold | None, options: RunOptions
) -> list[Arm]:
    """All rows that the options ask for. `threshold` None leaves the adaptive one out."""
    top_n = options.top_n or dataset.top_n
    ranked = rank(dataset, pool, bench, rerank=options.rerank)
    answerer = Answerer(as_questions(dataset), _tools(pool, bench, top_n), bench)
    thresholds: dict[str, float | None] = {"reranked": None, "reranked, natural η": NATURAL_THRESHOLD}
    if threshold is not None:
        thresholds["reranked, adaptive η"] = threshold.value
    if options.rerank:
        arms = [Arm("CLIP", ranked, by_clip=True)]
        arms += [
            _answered(Arm(label, ranked, threshold=value), answerer, dataset, top_n)
            for label, value in thresholds.items()
        ]
    else:
        arms = [_answered(Arm("CLIP", ranked, by_clip=True), answerer, dataset, top_n)]
    if options.hide_captions and options.rerank:
        arms.append(_without_captions(dataset, pool, bench, top_n))
    if options.oracle and not dataset.retrieval_only:
        arms += _given_arms(ranked, pool, answerer, options)
    return arms


def as_questions(dataset: EvaluationSet) -> list[Question]:
    """The set's questions as the stages take them."""
    return [Question(number, number + 1, known.custom_id, known.text) for number, known in enumerate(dataset.questions)]


def _tools(pool: Pool, bench: Workbench, top_n: int, *, hide_captions: bool = False) -> AnswerTools:
    options = AnswerOptions(bench.settings.top_k, top_n, threshold=0.0, captions_in_answer=not hide_captions)
    return answer.prepare(bench.engine, bench.settings, bench.resources, pool.archive_id, options.as_json())


def _rank_batch(
    questions: Sequence[Question], tools: AnswerTools, *, rerank: bool, hide_captions: bool
) -> list[Answer]:
    found = answer.retrieve(questions, tools)
    if hide_captions:
        found = [[replace(c, image=replace(c.image, caption=None)) for c in candidates] for candidates in found]
    if rerank:
        hashes = [candidate.image.sha256 for candidates in found for candidate in candidates]
        pictures = tools.resources.pictures.get_many(hashes, tools.resources.threads)
        ranked = [judged.candidates for judged in answer.rerank(questions, found, pictures, tools)]
    else:
        ranked = [tuple(candidates) for candidates in found]
    return [
        Answer(question.question_no, AnswerStatus.ANSWERED, candidates=candidates)
        for question, candidates in zip(questions, ranked, strict=True)
    ]


def _answered(arm: Arm, answerer: Answerer, dataset: EvaluationSet, top_n: int) -> Arm:
    if dataset.retrieval_only:
        return arm
    evidence = [one.evidence(arm.threshold or 0.0, top_n) for one in arm.ranked]
    return replace(arm, answers=answerer.answers(arm.label, evidence))


def _without_captions(dataset: EvaluationSet, pool: Pool, bench: Workbench, top_n: int) -> Arm:
    ranked = rank(dataset, pool, bench, hide_captions=True)
    answerer = Answerer(as_questions(dataset), _tools(pool, bench, top_n, hide_captions=True), bench)
    return _answered(Arm("reranked, captions hidden", ranked), answerer, dataset, top_n)


def _given_arms(ranked: Sequence[RankedQuestion], pool: Pool, answerer: Answerer, options: RunOptions) -> list[Arm]:
    """Answers from the labelled images, whole and with wrong ones among them."""
    known = [one.known for one in ranked]
    candidates = {one.known.custom_id: one.ranking for one in ranked}

    def rng() -> random.Random:
        return random.Random(options.seed)  # noqa: S311 - repeatable on purpose; the same draw for every share

    rows: dict[str, Callable[[], list[ShownEvidence]]] = {"labelled images": lambda: oracle_evidence(known)}
    for share in options.noise:
        rows[f"labelled, {100 * share:g} % wrong"] = lambda share=share: with_wrong_evidence(  # type: ignore[misc]
            known, share, rng(), candidates
        )
    if options.noise:
        rows["labelled and a wrong one"] = lambda: with_added_wrong(known, rng(), candidates)
    images = {image.source: image for image in pool.images.values()}
    return [
        Arm(label, answers=answerer.answers(label, [[images[i] for i in s.images if i in images] for s in shown()]))
        for label, shown in rows.items()
    ]
