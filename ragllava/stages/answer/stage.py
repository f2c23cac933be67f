"""Question in, answer with evidence out: retrieve, rerank, cut at the threshold, generate (docs/method.md 1 to 4)."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection

from ragllava.errors import JobRefused, LeaseLost, RagllavaError, ShardInterrupted
from ragllava.jobs.queue import Lease
from ragllava.jobs.runner import ShardContext
from ragllava.records import (
    Answer,
    AnswerStatus,
    Candidate,
    Change,
    ModelStamp,
    NoisyCase,
    Question,
)
from ragllava.stages.answer.changes import take_over_unchanged
from ragllava.stages.answer.doubts import DoubtLimits, Evidence, find_noisy
from ragllava.stages.answer.splitting import split_if_large
from ragllava.stages.answer.tools import AnswerTools, cost_of, prepare, stamp_now
from ragllava.stages.resources import Resources
from ragllava.stores.archives import archive, vectors
from ragllava.stores.archives.vectors import Hit
from ragllava.stores.database import read_at_once
from ragllava.stores.jobs import answers
from ragllava.stores.learning import noisy

if TYPE_CHECKING:
    from PIL.Image import Image

    from ragllava.models.generator import GeneratedAnswer
    from ragllava.models.reranker import Relevance

log = logging.getLogger(__name__)

T = TypeVar("T")

_IMAGES_AT_ONCE = 64  # whose decoded pictures are in memory together, beside the cache
_MOST_FOUND = 2_000  # questions whose hits are kept from planning; a shard of more is split

Pictures = dict[str, "Image | str"]  # by sha256; a text says why the picture cannot be read
Found = dict[int, list[Hit]]  # what planning has searched for already, by question_no


@dataclass(frozen=True, slots=True)
class RerankedQuestions:
    """The candidates of one question, best first, and what a person should know about judging them."""

    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def evidence(self) -> list[Candidate]:
        """The kept ones in rank order."""
        return [candidate for candidate in self.candidates if candidate.evidence_no is not None]


def answer_stage(context: ShardContext[Resources]) -> None:
    """Answer the open questions of one shard; of a refresh, those only for which something has changed.

    A shard that would take too long is split into such whose questions share candidates (planning.py). How long it
    would take is known from earlier ones, else from its first sub-batch.
    """
    lease = context.lease
    tools = prepare(context.engine, context.settings, context.resources, lease.archive_id, lease.spec["options"])
    questions = context.read(answers.open_questions, lease.job_id, lease.run_no, lease.lo, lease.hi)
    changes: dict[int, tuple[Change, ...]] = {}
    if "refreshes" in lease.spec:
        changes = take_over_unchanged(context, questions, partial(retrieve, tools=tools), stamp_now(tools))
        questions = [question for question in questions if question.question_no in changes]
    known: Found = {}
    if not lease.is_planned:
        if context.resources.pace.seconds_per_cost is None:
            step = context.settings.questions_per_step
            _answer_together(context, questions[:step], tools, changes)
            questions = questions[step:]
        if split_if_large(context, questions, partial(_candidate_ids, tools=tools, known=known), cost_of(tools)):
            return
    _answer_together(context, questions, tools, changes, known)


def _answer_together(
    context: ShardContext[Resources],
    questions: Sequence[Question],
    tools: AnswerTools,
    changes: Mapping[int, tuple[Change, ...]],
    known: Found | None = None,
) -> None:
    """All are judged together, as they share pictures; then a sub-batch at a time is answered and committed behind the
    fence, together with the noisy cases among its answers."""
    lease, began = context.lease, time.monotonic()
    judged = each(questions, partial(judge, tools=tools, check=context.check, known=known))
    step = context.settings.questions_per_step
    order = sorted(range(len(questions)), key=lambda place: _evidence_key(judged[place]))
    for start in range(0, len(questions), step):
        context.check()
        batch = [questions[place] for place in order[start : start + step]]
        results = conclude_each(batch, [judged[place] for place in order[start : start + step]], tools)
        results = [replace(result, changes=changes.get(result.question_no)) for result in results]
        again = partial(answer_again, tools=tools) if context.settings.leave_one_out else None
        cases = find_noisy(batch, results, DoubtLimits.of(context.settings, tools.options.top_n), again)
        context.commit(partial(_write, lease=lease, results=results, cases=cases))
    ids = ([c.image.image_id for c in one.candidates] for one in judged if isinstance(one, RerankedQuestions))
    context.resources.pace.learn(time.monotonic() - began, cost_of(tools).of(ids))


def _evidence_key(judged: RerankedQuestions | Answer) -> tuple[int, tuple[int, ...]]:
    """Questions with as many kept images follow each other, so that the generator gets full batches; of these, those
    with the same ones, so that it reads them once."""
    kept = (
        tuple(candidate.image.image_id for candidate in judged.evidence)
        if isinstance(judged, RerankedQuestions)
        else ()
    )
    return len(kept), kept


def _write(connection: Connection, lease: Lease, results: list[Answer], cases: list[NoisyCase]) -> None:
    answers.insert_answers(connection, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, results)
    noisy.insert_cases(connection, lease.archive_id, lease.job_id, cases)


def each(questions: Sequence[Question], work: Callable[[Sequence[Question]], list[T]]) -> list[T | Answer]:
    """`work` on all questions together if possible; if one of them makes that impossible for good, it fails alone
    (docs/reliability.md D5).

    One result for each question, in order: what `work` gives, or its answer `failed`. What concerns the job, the lease
    or a service is raised.
    """
    try:
        return [*work(questions)]
    except (JobRefused, LeaseLost, ShardInterrupted):
        raise
    except RagllavaError as error:
        if error.retryable:
            raise
        if len(questions) > 1:
            return [result for question in questions for result in each([question], work)]
        log.warning(str(error), extra={"action": "question_failed", "question": questions[0].question_no})
        return [_failed(questions[0], error)]


def answer_questions(questions: Sequence[Question], tools: AnswerTools) -> list[Answer]:
    """Answer a batch of questions; the result has one answer for each, in the same order.

    Questions without a candidate of relevance ≥ η end as `no_evidence`, with the candidates that were looked at.
    """
    return conclude(questions, judge(questions, tools), tools)


def judge(
    questions: Sequence[Question],
    tools: AnswerTools,
    check: Callable[[], None] = lambda: None,
    known: Found | None = None,
) -> list[RerankedQuestions]:
    """Retrieve and rerank: what each question's answer will rest on. `check` is that of `rerank`."""
    return rerank(questions, retrieve(questions, tools, known), tools, check)


