"""What is asked of a training, on its way into a job and back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from ragllava.errors import UsageError
from ragllava.json_records import from_json
from ragllava.records import Role
from ragllava.training.request import TrainingRequest, check_request


def request(**changes: Any) -> TrainingRequest:
    return TrainingRequest(**{"role": Role.RERANKER, "archives": ("cards", "home"), "preset": "mini", **changes})


def test_a_job_holds_all_that_was_asked() -> None:
    asked = request(
        overrides={"epochs": 2.0}, since=datetime(2026, 11, 25, tzinfo=UTC), promote=False, negatives=4.0,
        precision=0.95, top_k=40, bare_share=0.1,
    )  # fmt: skip
    assert from_json(TrainingRequest, asked.as_spec()) == asked


def test_a_job_of_an_earlier_version_lacks_what_could_not_be_asked_then() -> None:
    spec = request(negatives=4.0).as_spec()
    earlier = {name: value for name, value in spec.items() if name not in ("top_k", "bare_share")}
    assert from_json(TrainingRequest, earlier) == request(negatives=4.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"archives": ()}, "at least one archive"),
        ({"archives": ("cards", "cards")}, "each only once"),
        ({"negatives": -1.0}, "from 0 to 100"),
        ({"top_k": 0}, "at least the first candidate"),
        ({"bare_share": 1.5}, "from 0 to 1, not 1.5"),
        ({"precision": 1.0}, "between 0 and 1"),
        ({"role": Role.GENERATOR, "precision": 0.9}, "for rerankers only"),
    ],
)
def test_what_no_training_can_do_is_refused_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        check_request(request(**changes))
