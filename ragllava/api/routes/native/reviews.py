"""Labels of answers, and noisy cases for reviewers."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from pydantic import Field

from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.shared import Id, Json, JsonList, Line, json_of, text_in_path
from ragllava.client import AccessRole, NoisyReason, NoisyState, StoredFeedback

routes = Routes("Reviews")

_MAX_LABELS = 10_000


class FeedbackBody(Body):
    """Labels, with the keys of a line of a feedback file: `custom_id`, `verdict` (right or wrong), `answer`,
    `relevant`, `irrelevant`. With `skip_invalid`, the valid ones are stored and the others listed."""

    labels: Annotated[list[Json], Field(min_length=1, max_length=_MAX_LABELS)]
    source: Literal["person", "gold"] = "person"
    skip_invalid: bool = False


class FeedbackObject(Answer):
    """What was stored, and what is wrong with labels that were left out."""

    object: Literal["feedback"] = "feedback"
    stored: int
    right: int
    wrong: int
    unchanged: int
    open_cases: int
    dismissed: int
    errors: list[Json]


class NoisyQuery(Query):
    """Which noisy cases."""

    state: NoisyState | None = None
    reason: NoisyReason | None = None
    limit: Annotated[int, Field(ge=1, le=1_000)] = 50


class TasksQuery(Query):
    """Which noisy cases. With `expires_s`, pictures are named by signed addresses, valid for so many seconds."""

    state: NoisyState | None = NoisyState.OPEN
    reason: NoisyReason | None = None
    expires_s: Annotated[int, Field(ge=60, le=604_800)] | None = None


class DismissBody(Body):
    """Only cases of this job, these questions of it, with this reason, logged before this time."""

    job: Id | None = None
    custom_ids: Annotated[list[Line], Field(max_length=_MAX_LABELS)] | None = None
    reason: NoisyReason | None = None
    before: datetime | None = None


class DismissedObject(Answer):
    """How many noisy cases are dismissed."""

    object: Literal["dismissed"] = "dismissed"
    cases: int


class TasksBody(Body):
    """The JSON export of Label Studio, a list of tasks."""

    tasks: Annotated[list[Json], Field(min_length=1, max_length=_MAX_LABELS)]
    skip_invalid: bool = False


class QuestionObject(Answer):
    """A question with its candidates, its noisy case and its newest label."""

    object: Literal["question"] = "question"
    question: Json
    case: Json | None
    label: Json | None


@routes.post(
    "/v1/jobs/{job_id}/feedback",
    needs=AccessRole.REVIEW,
    body=FeedbackBody,
    answer=FeedbackObject,
    archive_in="path:job_id",
)
def store_feedback(call: Call[NoQuery, FeedbackBody]) -> FeedbackObject:
    """Store labels of answers of a job; if one is invalid, none is stored, unless `skip_invalid` is set."""
    job_id = call.client.jobs.require_answers(call.number("job_id")).job_id
    body = call.body
    stored = call.client.reviews.feedback(
        body.labels, job_id=job_id, source=body.source, skip_invalid=body.skip_invalid
    )
    return _feedback_object(stored)


@routes.get(
    "/v1/jobs/{job_id}/questions/{custom_id}", needs=AccessRole.READ, answer=QuestionObject, archive_in="path:job_id"
)
def show_question(call: Call[NoQuery, NoBody]) -> QuestionObject:
    """One question of an answer job: its candidates, its answer, the reasons to doubt it, its newest label."""
    view = call.client.reviews.get(call.number("job_id"), text_in_path(call, "custom_id"))
    return QuestionObject(
        question=json_of(view.question),
        case=json_of(view.case) if view.case else None,
        label=json_of(view.label) if view.label else None,
    )


@routes.get(
    "/v1/archives/{archive}/noisy", needs=AccessRole.READ, query=NoisyQuery, answer=JsonList, archive_in="path:archive"
)
def list_noisy(call: Call[NoisyQuery, NoBody]) -> JsonList:
    """The noisy cases of an archive, those of the newest job first."""
    query = call.query
    name = call.archive(call.path("archive"))
    cases = call.client.reviews.list(name, state=query.state, reason=query.reason, limit=query.limit)
    return JsonList(data=list(map(json_of, cases)))


@routes.post(
    "/v1/archives/{archive}/noisy/dismiss",
    needs=AccessRole.REVIEW,
    body=DismissBody,
    answer=DismissedObject,
    archive_in="path:archive",
)
def dismiss_noisy(call: Call[NoQuery, DismissBody]) -> DismissedObject:
    """Dismiss open noisy cases: they are not found again, and no longer keep their job from `retention`."""
    body = call.body
    number = call.client.reviews.dismiss(
        call.archive(call.path("archive")),
        job_id=body.job,
        custom_ids=body.custom_ids,
        reason=body.reason,
        before=body.before,
    )
    return DismissedObject(cases=number)


@routes.get(
    "/v1/archives/{archive}/noisy/tasks",
    needs=AccessRole.REVIEW,
    query=TasksQuery,
    answer=JsonList,
    archive_in="path:archive",
)
def export_tasks(call: Call[TasksQuery, NoBody]) -> JsonList:
    """Noisy cases as tasks for Label Studio."""
    query = call.query
    name = call.archive(call.path("archive"))
    tasks = call.client.reviews.export_tasks(name, state=query.state, reason=query.reason, expires_s=query.expires_s)
    return JsonList(data=tasks)


@routes.post("/v1/noisy/tasks", needs=AccessRole.REVIEW, body=TasksBody, answer=FeedbackObject)
def import_tasks(call: Call[NoQuery, TasksBody]) -> FeedbackObject:
    """Store the labels of Label Studio's JSON export; the cases of skipped tasks are dismissed."""
    with TemporaryDirectory(prefix="ragllava-api-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "tasks.json"
        path.write_text(json.dumps(call.body.tasks), encoding="utf-8")
        imported = call.client.reviews.import_tasks(path, skip_invalid=call.body.skip_invalid)
    return _feedback_object(imported.stored)


def _feedback_object(stored: StoredFeedback) -> FeedbackObject:
    names = ("stored", "right", "wrong", "unchanged", "open_cases", "dismissed")
    errors = list(map(json_of, stored.errors[:100]))
    return FeedbackObject(**{name: getattr(stored, name) for name in names}, errors=errors)
