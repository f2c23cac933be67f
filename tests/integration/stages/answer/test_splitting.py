"""A shard that would take too long is split into such whose questions share candidates, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import select

from ragllava.errors import ScoreRejected
from ragllava.jobs import control
from ragllava.jobs.states import JobState
from ragllava.models.reranker import Pair, Relevance
from ragllava.records import AnswerStatus
from ragllava.stages.answer.submit import submit_refresh
from ragllava.stores.database import in_transaction
from ragllava.stores.schema import questions, shards
from tests.support.workshop import PAPER, Workshop

TOP_K = 4
ALL_OF_THEM = {"top_k": TOP_K, **PAPER}  # each question has exactly so many candidates, and all are reranked
STEP = 3  # questions of the first sub-batch, by which the pace is learned


@pytest.fixture
def desk(whole_gallery: Workshop) -> Workshop:
    """Whatever is left after the first sub-batch takes too long, and a shard holds few questions."""
    return whole_gallery.with_settings(shard_seconds=0.001, questions_per_step=STEP)


def states(workshop: Workshop, job_id: int) -> list[str]:
    query = select(shards.c.state).where(shards.c.job_id == job_id).order_by(shards.c.id)
    with workshop.engine.begin() as connection:
        return list(connection.scalars(query))


def places(workshop: Workshop, job_id: int) -> list[int]:
    query = select(questions.c.place).where(questions.c.job_id == job_id).order_by(questions.c.question_no)
    with workshop.engine.begin() as connection:
        return list(connection.scalars(query))


def facts(rows: Sequence[Any]) -> list[Any]:
    """Of each row what must not depend on shards; relevances to four decimals."""
    return [
        (
            row.custom_id,
            row.status,
            row.answer,
            [(c.image.image_id, c.evidence_no, pytest.approx(c.relevance, abs=1e-4)) for c in row.candidates],
        )
        for row in rows
    ]


@pytest.mark.parametrize("options", [ALL_OF_THEM, {"top_k": TOP_K}], ids=["paper", "default"])
def test_a_split_shard_gives_the_same_answers_in_the_same_order(
    desk: Workshop, whole_gallery: Workshop, ten_questions: list[str], options: dict[str, Any]
) -> None:
    unsplit = whole_gallery.submit(ten_questions, **options).job_id
    whole_gallery.run()
    job_id = desk.submit(ten_questions, **options).job_id
    desk.run()
    assert states(whole_gallery, unsplit) == ["done"]
    assert states(desk, job_id) == ["split"] + ["done"] * (len(ten_questions) - STEP), (
        "each question is a shard of its own"
    )
    assert desk.job(job_id).state == JobState.COMPLETED
    assert facts(desk.rows(job_id)) == facts(whole_gallery.rows(unsplit))


def test_questions_that_share_pictures_follow_each_other(whole_gallery: Workshop, ten_questions: list[str]) -> None:
    second = next(text for text in ten_questions if text != ten_questions[0])
    texts = [ten_questions[0], second] * 6
    sharing = whole_gallery.resources.models.reranker.sharing
    assert sharing is not None
    prefix = sharing.prefix_tokens / sharing.ending_tokens
    of_six = prefix * TOP_K + 6 * (TOP_K + (prefix + 1) * whole_gallery.settings.top_n)
    desk = whole_gallery.with_settings(shard_seconds=1.001 * of_six)
    desk.resources.pace.learn(1.0, cost=1.0)
    job_id = desk.submit(texts, **ALL_OF_THEM).job_id
    desk.run_once()
    assert states(desk, job_id)[0] == "split"
    order = sorted(range(len(texts)), key=places(desk, job_id).__getitem__)
    assert [texts[number] for number in order] == [ten_questions[0]] * 6 + [second] * 6
    assert sorted(places(desk, job_id)) == list(range(len(texts)))


def test_the_questions_of_an_unsplit_shard_are_searched_once(whole_gallery: Workshop, ten_questions: list[str]) -> None:
    """The hits of planning are used for the answers."""

    class Counting:
        """The real retriever, which notes how many texts it was given."""

        def __init__(self, retriever: Any) -> None:
            self._retriever = retriever
            self.version, self.dim, self.is_on_gpu = retriever.version, retriever.dim, retriever.is_on_gpu
            self.texts = 0

        def embed_texts(self, texts: list[str]) -> Any:
            self.texts += len(texts)
            return self._retriever.embed_texts(texts)

    texts = [ten_questions[0]] * 12
    sharing = whole_gallery.resources.models.reranker.sharing
    assert sharing is not None
    prefix = sharing.prefix_tokens / sharing.ending_tokens
    of_all = prefix * TOP_K + 12 * (TOP_K + (prefix + 1) * whole_gallery.settings.top_n)
    whole_gallery.run()  # what other tests have left
    counting = Counting(whole_gallery.resources.models.retriever)
    desk = whole_gallery.with_settings(shard_seconds=1.5 * of_all).with_models(retriever=counting)
    desk.resources.pace.learn(1.0, cost=1.0)
    job_id = desk.submit(texts, **ALL_OF_THEM).job_id
    desk.run()
    assert states(desk, job_id) == ["done"]
    assert counting.texts == len(texts)
    assert len({str(facts([row])[0][1:3]) for row in desk.rows(job_id)}) == 1


def test_a_question_that_breaks_a_worker_ends_alone_after_a_split(desk: Workshop, ten_questions: list[str]) -> None:
    class Breaking:
        """The real reranker, which fails like a worker's own fault for one question."""

        def __init__(self, reranker: Any) -> None:
            self._reranker = reranker
            self.version, self.sharing = reranker.version, reranker.sharing

        def relevance(self, pairs: Sequence[Pair], batch_size: int) -> list[Relevance]:
            if any("BREAKS" in pair.question for pair in pairs):
                raise ZeroDivisionError("a fault of our own")
            scored: list[Relevance] = self._reranker.relevance(pairs, batch_size=batch_size)
            return scored

    broken = desk.with_models(reranker=Breaking(desk.resources.models.reranker))
    broken.resources.pace.learn(1.0, cost=1.0)
    rows = broken.ask([*ten_questions[:5], "BREAKS the tower?"], **ALL_OF_THEM)
    assert [row.status is AnswerStatus.DEAD for row in rows] == [False] * 5 + [True]