def conclude(questions: Sequence[Question], judged: Sequence[RerankedQuestions], tools: AnswerTools) -> list[Answer]:
    """Answers from what was kept for each question, in the same order."""
    texts = generate(questions, judged, _pictures_of(judged, tools), tools)
    stamp = stamp_now(tools)
    return [
        _as_answer(question, judgement, text, stamp)
        for question, judgement, text in zip(questions, judged, texts, strict=True)
    ]


def conclude_each(
    questions: Sequence[Question], judged: Sequence[RerankedQuestions | Answer], tools: AnswerTools
) -> list[Answer]:
    """The same; questions that failed before keep that answer, and one that cannot be answered fails alone."""
    found = {q.question_no: one for q, one in zip(questions, judged, strict=True) if isinstance(one, RerankedQuestions)}
    asked = [question for question in questions if question.question_no in found]
    results = each(asked, lambda some: conclude(some, [found[question.question_no] for question in some], tools))
    by_number = {answer.question_no: answer for answer in results}
    by_number |= {one.question_no: one for one in judged if isinstance(one, Answer)}
    return [by_number[question.question_no] for question in questions]


def _failed(question: Question, error: RagllavaError) -> Answer:
    return Answer(question.question_no, AnswerStatus.FAILED, error_code=type(error).__name__, error=str(error))


