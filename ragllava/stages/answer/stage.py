"""Answering as a job: plan the shard, answer its questions with the pipeline, commit answers and noisy cases."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import Connection

from ragllava.errors import ShardInterrupted
from ragllava.feedback import NoisyCase
from ragllava.jobs import deadlines, queue
from ragllava.jobs.deadlines import Room
from ragllava.jobs.dispatch import live_slots
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.queue import Lease
from ragllava.jobs.runner import ShardContext
from ragllava.records import Answer, Change, Question
from ragllava.stages.answer.candidates import find_candidates
from ragllava.stages.answer.changes import take_over_unchanged
from ragllava.stages.answer.doubts import DoubtLimits, find_noisy
from ragllava.stages.answer.parts import DepthPace, depth_key, next_part
from ragllava.stages.answer.pipeline import (
    HitsByQuestion,
    RerankedQuestion,
    answer_again,
    answer_from_evidence,
    isolate_failures,
    rerank,
    retrieve,
)
from ragllava.stages.answer.splitting import split_if_large
from ragllava.stages.answer.tools import CUT, AnswerTools, cost_of, prepare
from ragllava.stages.champions import apply_champions
from ragllava.stages.resources import Resources
from ragllava.stores.jobs import answers
from ragllava.stores.learning import noisy

_QUESTIONS_KEPT = 2_000  # whose hits are kept from planning; a shard of more is split

ChangesByQuestion = Mapping[int, tuple[Change, ...]]  # by question_no


@dataclass(slots=True)
class Pauses:
    """Called between two steps of a shard: stops it if it has to stop, else lets urgent questions be answered first.

    These may be answered by newer champions; the shard continues with those that it began with. `seconds` is the time
    that urgent questions have taken.
    """

    context: ShardContext[Resources]
    tools: AnswerTools
    seconds: float = 0.0

    def __call__(self) -> None:
        """Raises LeaseLost or ShardInterrupted when the shard has to stop."""
        self.context.check()
        took_s = self.context.give_way()
        if took_s > 0:
            self.seconds += took_s
            apply_champions(self.context.resources, self.tools.champions)
            self.context.check()


def answer_stage(context: ShardContext[Resources]) -> None:
    """Answer the open questions of one shard; of a refresh, those only for which something has changed.

    A shard that would take too long is split into shards whose questions share candidates (splitting.py). How long it
    takes is estimated from earlier shards, else from its first sub-batch.
    """
    lease = context.lease
    tools = prepare(context.engine, context.settings, context.resources, lease.archive_id, lease.spec["options"])
    pause = Pauses(context, tools)
    questions = context.read(answers.open_questions, lease.job_id, lease.run_no, lease.lo, lease.hi)
    changes: ChangesByQuestion = {}
    if "refreshes" in lease.spec:
        changes = take_over_unchanged(context, questions, tools, pause)
        questions = [question for question in questions if question.question_no in changes]
    hits: HitsByQuestion = {}
    if not lease.is_planned:
        if context.resources.pace.seconds_per_cost is None:
            step = context.settings.questions_per_step
            _answer_together(pause, questions[:step], changes, hits)
            questions = questions[step:]
        room = _room(context)
        find = partial(_candidate_ids, tools=tools, hits=hits)
        if split_if_large(context, questions, find, cost_of(tools), pause, room.left_s if room else None):
            return
    _answer_all(pause, questions, changes, hits)


def _room(context: ShardContext[Resources]) -> Room | None:
    """What is left of the limits of the job; None for a job without one."""
    lease = context.lease
    return context.read(deadlines.room_of, lease.job_id, lease.shard_id) if lease.is_limited else None


def _answer_all(pause: Pauses, questions: Sequence[Question], changes: ChangesByQuestion, hits: HitsByQuestion) -> None:
    """Answer all questions together, or, of a job with a limit, in parts (parts.py).

    Raises ShardInterrupted when the limit is reached.
    """
    context, tools = pause.context, pause.tools
    while questions:
        room = _room(context)
        if room is None:
            _answer_together(pause, questions, changes, hits)
            return
        if room.is_over:
            context.read(deadlines.expire_if_due, context.lease.job_id)
            raise ShardInterrupted(f"shard {context.lease.shard_id}: a limit of its job is reached")
        slots = context.read(live_slots, context.settings).get(kind_of(context.lease.kind).queue, 1)
        part = next_part(room, pace_of(tools), cost_of(tools), tools.options.top_n, len(questions), slots)
        number = part.questions or context.settings.questions_per_step
        _answer_together(pause, questions[:number], changes, hits, part.most)
        questions = questions[number:]


def pace_of(tools: AnswerTools) -> DepthPace:
    """What questions with these options have cost in this process."""
    pace: DepthPace = tools.resources.pace.of_depth.setdefault(depth_key(tools.options), DepthPace())
    return pace


def _answer_together(
    pause: Pauses,
    questions: Sequence[Question],
    changes: ChangesByQuestion,
    hits: HitsByQuestion,
    most: int | None = None,
) -> None:
    """Answer these questions and commit a sub-batch at a time behind the fence, with the noisy cases among its answers.

    Of each question at most the `most` strongest candidates are reranked.
    """
    context = pause.context
    for results, cases in answer_steps(pause, questions, hits, most):
        changed = [replace(answer, changes=changes.get(answer.question_no)) for answer in results]
        context.commit(_write, context.lease, changed, cases)


def answer_steps(
    pause: Pauses, questions: Sequence[Question], hits: HitsByQuestion, most: int | None = None
) -> Iterator[tuple[list[Answer], list[NoisyCase]]]:
    """Rerank for all questions together, as they share pictures; then answer a sub-batch at a time. The pace is learned
    when all have been taken."""
    context, tools = pause.context, pause.tools
    settings = context.settings
    started, urgent_s = time.monotonic(), pause.seconds
    reranked = isolate_failures(
        questions, lambda batch: rerank(batch, retrieve(batch, tools, hits, pause), tools, pause, most)
    )
    rows = sorted(zip(questions, reranked, strict=True), key=lambda row: _evidence_key(row[1]))
    limits = DoubtLimits.of(settings, tools.options.top_n)
    again = partial(answer_again, tools=tools) if settings.leave_one_out else None
    for start in range(0, len(rows), settings.questions_per_step):
        pause()
        step = rows[start : start + settings.questions_per_step]
        results = _answer_each(step, tools)
        pause()
        yield results, find_noisy([_as_read(*row) for row in step], results, limits, again)
    took_s = time.monotonic() - started - (pause.seconds - urgent_s)
    _learn(tools, took_s, [row for row in reranked if isinstance(row, RerankedQuestion)], most)


def _learn(tools: AnswerTools, took_s: float, reranked: Sequence[RerankedQuestion], most: int | None) -> None:
    """The pace of all candidates, by which shards are planned, is not learned where a limit cut them."""
    cost = cost_of(tools)
    if most is None:
        tools.resources.pace.learn(took_s, cost.of([c.image.image_id for c in row.candidates] for row in reranked))
    read = [[c.image.image_id for c in row.candidates if c.relevance is not None] for row in reranked]
    pace_of(tools).learn(took_s, read, cost, [row.cut_to is not None for row in reranked])


def _evidence_key(reranked: RerankedQuestion | Answer) -> tuple[int, tuple[int, ...]]:
    """Questions with as many kept images follow each other, so that the generator gets full batches; of these, those
    with the same images, so that it reads them once."""
    evidence = reranked.evidence if isinstance(reranked, RerankedQuestion) else []
    return len(evidence), tuple(candidate.image.image_id for candidate in evidence)


def _as_read(question: Question, reranked: RerankedQuestion | Answer) -> Question:
    text = reranked.text if isinstance(reranked, RerankedQuestion) else None
    return replace(question, text=text) if text else question


def _answer_each(rows: Sequence[tuple[Question, RerankedQuestion | Answer]], tools: AnswerTools) -> list[Answer]:
    """Answers in the order of the rows. Questions that failed before keep that answer; one that cannot be answered
    fails alone."""
    reranked = {question.question_no: row for question, row in rows if isinstance(row, RerankedQuestion)}
    results = isolate_failures(
        [question for question, _ in rows if question.question_no in reranked],
        lambda batch: answer_from_evidence(batch, [reranked[question.question_no] for question in batch], tools),
    )
    remaining = iter(results)
    return [row if isinstance(row, Answer) else next(remaining) for _, row in rows]


def _write(connection: Connection, lease: Lease, results: list[Answer], cases: list[NoisyCase]) -> None:
    cuts = [
        int(answer.models.depth.rpartition(CUT)[2])
        for answer in results
        if answer.models and CUT in answer.models.depth
    ]
    if cuts:
        queue.note_depth(connection, lease, min(cuts))
    answers.insert_answers(connection, lease.job_id, lease.run_no, lease.shard_id, lease.epoch, results)
    noisy.insert_cases(connection, lease.archive_id, lease.job_id, cases)


def _candidate_ids(questions: Sequence[Question], tools: AnswerTools, hits: HitsByQuestion) -> list[list[int]]:
    """What shards are planned by; also put into `hits`, because a shard that is not split is answered at once.

    A question whose candidates cannot be found shares none; it fails later, alone.
    """
    rows = isolate_failures(questions, partial(find_candidates, tools=tools))
    if len(hits) < _QUESTIONS_KEPT:
        hits |= {q.question_no: row for q, row in zip(questions, rows, strict=True) if not isinstance(row, Answer)}
    return [[] if isinstance(row, Answer) else [hit.image_id for hit in row] for row in rows]
