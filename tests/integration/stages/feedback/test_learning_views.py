"""What people look at before they promote a version, on a real database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from ragllava.errors import UsageError
from ragllava.evaluation.threshold_curve import nearest_point
from ragllava.models.profiles import get_profile
from ragllava.records import Role
from ragllava.settings import Settings
from ragllava.stores.learning import registry, trainings
from ragllava.stores.learning.registry import BaseVersion
from ragllava.stores.learning.trainings import StepLoss
from tests.support.reviewed_job import Review, add_job, open_review


@pytest.fixture
def review(settings: Settings, engine: Engine) -> Iterator[Review]:
    with open_review(settings, engine) as review:
        yield review


def test_the_threshold_curve_counts_labels_of_what_the_version_answered(
    settings: Settings, engine: Engine, review: Review
) -> None:
    assert review.client.models.threshold_curve("harbour").version is None
    with pytest.raises(UsageError, match="no reranker version none"):
        review.client.models.threshold_curve("harbour", "none")
    profile = get_profile(settings).name
    with engine.begin() as connection:
        registry.ensure_champions(connection, profile, [BaseVersion(Role.RERANKER, "reranker@2", "prompt", 0.4)])
        job_id = add_job(connection, review, 10)
    assert review.client.models.threshold_curve("harbour").points == ()
    boats, bridge, tower, *_ = review.images  # relevances 0.9, 0.8, 0.3, 0.1
    for number in range(10):
        said = {"job": job_id, "custom_id": f"c{number}", "verdict": "wrong"}
        right = {"relevant": [boats.image_id], "irrelevant": [bridge.image_id]}
        swapped = {"relevant": [tower.image_id], "irrelevant": [boats.image_id]}
        review.say(said | (swapped if number < 5 else right))
    review.say({"custom_id": "q0", "verdict": "right"})  # of another reranker
    curve = review.client.models.threshold_curve("harbour")
    assert (curve.version, curve.threshold, curve.questions, curve.correct, curve.wrong) == (
        "reranker@2", 0.4, 10, 10, 10)  # fmt: skip
    low, middle, high = (nearest_point(curve.points, eta) for eta in (0.2, 0.85, 0.95))
    assert (low.precision, low.recall, low.no_evidence) == (0.5, 1.0, 0.0)
    assert (middle.precision, middle.recall, middle.no_evidence) == (0.5, 0.5, 0.0)
    assert (high.precision, high.recall, high.no_evidence) == (None, 0.0, 1.0)


def test_promotions_and_losses_are_listed(settings: Settings, engine: Engine, review: Review) -> None:
    profile = get_profile(settings).name
    with engine.begin() as connection:
        for name in ("base@1", "base@2"):
            registry.ensure_champions(connection, profile, [BaseVersion(Role.RERANKER, name, "prompt", 0.4)])
        registry.promote(connection, profile, Role.RERANKER, "base@1", "by hand")
        trainings.store_losses(connection, review.job_id, [StepLoss(1, 2.0, 0.1), StepLoss(2, 1.0, 0.1)])
        trainings.store_losses(connection, review.job_id, [StepLoss(2, 1.5, 0.1), StepLoss(3, 0.5, 0.1)])
    newest, *_ = review.client.models.promotions(Role.RERANKER)
    assert (newest.version, newest.replaced, newest.reason) == ("base@1", "base@2", "by hand")
    assert review.client.models.promotions(Role.GENERATOR) == []
    assert [loss.loss for loss in review.client.models.losses(review.job_id)] == [2.0, 1.5, 0.5]
    assert [loss.step for loss in review.client.models.losses(review.job_id, after=2)] == [3]
