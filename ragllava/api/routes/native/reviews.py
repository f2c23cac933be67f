"""Labels of answers, and noisy cases for reviewers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.shared import Id, Json, JsonList, Line, json_list, json_of, storable, text_in_path
from ragllava.client import (
    AccessRole,
    NoisyReason,
    NoisyState,
    NoisyView,
    Opinion,
    QueueFilter,
    StoredFeedback,
    Verdict,
)

routes = Routes("Reviews")

_MAX_LABELS = 10_000
_MAX_HELD = 1_000


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


Tab = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(storable)]


class CaseKey(Body):
    """A noisy case: its job and the number of its question."""

    job: Id
    question_no: Id


class QueueBody(Body):
    """Which cases. `tab` is the caller's name for a window of work: two tabs hold different cases.

    `model` is the version of a reranker or generator that answered. With `second_opinion`, cases that one other person
    has labelled. `after` is the last case that the caller has.
    """

    tab: Tab
    limit: Annotated[int, Field(ge=1, le=50)] = 1
    after: CaseKey | None = None
    reason: NoisyReason | None = None
    job: Id | None = None
    model: Line | None = None
    second_opinion: bool = False


class LeasesBody(Body):
    """Cases that a tab holds; for a release, null: all of them."""

    tab: Tab
    cases: Annotated[list[CaseKey], Field(max_length=_MAX_HELD)] | None = None


class LeasesObject(Answer):
    """The cases that the tab holds now, or how many it gave back."""

    object: Literal["leases"] = "leases"
    held: list[Json]
    released: int = 0


class OpinionBody(Body):
    """What a reviewer says of a case as it was in this `version`; `verdict` null dismisses it.

    `save_id` is the caller's name for this save: a repetition changes nothing. `relevant` and `irrelevant` are ids of
    pictures; a right answer makes the kept ones relevant that it does not call irrelevant.
    """

    question_no: Id
    version: Id
    tab: Tab
    save_id: Tab
    verdict: Verdict | None = None
    answer: Annotated[str, StringConstraints(max_length=2_000), AfterValidator(storable)] | None = None
    relevant: Annotated[list[Id], Field(max_length=1_000)] = Field(default_factory=list)
    irrelevant: Annotated[list[Id], Field(max_length=1_000)] = Field(default_factory=list)


class SavedObject(Answer):
    """What became of a case. A `wrong` without anything that is right leaves it open."""

    object: Literal["review"] = "review"
    state: NoisyState
    version: int


class UndoBody(Body):
    """The tab of the reviewer, and which save to undo; null: the last one."""

    tab: Tab
    save_id: Tab | None = None


class CaseObject(Answer):
    """A noisy case."""

    object: Literal["case"] = "case"
    case: Json


class ReviewsObject(Answer):
    """How far the reviews of an archive are, and how far two reviewers of a case agree."""

    object: Literal["reviews"] = "reviews"
    counts: Json
    answers: Json
    pictures: Json
    disagreed: list[Json]


@routes.get("/v1/archives/{archive}/reviews", needs=AccessRole.REVIEW, answer=ReviewsObject, archive_in="path:archive")
def show_reviews(call: Call[NoQuery, NoBody]) -> ReviewsObject:
    """Open cases, reviews of the caller and of today; how far reviewers agree, raw and as Cohen's kappa."""
    name = call.archive(call.path("archive"))
    progress, totals = call.client.reviewing.progress(name), call.client.reviewing.totals(name)
    return ReviewsObject(
        counts=json_of(progress.counts) | json_of(totals),
        answers=json_of(progress.answers),
        pictures=json_of(progress.pictures),
        disagreed=_cases(progress.disagreed),
    )


@routes.post(
    "/v1/archives/{archive}/reviews/next",
    needs=AccessRole.REVIEW,
    body=QueueBody,
    answer=JsonList,
    archive_in="path:archive",
)
def next_cases(call: Call[NoQuery, QueueBody]) -> JsonList:
    """Lease the next noisy cases of an archive: nobody else gets them while the lease lasts."""
    body = call.body
    which = QueueFilter(body.reason, body.job, body.model, body.second_opinion)
    after = (body.after.job, body.after.question_no) if body.after else None
    name = call.archive(call.path("archive"))
    cases = call.client.reviewing.next(name, body.tab, which, limit=body.limit, after=after)
    return json_list(cases)


@routes.post(
    "/v1/archives/{archive}/reviews/renew",
    needs=AccessRole.REVIEW,
    body=LeasesBody,
    answer=LeasesObject,
    archive_in="path:archive",
)
def renew_leases(call: Call[NoQuery, LeasesBody]) -> LeasesObject:
    """Prolong the leases of cases; `held` are those that the tab still holds."""
    call.archive(call.path("archive"))
    held = call.client.reviewing.renew(_keys(call.body) or [], call.body.tab)
    return LeasesObject(held=_cases(held))


@routes.post(
    "/v1/archives/{archive}/reviews/release",
    needs=AccessRole.REVIEW,
    body=LeasesBody,
    answer=LeasesObject,
    archive_in="path:archive",
)
def release_leases(call: Call[NoQuery, LeasesBody]) -> LeasesObject:
    """Give cases back, so that others get them at once."""
    call.archive(call.path("archive"))
    return LeasesObject(held=[], released=call.client.reviewing.release(call.body.tab, _keys(call.body)))


@routes.post(
    "/v1/jobs/{job_id}/reviews",
    needs=AccessRole.REVIEW,
    body=OpinionBody,
    answer=SavedObject,
    archive_in="path:job_id",
)
def save_review(call: Call[NoQuery, OpinionBody]) -> SavedObject:
    """Label a noisy case, or dismiss it. 409 when it has changed since it was shown, or another reviewer holds it."""
    body, job_id = call.body, call.client.jobs.require_answers(call.number("job_id")).job_id
    opinion = Opinion(
        job_id=job_id,
        question_no=body.question_no,
        version=body.version,
        save_id=body.save_id,
        verdict=body.verdict,
        answer=body.answer or None,
        relevant=tuple(body.relevant),
        irrelevant=tuple(body.irrelevant),
    )
    saved = call.client.reviewing.save(opinion, body.tab)
    return SavedObject(state=saved.state, version=saved.version)


@routes.post(
    "/v1/archives/{archive}/reviews/undo",
    needs=AccessRole.REVIEW,
    body=UndoBody,
    answer=CaseObject,
    archive_in="path:archive",
)
def undo_review(call: Call[NoQuery, UndoBody]) -> CaseObject:
    """Undo the caller's last review: its label is gone, its case as before. 409 when the case has changed since."""
    case: NoisyView = call.client.reviewing.undo(call.archive(call.path("archive")), call.body.tab, call.body.save_id)
    return CaseObject(case=json_of(case))


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
    return json_list(cases)


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


def _cases(keys: Iterable[tuple[int, int]]) -> list[Json]:
    return [{"job": job, "question_no": number} for job, number in keys]


def _keys(body: LeasesBody) -> list[tuple[int, int]] | None:
    return None if body.cases is None else [(case.job, case.question_no) for case in body.cases]
