"""Which trainings are begun, and on what: asked for by people, tried again, or due by themselves."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ragllava.errors import UsageError
from ragllava.feedback import Label, Verdict
from ragllava.jobs import control
from ragllava.jobs.states import JobState
from ragllava.records import Role, ScheduleAction
from ragllava.stages.maintenance.schedules import ScheduleRequest, add_schedule, run_now
from ragllava.stores.database import in_transaction
from ragllava.stores.learning import labels
from ragllava.training.request import TrainingRequest, create_job, submit_due_trainings, submit_training
from ragllava.training.scheduled import STARTERS
from tests.support.toy_questions import Classroom
from tests.support.workshop import Workshop

RETRAIN = {"role": "reranker", "labels": 40}


@pytest.fixture
def desk(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A worker beside the archives `class` and `other`, of the same pictures."""
    for name in ("class", "other"):
        folder = Classroom(workshop.engine, workshop.settings).draw(tmp_path / name)
        workshop.ingest(folder, captions=folder / "captions.csv", archive_name=name)
    return workshop


def label(desk: Workshop, count: int, archive_name: str = "class") -> int:
    return Classroom(desk.engine, desk.settings, archive_name).label(count)


def submit(desk: Workshop, role: Role = Role.RERANKER, key: str | None = None, **changes: Any) -> tuple[int, bool]:
    request = TrainingRequest(role, ("class",), "mini", **changes)
    return in_transaction(desk.engine, submit_training, desk.settings, request, key)


def cancel(desk: Workshop, *job_ids: int) -> None:
    with desk.engine.begin() as connection:
        for job_id in job_ids:
            control.cancel(connection, job_id)


def archives_of(desk: Workshop, job_ids: list[int]) -> dict[str, list[str]]:
    """What each role is trained on."""
    specs = [desk.job(job_id).spec for job_id in job_ids]
    return {spec["role"]: spec["archives"] for spec in specs}


def test_a_training_asked_for_again_under_its_key_is_the_same_job(desk: Workshop) -> None:
    label(desk, 100)
    job_id, _ = submit(desk, key="monday")
    assert submit(desk, key="monday") == (job_id, False)
    with pytest.raises(UsageError, match=f"'monday' belongs to job {job_id}, which has another content"):
        submit(desk, key="monday", negatives=2.0)
    with pytest.raises(UsageError, match=f"job {job_id} trains the reranker already"):
        submit(desk, key="tuesday")
    cancel(desk, job_id)
    assert submit(desk, key="monday") == (job_id, False), "ended or not"


def test_a_training_is_not_tried_again_beside_another_one_of_its_role(desk: Workshop) -> None:
    label(desk, 100)
    first, _ = submit(desk)
    cancel(desk, first)
    second, _ = submit(desk)
    with (
        pytest.raises(UsageError, match=f"job {second} trains the reranker already: wait for it, or stop it with"),
        desk.engine.begin() as connection,
    ):
        control.retry(connection, first, per_shard=1)
    assert desk.job(first).state == JobState.CANCELLED, "as it was"
    submit(desk, Role.GENERATOR)
    cancel(desk, second)
    with desk.engine.begin() as connection:
        assert control.retry(connection, first, per_shard=1) == 1


def test_of_a_training_begun_and_one_tried_again_at_once_one_waits_for_the_other(
    desk: Workshop, wait_for_waiter: Callable[[], None]
) -> None:
    label(desk, 100)
    first, _ = submit(desk)
    cancel(desk, first)
    with ThreadPoolExecutor(1) as threads:
        with desk.engine.begin() as connection:
            assert control.retry(connection, first, per_shard=1) == 1
            other = threads.submit(submit, desk)
            wait_for_waiter()
        with pytest.raises(UsageError, match=f"job {first} trains the reranker already"):
            other.result()


def test_what_begins_by_itself_replays_all_archives_that_say_something_to_the_role(desk: Workshop) -> None:
    due = desk.settings.model_copy(update={"retrain_after": 50})
    asked = label(desk, 30)
    label(desk, 50, "other")
    # The newest labels count: nobody says any more what is the right answer in this archive.
    [image, *_] = [row.id for row in desk.images("class").values()]
    said = [Label(asked, n, Verdict.WRONG, None, (image,), (), "person") for n in range(30)]
    with desk.engine.begin() as connection:
        labels.insert_labels(connection, said)
    begun = submit_due_trainings(desk.engine, due)
    assert archives_of(desk, begun) == {"reranker": ["other", "class"], "generator": ["other"]}
    assert submit_due_trainings(desk.engine, due) == []


def test_labels_that_were_replayed_in_vain_are_due_as_before(desk: Workshop) -> None:
    due = desk.settings.model_copy(update={"retrain_after": 50})
    label(desk, 50)
    label(desk, 60, "other")
    first = submit_due_trainings(desk.engine, due)
    assert archives_of(desk, first)["reranker"] == ["class", "other"]
    cancel(desk, *first)
    second = submit_due_trainings(desk.engine, due)
    assert archives_of(desk, second)["reranker"] == ["other", "class"]
    cancel(desk, *second)
    assert submit_due_trainings(desk.engine, due) == [], "each archive has had its own try"


def test_a_schedule_that_begins_no_training_says_which_reason_it_has(desk: Workshop) -> None:
    for name, where in (("one", "class"), ("any", None)):
        asked = ScheduleRequest(ScheduleAction.RETRAIN, "0 3 * * *", where, name=name, options=RETRAIN)
        in_transaction(desk.engine, add_schedule, asked, STARTERS)

    def note(name: str) -> str | None:
        return in_transaction(desk.engine, run_now, desk.settings, name, STARTERS).note

    label(desk, 30)
    assert note("one") == "class has 30 newly labelled questions for the reranker, and needs 40"
    assert note("any") == "class has the most newly labelled questions for the reranker, 30, and needs 40"
    label(desk, 40, "other")
    with desk.engine.begin() as connection:
        job_id, _ = create_job(connection, TrainingRequest(Role.RERANKER, ("class",), "mini"))
    for name in ("one", "any"):
        said = note(name)
        assert said is not None and f"job {job_id} trains the reranker already" in said


def test_an_archive_that_had_its_training_keeps_no_other_one_waiting(desk: Workshop) -> None:
    """Labels given while a training begins are counted once more; what was begun for them is not begun again."""
    due = desk.settings.model_copy(update={"retrain_after": 50})
    label(desk, 50)
    cancel(desk, *submit_due_trainings(desk.engine, due))
    with desk.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET created_at = created_at - interval '1 hour' WHERE kind = 'train'"))
    label(desk, 50, "other")
    assert archives_of(desk, submit_due_trainings(desk.engine, due))["reranker"] == ["other", "class"]