def retrieve(questions: Sequence[Question], tools: AnswerTools, known: Found | None = None) -> list[list[Candidate]]:
    """The `top_k` nearest images of each question, best first, with relevance 0 as not yet judged (docs/method.md 1).

    Hits that are `known` are not searched for again.
    """
    found = dict(known or {})
    missing = [question for question in questions if question.question_no not in found]
    found.update(zip((question.question_no for question in missing), _nearest(missing, tools), strict=True))
    hits = [found[question.question_no] for question in questions]
    ids = sorted({hit.image_id for row in hits for hit in row})
    images = read_at_once(tools.engine, archive.load_images, ids)
    return [
        [Candidate(images[hit.image_id], rank, hit.retrieval_score, relevance=0.0) for rank, hit in enumerate(row)]
        for row in hits
    ]


def _nearest(questions: Sequence[Question], tools: AnswerTools) -> list[list[Hit]]:
    index = tools.index
    if index is None or not questions:
        return [[] for _ in questions]
    queries = tools.resources.retriever_of(index).embed_texts([question.text for question in questions])
    return read_at_once(tools.engine, vectors.search, index, queries, tools.options.top_k)


def _candidate_ids(questions: Sequence[Question], tools: AnswerTools, known: Found) -> list[list[int]]:
    """What shards are planned by; also put into `known`, for a shard that stays whole is answered at once.

    A question whose candidates cannot be found shares none; it will fail by itself.
    """
    found = each(questions, partial(_nearest, tools=tools))
    if len(known) < _MOST_FOUND:
        known |= {q.question_no: hits for q, hits in zip(questions, found, strict=True) if not isinstance(hits, Answer)}
    return [[] if isinstance(hits, Answer) else [hit.image_id for hit in hits] for hits in found]


def rerank(
    questions: Sequence[Question],
    found: list[list[Candidate]],
    tools: AnswerTools,
    check: Callable[[], None] = lambda: None,
) -> list[RerankedQuestions]:
    """P("Yes") of every (question, image + caption) pair, then the threshold (docs/method.md 2 and 3).

    Image by image, so that each is fetched, decoded and read once for all questions that it is a candidate of
    (docs/method.md 2); the more questions, the more they share. A candidate whose picture cannot be
    read is left out, and a note says so. `check` is called between groups of images; what it raises is passed on.
    """
    from ragllava.models.reranker import Pair  # loads torch, which only a process that answers needs

    rows: dict[str, list[tuple[int, Candidate]]] = defaultdict(list)
    for row, candidates in enumerate(found):
        for candidate in candidates:
            rows[candidate.image.sha256].append((row, candidate))
    scores: dict[tuple[int, int], Relevance] = {}
    unreadable: dict[str, str] = {}
    hashes = list(rows)
    for start in range(0, len(hashes), _IMAGES_AT_ONCE):
        check()
        middle = start + _IMAGES_AT_ONCE
        pictures = tools.resources.pictures.get_many(hashes[start:middle], tools.resources.threads)
        # They come while these are scored.
        tools.resources.pictures.fetch_ahead(hashes[middle : middle + _IMAGES_AT_ONCE], tools.resources.threads)
        unreadable |= {sha256: why for sha256, why in pictures.items() if isinstance(why, str)}
        asked = [(row, candidate) for sha256 in pictures if sha256 not in unreadable for row, candidate in rows[sha256]]
        pairs = [
            Pair(questions[row].text, candidate.image.caption, _picture(pictures, candidate), tools.by_caption)
            for row, candidate in asked
        ]
        found_scores = tools.resources.models.reranker.relevance(pairs, batch_size=tools.settings.pairs_per_batch)
        places = ((row, candidate.image.image_id) for row, candidate in asked)
        scores.update(zip(places, found_scores, strict=True))
    return [_judge(row, candidates, scores, unreadable, tools) for row, candidates in enumerate(found)]


def _judge(
    row: int,
    candidates: Sequence[Candidate],
    scores: Mapping[tuple[int, int], Relevance],
    unreadable: Mapping[str, str],
    tools: AnswerTools,
) -> RerankedQuestions:
    scored = [(c, scores[row, c.image.image_id]) for c in candidates if c.image.sha256 not in unreadable]
    ranked = select_evidence(
        [replace(candidate, relevance=score.value) for candidate, score in scored], tools.threshold, tools.options.top_n
    )
    evidence = {candidate.image.image_id for candidate in ranked if candidate.evidence_no is not None}
    notes = [score.note for candidate, score in scored if score.note and candidate.image.image_id in evidence]
    missing = [f"{c.image.source}: {unreadable[c.image.sha256]}" for c in candidates if c.image.sha256 in unreadable]
    return RerankedQuestions(tuple(ranked), tuple(dict.fromkeys(missing + notes)))