def test_halves_of_a_shard_that_was_never_planned_are_planned(desk: Workshop, ten_questions: list[str]) -> None:
    job_id = desk.submit(ten_questions, **ALL_OF_THEM).job_id

    class Failing:
        """A retriever that fails like a worker's own fault."""

        def __init__(self, retriever: Any) -> None:
            self.version, self.dim = retriever.version, retriever.dim

        def embed_texts(self, texts: list[str]) -> Any:
            raise ZeroDivisionError("a fault of our own")

    failing = desk.with_models(retriever=Failing(desk.resources.models.retriever))
    for _ in range(desk.settings.max_attempts):
        failing.run_once()
    assert states(desk, job_id) == ["split", "pending", "pending"]
    desk.resources.pace.learn(1.0, cost=1.0)
    desk.run()
    assert states(desk, job_id) == ["split", "split", "split"] + ["done"] * len(ten_questions)
    assert desk.job(job_id).state == JobState.COMPLETED


def test_a_cancelled_job_has_an_outcome_for_each_question_after_a_split(
    desk: Workshop, ten_questions: list[str]
) -> None:
    job_id = desk.submit(ten_questions, **ALL_OF_THEM).job_id
    desk.run_once()  # answers the first sub-batch and splits
    desk.run_once()
    with desk.engine.begin() as connection:
        control.cancel(connection, job_id)
    desk.run()
    rows = desk.rows(job_id)
    cancelled = [row for row in rows if row.status is AnswerStatus.CANCELLED]
    assert len(rows) == len(ten_questions)
    assert len(cancelled) == len(ten_questions) - STEP - 1
    with desk.engine.begin() as connection:
        assert control.retry(connection, job_id, per_shard=100) == len(cancelled)
    desk.run()
    assert desk.job(job_id).state == JobState.COMPLETED
    assert [row.custom_id for row in desk.rows(job_id)] == [f"q{number}" for number in range(len(ten_questions))]


def test_a_worker_that_lost_its_lease_cannot_split(desk: Workshop, ten_questions: list[str]) -> None:
    desk.resources.pace.learn(1.0, cost=1.0)
    job_id = desk.submit(ten_questions, **ALL_OF_THEM).job_id
    [shard_id] = desk.dispatch()

    class Robbed:
        """The real retriever; while it searches for the plan, the sweep gives the shard to another worker."""

        def __init__(self, retriever: Any) -> None:
            self._retriever = retriever
            self.version, self.dim = retriever.version, retriever.dim

        def embed_texts(self, texts: list[str]) -> Any:
            with desk.engine.begin() as connection:
                connection.execute(shards.update().where(shards.c.id == shard_id).values(epoch=shards.c.epoch + 1))
            return self._retriever.embed_texts(texts)

    robbed = desk.with_models(retriever=Robbed(desk.resources.models.retriever))
    robbed.resources.pace.learn(1.0, cost=1.0)
    assert robbed.run_shard(shard_id)
    assert states(desk, job_id) == ["running"]
    assert places(desk, job_id) == list(range(len(ten_questions)))


def test_a_refresh_splits_what_has_changed_only(
    desk: Workshop, whole_gallery: Workshop, ten_questions: list[str]
) -> None:
    earlier = whole_gallery.submit(ten_questions, **ALL_OF_THEM).job_id
    whole_gallery.run()
    job_id, _ = in_transaction(desk.engine, submit_refresh, desk.settings, earlier)
    desk.run()
    assert states(desk, job_id) == ["done"], "all were taken over, so nothing was left to split"
    assert facts(desk.rows(job_id)) == facts(whole_gallery.rows(earlier))


def test_a_question_without_candidates_is_planned_like_others(desk: Workshop, ten_questions: list[str]) -> None:
    class Refusing:
        """The real retriever, for which one question is too much."""

        def __init__(self, retriever: Any) -> None:
            self._retriever = retriever
            self.version, self.dim = retriever.version, retriever.dim

        def embed_texts(self, texts: list[str]) -> Any:
            if any("TOO MUCH" in text for text in texts):
                raise ScoreRejected("no vector for this text")
            return self._retriever.embed_texts(texts)

    refusing = desk.with_models(retriever=Refusing(desk.resources.models.retriever))
    rows = refusing.ask([*ten_questions[:6], "TOO MUCH?"], **ALL_OF_THEM)
    assert [row.status is AnswerStatus.FAILED for row in rows] == [False] * 6 + [True]
