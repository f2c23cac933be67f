"""What the learning demo calls learned, and what it calls forgotten."""

from __future__ import annotations

import pytest

from ragllava.cli.demo.learn import BeforeAfter, in_use
from ragllava.evaluation.metrics import GroupFigures, JobFigures
from ragllava.records import Role, TrainingStatus
from ragllava.stores.learning.trainings import TrainingView


def figures(right: int, *, of_two: int, recall_of_two: float = 1.0) -> JobFigures:
    """300 questions, 30 of them about two pictures; all 270 others are right up to `right`."""
    return JobFigures(
        group(300, (right + of_two) / 300), group(270, right / 270), group(30, of_two / 30, recall_of_two), {}
    )


def group(questions: int, accuracy: float, recall: float = 1.0) -> GroupFigures:
    recalls = {1: recall, 2: recall}
    return GroupFigures(questions, questions, 0, 0, 0, recalls, recall, recalls, accuracy)


def test_the_share_of_errors_that_is_gone() -> None:
    assert BeforeAfter(figures(140, of_two=10), figures(185, of_two=10)).fall_of_errors == pytest.approx(0.3)
    assert BeforeAfter(figures(140, of_two=10), figures(125, of_two=10)).fall_of_errors == pytest.approx(-0.1)
    assert BeforeAfter(figures(270, of_two=30), figures(270, of_two=30)).fall_of_errors == 0


def test_the_largest_fall_is_of_the_total_that_fell_most() -> None:
    comparison = BeforeAfter(figures(260, of_two=30), figures(265, of_two=27))
    assert comparison.largest_fall == pytest.approx(0.1)
    assert BeforeAfter(figures(260, of_two=27), figures(265, of_two=27)).largest_fall == 0


def test_what_is_said_to_stay_in_use_is_what_was_promoted() -> None:
    def ended(role: Role, status: TrainingStatus) -> TrainingView:
        return TrainingView(role, "ended", 1, 1, status, None, f"{role}-1")

    refused = [ended(role, TrainingStatus.REFUSED) for role in Role]
    assert in_use(refused) == "the gate refused every trained version, so questions are answered as before"
    line = in_use([ended(Role.RERANKER, TrainingStatus.PROMOTED), refused[1]])
    assert line == "the trained reranker stays in use; `ragllava models rollback --role reranker` undoes it"