def select_evidence(candidates: Sequence[Candidate], threshold: float, top_n: int) -> list[Candidate]:
    """Rank by relevance (ties by CLIP's rank) and number the first `top_n` that reach the threshold."""
    ranked = sorted(candidates, key=lambda candidate: (-candidate.relevance, candidate.retrieval_rank))
    return [
        replace(candidate, evidence_no=rank if rank < top_n and candidate.relevance >= threshold else None)
        for rank, candidate in enumerate(ranked)
    ]


def generate(
    questions: Sequence[Question], judged: Sequence[RerankedQuestions], pictures: Pictures, tools: AnswerTools
) -> list[GeneratedAnswer | None]:
    """Answers from the kept images in rank order; None where nothing was kept (docs/method.md 4)."""
    from ragllava.models.generator import AnswerRequest

    asked = [number for number, judgement in enumerate(judged) if judgement.evidence]
    requests = [
        AnswerRequest(
            questions[number].text,
            tuple(candidate.image.caption for candidate in judged[number].evidence),
            tuple(_picture(pictures, candidate) for candidate in judged[number].evidence),
        )
        for number in asked
    ]
    texts: list[GeneratedAnswer | None] = [None] * len(questions)
    if requests:
        answered = tools.resources.models.generator.answer(
            requests,
            max_tokens=tools.settings.max_answer_tokens,
            with_captions=tools.options.captions_in_answer,
            batch_size=tools.settings.questions_per_step,
        )
        for number, text in zip(asked, answered, strict=True):
            texts[number] = text
    return texts


def answer_again(questions: Sequence[Question], evidence: Evidence, tools: AnswerTools) -> dict[int, str]:
    """Answers from the evidence given, by `question_no`; a question whose pictures cannot be read now is left out."""
    hashes = [candidate.image.sha256 for question in questions for candidate in evidence[question.question_no]]
    pictures = tools.resources.pictures.get_many(hashes, tools.resources.threads)
    asked = [
        question
        for question in questions
        if not any(isinstance(pictures[c.image.sha256], str) for c in evidence[question.question_no])
    ]
    judged = [RerankedQuestions(tuple(evidence[question.question_no]), ()) for question in asked]
    texts = generate(asked, judged, pictures, tools)
    return {question.question_no: text.text for question, text in zip(asked, texts, strict=True) if text}


def _as_answer(
    question: Question, judged: RerankedQuestions, text: GeneratedAnswer | None, stamp: ModelStamp
) -> Answer:
    notes = list(judged.notes)
    if text is None:
        notes.insert(0, _why_no_evidence(judged, stamp.threshold))
    elif text.note:
        notes.append(text.note)
    return Answer(
        question.question_no,
        AnswerStatus.ANSWERED if text else AnswerStatus.NO_EVIDENCE,
        text=text.text if text else None,
        confidence=text.confidence if text else None,
        candidates=judged.candidates,
        models=stamp,
        note="; ".join(notes) or None,
    )


def _why_no_evidence(judged: RerankedQuestions, threshold: float) -> str:
    if not judged.candidates:
        return "the archive holds no picture that can be read"
    best = judged.candidates[0]
    return (
        f"no picture is relevant enough: the best, {best.image.source}, reaches {best.relevance:.3f} "
        f"of the needed {threshold:.3f}"
    )


def _pictures_of(judged: Sequence[RerankedQuestions], tools: AnswerTools) -> Pictures:
    """The pictures that answers rest on."""
    hashes = [candidate.image.sha256 for judgement in judged for candidate in judgement.evidence]
    return tools.resources.pictures.get_many(hashes, tools.resources.threads)


def _picture(pictures: Pictures, candidate: Candidate) -> Image:
    picture = pictures[candidate.image.sha256]
    assert not isinstance(picture, str), "unreadable candidates were left out"  # noqa: S101 - for the type checker
    return picture
