"""Noisy cases, labels and the exchange with reviewers on a real database."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from ragllava.errors import InvalidInput, UsageError
from ragllava.feedback import Label, NoisyReason, NoisyState, Verdict
from ragllava.jobs import control
from ragllava.jobs.control import NewJob
from ragllava.records import Answer, AnswerStatus, JobKind, StoredImage
from ragllava.settings import Settings
from ragllava.stages.feedback.label_studio import LABELING_CONFIG
from ragllava.stores.archives import archive
from ragllava.stores.jobs import answers
from ragllava.stores.learning import noisy
from ragllava.stores.objects import content_key
from tests.support.reviewed_job import STAMP, Review, add_images, open_review, reranked


@pytest.fixture
def review(settings: Settings, engine: Engine) -> Iterator[Review]:
    with open_review(settings, engine) as review:
        yield review


# Noisy cases


def test_reasons_of_a_question_gather_and_the_state_stays(review: Review) -> None:
    review.doubt(0, NoisyReason.NEAR_THRESHOLD)
    review.doubt(0, NoisyReason.LOW_CONFIDENCE, "only 0.2")
    case = review.cases()["q0"]
    assert set(case.reasons) == {NoisyReason.NEAR_THRESHOLD, NoisyReason.LOW_CONFIDENCE}
    assert case.details == {"near_threshold": "because", "low_confidence": "only 0.2"}
    assert (case.state, case.question.text, case.question.answer) == (NoisyState.OPEN, "question 0?", "two")
    with review.client.engine.begin() as connection:
        assert noisy.set_state(connection, [(review.job_id, 0), (review.job_id, 3)], NoisyState.DISMISSED) == 1
    review.doubt(0, NoisyReason.NO_EVIDENCE)
    assert review.cases()["q0"].state is NoisyState.DISMISSED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (NoisyState.OPEN, NoisyState.OPEN),
        (NoisyState.LABELLED, NoisyState.OPEN),
        (NoisyState.DISMISSED, NoisyState.DISMISSED),
    ],
)
def test_a_reason_that_training_adds_asks_again_unless_it_was_dismissed(
    review: Review, before: NoisyState, after: NoisyState
) -> None:
    review.doubt(0, NoisyReason.NEAR_THRESHOLD)
    with review.client.engine.begin() as connection:
        noisy.set_state(connection, [(review.job_id, 0)], before)
        for number in (0, 1):
            reason = NoisyReason.UNLABELLED_RELEVANT
            noisy.add_reason(connection, review.archive_id, review.job_id, number, reason, "tower.png: 0.99")
    cases = review.cases(reason=NoisyReason.UNLABELLED_RELEVANT)
    assert {custom_id: case.state for custom_id, case in cases.items()} == {"q0": after, "q1": NoisyState.OPEN}
    assert cases["q0"].details["unlabelled_relevant"] == "tower.png: 0.99"


def test_cases_are_listed_by_state_and_reason_and_up_to_a_limit(review: Review) -> None:
    review.doubt(0, NoisyReason.NEAR_THRESHOLD)
    review.doubt(1, NoisyReason.NO_EVIDENCE)
    review.say({"custom_id": "q0", "verdict": "right"})
    assert list(review.cases()) == ["q0", "q1"]
    assert list(review.cases(state=NoisyState.OPEN)) == ["q1"]
    assert list(review.cases(state=NoisyState.LABELLED)) == ["q0"]
    assert list(review.cases(reason=NoisyReason.NO_EVIDENCE)) == ["q1"]
    assert list(review.cases(limit=1)) == ["q0"]
    with pytest.raises(UsageError, match="no archive 'nowhere'"):
        review.client.reviews.list("nowhere")


# Labels


def test_right_alone_means_this_answer_from_the_kept_images(review: Review) -> None:
    stored = review.say({"custom_id": "q0", "verdict": "right"}, {"custom_id": "q1", "verdict": "right"})
    assert (stored.right, stored.wrong, stored.open_cases, stored.errors) == (2, 0, 0, [])
    first, second = review.labels()
    kept = tuple(image.image_id for image in review.images[:2])
    assert first.label == Label(review.job_id, 0, Verdict.RIGHT, "two", kept, (), "person")
    assert second.label == Label(review.job_id, 1, Verdict.RIGHT, None, (), (), "person")
    assert review.cases() == {}


def test_right_without_one_of_the_images_keeps_the_others(review: Review) -> None:
    review.say({"custom_id": "q0", "verdict": "right", "irrelevant": ["bridge.png"]})
    [row] = review.labels()
    boats, bridge = review.images[:2]
    assert (row.label.relevant, row.label.irrelevant) == ((boats.image_id,), (bridge.image_id,))


def test_wrong_with_what_is_right_is_a_labelled_noisy_case(review: Review) -> None:
    tower = review.images[2]
    feedback = {"custom_id": "q0", "verdict": "wrong", "answer": "three", "relevant": ["tower.png"],
            "irrelevant": [review.images[0].image_id]}  # fmt: skip
    stored = review.say(feedback, source="gold")
    assert (stored.wrong, stored.open_cases) == (1, 0)
    [row] = review.labels()
    assert row.label == Label(
        review.job_id, 0, Verdict.WRONG, "three", (tower.image_id,), (review.images[0].image_id,), "gold"
    )
    assert (row.archive_id, row.archive, row.text) == (review.archive_id, "harbour", "question 0?")
    assert [c.image for c in row.candidates] == list(review.images[:3])
    assert [c.retrieval_rank for c in row.candidates] == [2, 1, 0]
    case = review.cases()["q0"]
    assert (case.reasons, case.state) == ((NoisyReason.SAID_WRONG,), NoisyState.LABELLED)
    assert case.details == {"said_wrong": "the gold label calls the answer 'two' wrong; the right answer is 'three'"}


def test_wrong_alone_leaves_the_case_open(review: Review) -> None:
    review.say({"custom_id": "q1", "verdict": "right"})
    assert review.say({"custom_id": "q1", "verdict": "wrong"}).open_cases == 1
    case = review.cases()["q1"]
    assert case.state is NoisyState.OPEN
    assert case.details == {"said_wrong": "a person calls the outcome `no_evidence` wrong"}


def test_wrong_alone_keeps_what_an_earlier_label_says_about_pictures(review: Review) -> None:
    three = {"custom_id": "q0", "verdict": "wrong", "answer": "three", "relevant": ["tower.png"]}
    review.say(three)
    earlier = review.labels()
    again = review.say({"custom_id": "q0", "verdict": "wrong"})
    assert (again.unchanged, again.open_cases) == (1, 0)
    assert review.labels() == earlier
    assert review.cases()["q0"].state is NoisyState.LABELLED
    review.say({"custom_id": "q0", "verdict": "right"})
    [before] = review.labels()
    for open_cases in (1, 0):
        assert review.say({"custom_id": "q0", "verdict": "wrong"}).open_cases == open_cases
        [row] = review.labels()
        assert (row.label.verdict, row.label.answer) == (Verdict.WRONG, None)
        assert row.label.relevant == before.label.relevant != ()
        assert review.cases()["q0"].state is NoisyState.OPEN, "the right answer is not known"


def test_the_newest_label_of_a_question_counts_in_the_order_in_which_they_were_given(review: Review) -> None:
    review.say({"custom_id": "q0", "verdict": "wrong", "answer": "three"})
    review.say({"custom_id": "q0", "verdict": "wrong", "answer": "four"}, {"custom_id": "q1", "verdict": "right"})
    assert [row.label.answer for row in review.labels()] == ["four", None]
    assert len(review.labels([review.archive_id])) == 2
    assert review.labels([review.archive_id + 1]) == []
    assert review.labels([]) == []
    review.say({"custom_id": "q0", "verdict": "right"})
    assert [row.label.question_no for row in review.labels()] == [1, 0]


def test_a_repeated_label_is_not_stored(review: Review) -> None:
    three, right = {"custom_id": "q0", "verdict": "wrong", "answer": "three"}, {"custom_id": "q1", "verdict": "right"}
    first = review.say(three, right)
    assert (first.stored, first.unchanged) == (2, 0)
    before = review.labels()
    again = review.say(three, right, source="gold")
    assert (again.right, again.wrong, again.unchanged) == (0, 0, 2)
    assert review.labels() == before
    changed = review.say(three | {"relevant": ["tower.png"]}, right)
    assert (changed.right, changed.wrong, changed.unchanged) == (0, 1, 1)
    back = review.say(three)
    assert (back.wrong, back.unchanged) == (1, 0)
    assert [row.label.relevant for row in review.labels()] == [(), ()]


def test_a_case_that_was_reopened_is_labelled_by_a_repeated_label(review: Review) -> None:
    feedback = {"custom_id": "q0", "verdict": "wrong", "answer": "three"}
    review.say(feedback)
    with review.client.engine.begin() as connection:
        reason = NoisyReason.UNLABELLED_RELEVANT
        noisy.add_reason(connection, review.archive_id, review.job_id, 0, reason, "tower.png: 0.99")
    assert review.say(feedback).unchanged == 1
    assert review.cases()["q0"].state is NoisyState.LABELLED


def test_candidates_of_a_label_are_those_of_the_latest_run(review: Review) -> None:
    review.say({"custom_id": "q0", "verdict": "right"})
    with review.client.engine.begin() as connection:
        again = Answer(0, AnswerStatus.ANSWERED, "three", 0.9, reranked(review.images[2:4], 0.9), STAMP)
        answers.insert_answers(connection, review.job_id, 2, 1, 1, [again])
    [row] = review.labels()
    assert [candidate.image.source for candidate in row.candidates] == ["tower.png"]


# What is refused


def test_every_line_with_an_unknown_name_is_an_error_and_nothing_is_stored(review: Review) -> None:
    with review.client.engine.begin() as connection:
        elsewhere = archive.ensure_archive(connection, "elsewhere").archive_id
        ingest, _ = control.create(connection, NewJob(JobKind.INGEST, elsewhere, {}, total=1, per_shard=1))
    foreign = add_images(review.client.engine, elsewhere)
    errors = review.refused(
        {"custom_id": "q0", "verdict": "right"},
        {"job": 999, "custom_id": "q0", "verdict": "right"},
        {"job": ingest, "custom_id": "q0", "verdict": "right"},
        {"custom_id": "q9", "verdict": "right"},
        {"custom_id": "q0", "verdict": "wrong"},
        {"custom_id": "q2", "verdict": "wrong"},
        {"custom_id": "q3", "verdict": "wrong"},
    )
    assert [(code, line) for code, line, _ in errors] == [
        ("unknown_job", 2), ("unknown_job", 3), ("unknown_question", 4), ("duplicate_question", 5), ("no_answer", 6),
        ("no_answer", 7),
    ]  # fmt: skip
    assert [message for *_, message in errors] == [
        "there is no job 999; `ragllava jobs list` shows all",
        f"job {ingest} has no answers, its kind is ingest; `ragllava jobs list` shows all",
        f'job {review.job_id} has no question with the custom_id "q9"',
        "line 1 is about this question already",
        'question "q2" ended as failed; there is no answer to label',
        'question "q3" is still open; there is no answer to label',
    ]
    for image in ("nowhere.png", foreign[0].image_id, 10**12):
        [(code, _, message)] = review.refused({"custom_id": "q0", "verdict": "wrong", "relevant": [image]})
        assert code == "unknown_image"
        assert "the archive harbour has no image" in message
    assert review.labels() == []
    assert review.cases() == {}


def test_a_name_that_two_images_share_must_be_an_id_unless_it_is_a_candidate(review: Review) -> None:
    [(code, _, message)] = review.refused({"custom_id": "q0", "verdict": "wrong", "relevant": ["twin.png"]})
    first, second = (image.image_id for image in review.images[3:])
    assert code == "unknown_image"
    assert f"name one by its id ({first}, {second})" in message
    review.say({"custom_id": "q0", "verdict": "wrong", "relevant": [second]})
    assert review.labels()[0].label.relevant == (second,)


@pytest.mark.parametrize(
    "feedback",
    [
        {"custom_id": "q0", "verdict": "wrong", "answer": "2"},
        {"custom_id": "q0", "verdict": "wrong", "relevant": ["boats.png"], "irrelevant": ["boats.png"]},
        {"custom_id": "q1", "verdict": "right", "answer": "two"},
        {"custom_id": "q1", "verdict": "right", "relevant": ["boats.png"]},
    ],
)
def test_contradictions_are_refused(review: Review, feedback: dict[str, Any]) -> None:
    [(code, line, _)] = review.refused(feedback)
    assert (code, line) == ("contradiction", 1)


def test_skip_invalid_stores_the_rest_but_not_nothing(review: Review) -> None:
    good, bad = {"custom_id": "q0", "verdict": "right"}, {"custom_id": "q9", "verdict": "right"}
    stored = review.say(bad, good, skip_invalid=True)
    assert (stored.stored, [(error.line, error.custom_id) for error in stored.errors]) == (1, [(1, "q9")])
    with pytest.raises(InvalidInput):
        review.say(bad, skip_invalid=True)
    with pytest.raises(UsageError, match="person or gold"):
        review.say(good, source="rumour")


def test_one_question_is_shown_with_its_reasons_and_its_label(review: Review) -> None:
    view = review.client.reviews.get(review.job_id, "q0")
    assert (view.case, view.label) == (None, None)
    assert [candidate.evidence_no for candidate in view.question.candidates] == [0, 1, None]
    review.say({"custom_id": "q0", "verdict": "wrong", "answer": "three"})
    view = review.client.reviews.get(review.job_id, "q0")
    assert view.case is not None and view.label is not None
    assert (view.case.state, view.label.answer) == (NoisyState.LABELLED, "three")
    with pytest.raises(UsageError, match='no question with the custom_id "q9"'):
        review.client.reviews.get(review.job_id, "q9")


# Label Studio


def region(name: str, kind: str, value: Any) -> dict[str, Any]:
    """A part of an annotation as Label Studio exports it."""
    to_name = f"image_{name.rpartition('_')[2]}" if name.startswith("relevance") else "question"
    return {"id": f"r-{name}", "from_name": name, "to_name": to_name, "type": kind, "origin": "manual",
            "value": {kind if kind == "choices" else "text": [value]}}  # fmt: skip


def annotation(at: str, *regions: dict[str, Any], skipped: bool = False) -> dict[str, Any]:
    return {"id": 1, "completed_by": 1, "result": list(regions), "was_cancelled": skipped, "ground_truth": False,
            "created_at": "2026-01-01T00:00:00.000000Z", "updated_at": at, "lead_time": 4.2}  # fmt: skip


def exported(task: dict[str, Any], *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"id": 17, "annotations": list(annotations), "drafts": [], "meta": {}, "project": 3, **task}


def tasks_of(review: Review) -> dict[str, dict[str, Any]]:
    """The open cases as exported, through JSON."""
    tasks = review.client.reviews.export_tasks("harbour")
    return {task["data"]["custom_id"]: task for task in json.loads(json.dumps(tasks))}


def test_what_a_reviewer_says_in_label_studio_comes_back_as_labels(review: Review, tmp_path: Path) -> None:
    for number in (0, 1):
        review.doubt(number, NoisyReason.NEAR_THRESHOLD)
    tasks = tasks_of(review)
    first = annotation("2026-02-01T10:00:00.000000Z", region("verdict", "choices", "right"))
    latest = annotation(
        "2026-02-01T11:00:00.000000Z",
        region("verdict", "choices", "wrong"),
        region("answer", "textarea", "three"),
        region("relevance_2", "choices", "relevant"),
        region("relevance_0", "choices", "irrelevant"),
    )
    skipped = annotation("2026-02-01T10:00:00.000000Z", skipped=True)
    file = tmp_path / "export.json"
    file.write_text(json.dumps([exported(tasks["q0"], latest, first), exported(tasks["q1"], skipped)]))
    imported = review.client.reviews.import_tasks(file)
    stored = imported.stored
    assert (stored.right, stored.wrong, stored.dismissed, stored.errors) == (0, 1, 1, [])
    assert imported.unannotated == 0
    [row] = review.labels()
    boats, _, tower, *_ = (image.image_id for image in review.images)
    assert row.label == Label(review.job_id, 0, Verdict.WRONG, "three", (tower,), (boats,), "person")
    assert {name: case.state for name, case in review.cases().items()} == {
        "q0": NoisyState.LABELLED,
        "q1": NoisyState.DISMISSED,
    }


def test_a_prediction_that_the_reviewer_takes_over_is_the_kept_evidence(review: Review, tmp_path: Path) -> None:
    """Label Studio copies the regions of a prediction into the annotation."""
    review.doubt(0, NoisyReason.NEAR_THRESHOLD)
    task = tasks_of(review)["q0"]
    [prediction] = task["predictions"]
    assert prediction["model_version"] == "reranker@1"
    both = annotation("2026-02-01", region("verdict", "choices", "right"), *prediction["result"])
    file = tmp_path / "export.json"
    file.write_text(json.dumps([exported(task, both)]))
    review.client.reviews.import_tasks(file)
    assert review.labels()[0].label.relevant == tuple(image.image_id for image in review.images[:2])


def test_a_task_refers_to_pictures_and_uses_the_names_of_the_configuration(review: Review) -> None:
    import xml.etree.ElementTree as ET

    review.doubt(0, NoisyReason.LOW_CONFIDENCE, "not sure")
    task = tasks_of(review)["q0"]
    root = ET.fromstring(LABELING_CONFIG)
    fields = {str(tag.get("value", ""))[1:].partition("[")[0] for tag in root.iter() if tag.get("value", "")[:1] == "$"}
    assert fields <= task["data"].keys()
    names = {tag.get("name") for tag in root.iter()}
    assert {tag.get("toName") for tag in root.iter() if tag.get("toName")} <= names
    for choice in task["predictions"][0]["result"]:
        index = choice["from_name"].rpartition("_")[2]
        assert {choice["from_name"].replace(index, "{{idx}}"), choice["to_name"].replace(index, "{{idx}}")} <= names
    bucket = review.client.objects.bucket
    addresses = [candidate["image"] for candidate in task["data"]["candidates"]]
    assert addresses == [f"s3://{bucket}/{content_key(image.sha256)}" for image in review.images[:3]]
    assert task["data"]["reasons"] == "not sure"


def test_a_signed_address_gives_the_picture(review: Review) -> None:
    sha256 = review.client.objects.put_content(b"picture", "image/png")
    address = review.client.reviews.picture_address(StoredImage(1, sha256, "a.png", None), expires_s=60)
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == b"picture"


def test_a_task_of_another_installation_is_refused_by_its_question(review: Review, tmp_path: Path) -> None:
    review.doubt(0, NoisyReason.NEAR_THRESHOLD)
    task = tasks_of(review)["q0"]
    task["data"]["question"] = "another question?"
    file = tmp_path / "export.json"
    file.write_text(json.dumps([exported(task, annotation("2026-02-01", region("verdict", "choices", "right")))]))
    with pytest.raises(InvalidInput, match=r"line 1: .*is 'question 0\?', not 'another question\?'"):
        review.client.reviews.import_tasks(file)


def test_a_skipped_task_of_an_unknown_question_is_told_and_the_others_are_dismissed(
    review: Review, tmp_path: Path
) -> None:
    for number in (0, 1):
        review.doubt(number, NoisyReason.NEAR_THRESHOLD)
    tasks = tasks_of(review)
    unknown, foreign = json.loads(json.dumps(tasks["q1"])), {"data": {"image": "a.png"}}
    unknown["data"]["custom_id"] = "q9"
    skipped = annotation("2026-02-01", skipped=True)
    file = tmp_path / "export.json"
    file.write_text(json.dumps([exported(task, skipped) for task in (unknown, tasks["q0"], foreign)]))
    with pytest.raises(InvalidInput) as caught:
        review.client.reviews.import_tasks(file)
    told = [(error.line, error.code) for error in caught.value.errors]
    assert told == [(1, "unknown_question"), (3, "unknown_format")]
    assert {case.state for case in review.cases().values()} == {NoisyState.OPEN}
    stored = review.client.reviews.import_tasks(file, skip_invalid=True).stored
    assert (stored.stored, stored.dismissed, [(error.line, error.code) for error in stored.errors]) == (0, 1, told)
    assert {name: case.state for name, case in review.cases().items()} == {
        "q0": NoisyState.DISMISSED,
        "q1": NoisyState.OPEN,
    }
