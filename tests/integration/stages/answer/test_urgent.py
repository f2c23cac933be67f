"""A shard of a bulk job gives way to urgent questions: they are answered first, and its own answers stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from ragllava.errors import DeviceLost
from ragllava.jobs.runner import ShardContext
from ragllava.records import AnswerOptions, JobKind, Priority, Question, Role
from ragllava.stages.answer.question_files import QuestionFile
from ragllava.stages.answer.stage import answer_stage
from ragllava.stages.answer.submit import Submission, submit_questions
from ragllava.stages.resources import Resources
from ragllava.stages.results.results import ResultRow
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import registry
from ragllava.stores.schema import answers, shards
from tests.support.random_adapters import promote_random_adapter
from tests.support.waiting import wait_for
from tests.support.workshop import ARCHIVE, Stage, Workshop


def submit_urgent(shop: Workshop, text: str) -> int:
    file = QuestionFile("ask", [Question(0, 1, "ask", text)])
    how = Submission(ARCHIVE, AnswerOptions(), priority=Priority.URGENT)
    return in_transaction(shop.engine, submit_questions, shop.settings, file, how).job_id


def shard_of(shop: Workshop, job_id: int) -> tuple[int, int, str]:
    """Epoch, attempts and state of the only shard of a job."""
    with shop.engine.begin() as connection:
        row = connection.execute(select(shards).where(shards.c.job_id == job_id)).one()
    return row.epoch, row.attempts, row.state


def outcome(rows: list[ResultRow]) -> list[tuple[object, ...]]:
    """All that a user sees of the answers."""
    return [(row.custom_id, row.status, row.answer, row.confidence, row.models, tuple(row.candidates)) for row in rows]


def with_a_question_at(
    pauses: set[int], shop: Workshop, text: str, asked: list[int], before: Callable[[], object] = lambda: None
) -> Stage:
    """The answer stage, during which an urgent question is submitted at these pauses, and waits when it is reached."""

    def stage(context: ShardContext[Resources]) -> None:
        numbers: Iterator[int] = iter(range(10**9))

        def run_urgent() -> float:
            if next(numbers) in pauses:
                before()
                asked.append(submit_urgent(shop, text))
                pulse = context.run_urgent.pulse  # type: ignore[attr-defined]
                wait_for("the heartbeat to see the urgent question", lambda: pulse.urgent_waits, 120)
            return context.run_urgent()

        bulk = not asked  # the stage of the urgent shard runs inside of that of the bulk shard
        answer_stage(replace(context, run_urgent=run_urgent) if bulk else context)

    return stage


@pytest.mark.parametrize("pauses", [{0}, {1, 3}, {2, 5}], ids=str)
def test_urgent_questions_are_answered_in_between_and_the_others_as_without_them(
    whole_gallery: Workshop, ten_questions: list[str], pauses: set[int]
) -> None:
    # One shard, however long its questions seem to take.
    shop = whole_gallery.with_settings(questions_per_step=2, pairs_per_batch=8, shard_seconds=3_600.0)
    shop.ask(ten_questions[:1])  # which measures the pace: without it, the first step of a job is a batch of its own
    undisturbed = outcome(shop.ask(ten_questions))
    [expected] = outcome(shop.ask(ten_questions[:1]))
    asked: list[int] = []
    job_id = shop.submit(ten_questions).job_id
    replace(shop, stages={JobKind.ANSWER: with_a_question_at(pauses, shop, ten_questions[0], asked)}).run_once()
    assert len(asked) == len(pauses)
    assert outcome(shop.rows(job_id)) == undisturbed
    assert shard_of(shop, job_id) == (1, 1, "done"), "the shard was handed back, or blamed"
    with shop.engine.begin() as connection:
        last_of = dict(
            connection.execute(
                select(answers.c.job_id, func.max(answers.c.created_at)).group_by(answers.c.job_id)
            ).all()
        )
    for urgent in asked:
        [row] = shop.rows(urgent)
        assert (row.status, row.answer, row.confidence) == (expected[1], expected[2], expected[3])
        assert last_of[urgent] < last_of[job_id]


def test_a_shard_keeps_its_champion_when_an_urgent_question_brings_a_newer_one(
    gallery: Workshop, asked: list[str]
) -> None:
    gallery = gallery.with_settings(shard_seconds=3_600.0)
    gallery.ask(asked[:1])
    undisturbed = outcome(gallery.ask(asked[:4]))
    urgent: list[int] = []
    stage = with_a_question_at(
        {1}, gallery, asked[0], urgent, before=lambda: promote_random_adapter(gallery, Role.RERANKER, "newer", 7)
    )
    job_id = gallery.submit(asked[:4]).job_id
    replace(gallery, stages={JobKind.ANSWER: stage}).run_once()
    assert outcome(gallery.rows(job_id)) == undisturbed
    profile = gallery.resources.models.profile.name
    champion = in_transaction(gallery.engine, registry.champions, profile)[Role.RERANKER]
    [row] = gallery.rows(urgent[0])
    assert row.models is not None and row.models["reranker"] == champion.name
    assert gallery.rows(job_id)[0].models != row.models


def test_the_attempt_of_a_shard_does_not_count_while_it_gives_way(
    whole_gallery: Workshop, ten_questions: list[str]
) -> None:
    """An urgent question that kills its worker is poison; the shard that gave way to it is not."""
    asked: list[int] = []
    seen: list[tuple[int, int, str]] = []
    job_id = whole_gallery.submit(ten_questions[:2]).job_id
    bulk = with_a_question_at({0}, whole_gallery, ten_questions[0], asked)

    def stage(context: ShardContext[Resources]) -> None:
        if context.lease.job_id == job_id:
            bulk(context)
        else:
            seen.append(shard_of(whole_gallery, job_id))
            raise DeviceLost("the device is gone")

    with pytest.raises(DeviceLost):
        replace(whole_gallery, stages={JobKind.ANSWER: stage}).run_once()
    assert seen == [(1, 0, "running")]
    assert shard_of(whole_gallery, job_id)[1] == 0
    whole_gallery.let_wait_end()
    whole_gallery.run()
    assert [row.status for job in (job_id, *asked) for row in whole_gallery.rows(job)] == ["answered"] * 3
