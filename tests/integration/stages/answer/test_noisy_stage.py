"""Noisy cases that the answer stage logs beside its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ragllava.errors import LeaseLost, ScoreRejected
from ragllava.feedback import NoisyReason, NoisyState
from ragllava.jobs import control
from ragllava.jobs.runner import ShardContext
from ragllava.records import AnswerStatus, JobKind
from ragllava.stages.answer.stage import answer_stage
from ragllava.stages.resources import Resources
from ragllava.stores.learning import noisy
from ragllava.stores.learning.noisy import NoisyView
from tests.integration.conftest import Postcards
from tests.support.workshop import PAPER, Workshop


@pytest.fixture(scope="module")
def gallery(whole_gallery: Workshop) -> Workshop:
    """Every doubt but those of a test is switched off."""
    return whole_gallery.with_settings(near_threshold_logits=0.0, low_confidence=0.0, leave_one_out=False)


@pytest.fixture(scope="module")
def asked(postcards: Postcards) -> list[str]:
    return [question.text for question in postcards.archive.questions[:4]]


def cases_of(workshop: Workshop, job_id: int) -> dict[str, NoisyView]:
    with workshop.engine.begin() as connection:
        cases = noisy.list_cases(connection, workshop.archive_id())
    return {case.question.custom_id: case for case in cases if case.question.job_id == job_id}


def run(workshop: Workshop, asked: Sequence[str], **options: Any) -> int:
    """Ask from the three nearest pictures, all of them reranked."""
    job_id = workshop.submit(asked, top_k=3, **PAPER, **options).job_id
    workshop.run()
    return job_id


class Echo:
    """A generator whose answer is the number of pictures; it counts how often it is asked."""

    version = "echo"

    def __init__(self, answer: Callable[[Any], str]) -> None:
        self._answer = answer
        self.asked = 0

    def answer(self, requests: Sequence[Any], **_options: object) -> list[Any]:
        from ragllava.models.generator import GeneratedAnswer

        self.asked += len(requests)
        return [GeneratedAnswer(self._answer(request), 0.9) for request in requests]


def test_questions_without_evidence_are_logged_with_their_answers(gallery: Workshop, asked: list[str]) -> None:
    job_id = run(gallery, asked, threshold=1.0)
    cases = cases_of(gallery, job_id)
    assert list(cases) == ["q0", "q1", "q2", "q3"]
    for case in cases.values():
        assert (case.reasons, case.state) == ((NoisyReason.NO_EVIDENCE,), NoisyState.OPEN)
        assert case.question.candidates[0].image.source in case.details["no_evidence"]


def test_an_unsure_answer_is_logged(gallery: Workshop, asked: list[str]) -> None:
    unsure = gallery.with_settings(near_threshold_logits=0.0, low_confidence=1.0, leave_one_out=False)
    job_id = run(unsure, asked, threshold=0.0)
    rows = [row for row in unsure.rows(job_id) if row.confidence is not None and row.confidence < 1]
    low = {name for name, case in cases_of(unsure, job_id).items() if NoisyReason.LOW_CONFIDENCE in case.reasons}
    assert low == {row.custom_id for row in rows} != set()


def test_an_answer_that_needs_its_second_image_is_fragile(gallery: Workshop, asked: list[str]) -> None:
    counting = Echo(lambda request: str(len(request.pictures)))
    workshop = gallery.with_models(generator=counting).with_settings(
        near_threshold_logits=0.0, low_confidence=0.0, leave_one_out=True
    )
    job_id = run(workshop, asked, threshold=0.0)
    cases = cases_of(workshop, job_id)
    fragile = {name: case for name, case in cases.items() if NoisyReason.FRAGILE_ANSWER in case.reasons}
    assert list(fragile) == ["q0", "q1", "q2", "q3"]
    for case in fragile.values():
        last = case.question.evidence[-1].image.source
        assert case.details["fragile_answer"] == f"without {last} the answer is '1', not '2'"
    assert counting.asked == 8


def test_one_kept_image_or_the_setting_spares_the_second_answer(gallery: Workshop, asked: list[str]) -> None:
    counting = Echo(lambda request: "same")
    workshop = gallery.with_models(generator=counting)
    off, on = workshop, workshop.with_settings(near_threshold_logits=0.0, low_confidence=0.0, leave_one_out=True)
    run(off, asked, threshold=0.0)
    run(on, asked, threshold=0.0, top_n=1)
    assert counting.asked == 8


def test_a_second_answer_that_fails_leaves_the_first(gallery: Workshop, asked: list[str]) -> None:
    def answer(request: Any) -> str:
        if len(request.pictures) == 1:
            raise ScoreRejected("no number")
        return "two"

    workshop = gallery.with_models(generator=Echo(answer)).with_settings(
        near_threshold_logits=0.0, low_confidence=0.0, leave_one_out=True
    )
    job_id = run(workshop, asked, threshold=0.0)
    assert [(row.status, row.answer) for row in workshop.rows(job_id)] == [(AnswerStatus.ANSWERED, "two")] * 4
    assert not any(NoisyReason.FRAGILE_ANSWER in case.reasons for case in cases_of(workshop, job_id).values())


def test_no_noisy_case_is_written_behind_a_lost_lease(gallery: Workshop, asked: list[str]) -> None:
    lost: list[type[Exception]] = []

    def loses(context: ShardContext[Resources]) -> None:
        stale = replace(context, lease=replace(context.lease, epoch=context.lease.epoch - 1))
        try:
            answer_stage(stale)
        except LeaseLost as error:
            lost.append(type(error))
            raise

    robbed = replace(gallery, stages={JobKind.ANSWER: loses})
    job_id = robbed.submit(asked, top_k=3, threshold=1.0, **PAPER).job_id
    robbed.run_once()
    assert lost == [LeaseLost]
    assert cases_of(gallery, job_id) == {}
    with gallery.engine.begin() as connection:
        control.cancel(connection, job_id)


def test_a_retry_adds_its_cases_to_those_of_the_first_run(gallery: Workshop, asked: list[str]) -> None:
    job_id = gallery.submit(asked, top_k=3, threshold=1.0, **PAPER).job_id
    with gallery.engine.begin() as connection:
        control.cancel(connection, job_id)
    assert cases_of(gallery, job_id) == {}
    with gallery.engine.begin() as connection:
        assert control.retry(connection, job_id, per_shard=2) == 4
    gallery.run()
    assert [case.reasons for case in cases_of(gallery, job_id).values()] == [(NoisyReason.NO_EVIDENCE,)] * 4
