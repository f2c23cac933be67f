"""Trainings, and the versions of the models. Both concern all archives."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.buckets import QueuedJob
from ragllava.api.routes.native.shared import Id, Json, JsonList, Line, json_list, json_of, text_in_path
from ragllava.client import AccessRole, Role, TrainingRequest

routes = Routes("Learning")


class NewTraining(Body):
    """What to train on: the first archive decides, the others must not get worse. With `dry_run`, only the plan."""

    role: Role
    archives: Annotated[list[Line], Field(min_length=1, max_length=100)]
    preset: Line | None = None
    overrides: Annotated[dict[Line, Any], Field(max_length=50)] = Field(default_factory=dict)
    since: datetime | None = None
    promote: bool = True
    negatives: Annotated[float, Field(ge=0, le=100)] = 1.0
    precision: Annotated[float, Field(gt=0, lt=1)] | None = None
    top_k: Annotated[int, Field(ge=1, le=1_000)] | None = None
    bare_share: Annotated[float, Field(ge=0, le=1)] = 0.0


class PlanObject(Answer):
    """What a training would learn from; `shortage` says why it cannot be done."""

    object: Literal["plan"] = "plan"
    role: str
    preset: str
    examples: int
    steps: int
    shortage: str | None
    note: str | None
    provable_gain: float | None


class VersionQuery(Query):
    """Of which role."""

    role: Role | None = None


class ComparisonQuery(Query):
    """Two versions of one role; a name may be shortened to a beginning that fits one."""

    first: Line
    second: Line
    role: Role | None = None


class Promotion(Body):
    """Why, and in which role where the name fits two."""

    reason: Line = "promoted through the HTTP API"
    role: Role | None = None


class Rollback(Body):
    """Of which role."""

    role: Role


class VersionObject(Answer):
    """A version of a model, with its training."""

    object: Literal["version"] = "version"
    version: Json


class Judgement(Body):
    """The role tells two versions of one name apart."""

    role: Role | None = None


class ComparisonObject(Answer):
    """The figures of two versions; `note` says how far they may be compared."""

    object: Literal["comparison"] = "comparison"
    first: str
    second: str
    note: str
    figures: list[Json]


class LossesQuery(Query):
    """Only steps after this one."""

    after: Id = 0


class CurveQuery(Query):
    """Of which version of the reranker; without one, of the champion."""

    version: Line | None = None


class CurveObject(Answer):
    """A threshold curve."""

    object: Literal["threshold_curve"] = "threshold_curve"
    curve: Json


class ExamplesObject(Answer):
    """Examples gained and lost. `erased` of them are gone; `is_known` is false for a version of an earlier release."""

    object: Literal["examples"] = "examples"
    gained: list[Json]
    lost: list[Json]
    erased: int
    is_known: bool


@routes.post("/v1/trainings", needs=AccessRole.ADMIN, body=NewTraining, answer=QueuedJob, status=202, of_all=True)
def create_training(call: Call[NoQuery, NewTraining]) -> QueuedJob:
    """Train the reranker or the generator on labelled questions, in a job; its gate decides about a promotion."""
    request = _request(call)
    with call.client.access.admitted(call.principal):
        return QueuedJob(job=call.client.models.train(request, call.idempotency_key))


@routes.post("/v1/trainings/plan", needs=AccessRole.ADMIN, body=NewTraining, answer=PlanObject, of_all=True)
def plan_training(call: Call[NoQuery, NewTraining]) -> PlanObject:
    """What a training would learn from; nothing is queued."""
    plan = call.client.models.plan_training(_request(call))
    return PlanObject(
        role=plan.request.role.value,
        preset=plan.request.preset,
        examples=len(plan.snapshot.examples),
        steps=plan.steps,
        shortage=plan.shortage,
        note=plan.note,
        provable_gain=plan.provable_gain,
    )


@routes.get(
    "/v1/trainings/{job_id}/losses", needs=AccessRole.READ, query=LossesQuery, answer=JsonList, archive_in="path:job_id"
)
def list_losses(call: Call[LossesQuery, NoBody]) -> JsonList:
    """The losses of a training by step, also while it runs: at most about 1,000 of its steps."""
    job_id = call.client.jobs.get(call.number("job_id")).job_id
    return json_list(call.client.models.losses(job_id, call.query.after))


@routes.get(
    "/v1/archives/{archive}/threshold",
    needs=AccessRole.READ,
    query=CurveQuery,
    answer=CurveObject,
    archive_in="path:archive",
)
def show_threshold(call: Call[CurveQuery, NoBody]) -> CurveObject:
    """What each threshold would do to the newest labelled questions of an archive: precision, recall, no evidence."""
    curve = call.client.models.threshold_curve(call.archive(call.path("archive")), call.query.version)
    return CurveObject(curve=json_of(curve))


@routes.get("/v1/promotions", needs=AccessRole.READ, query=VersionQuery, answer=JsonList, of_all=True)
def list_promotions(call: Call[VersionQuery, NoBody]) -> JsonList:
    """Which version became champion when, and why; the newest first."""
    return json_list(call.client.models.promotions(call.query.role))


@routes.get(
    "/v1/versions/{version:path}/examples",
    needs=AccessRole.READ,
    query=VersionQuery,
    answer=ExamplesObject,
    of_all=True,
)
def list_examples(call: Call[VersionQuery, NoBody]) -> ExamplesObject:
    """The held-out questions that a version answers better and worse than the champion it was compared with."""
    view = call.client.models.get(text_in_path(call, "version"), call.query.role)
    return ExamplesObject(**json_of(call.client.models.examples(view)))


@routes.get("/v1/versions", needs=AccessRole.READ, query=VersionQuery, answer=JsonList, of_all=True)
def list_versions(call: Call[VersionQuery, NoBody]) -> JsonList:
    """The versions of the models, by role, the newest first."""
    return json_list(call.client.models.list(call.query.role))


@routes.get("/v1/versions/compare", needs=AccessRole.READ, query=ComparisonQuery, answer=ComparisonObject, of_all=True)
def compare_versions(call: Call[ComparisonQuery, NoBody]) -> ComparisonObject:
    """The figures of two versions beside each other."""
    compared = call.client.models.compare(call.query.first, call.query.second, call.query.role)
    return ComparisonObject(**compared.as_json())


@routes.post("/v1/versions/rollback", needs=AccessRole.ADMIN, body=Rollback, answer=VersionObject, of_all=True)
def roll_back_version(call: Call[NoQuery, Rollback]) -> VersionObject:
    """Promote the version that the champion of a role replaced."""
    return VersionObject(version=json_of(call.client.models.rollback(call.body.role)))


@routes.get("/v1/versions/{version:path}", needs=AccessRole.READ, query=VersionQuery, answer=VersionObject, of_all=True)
def show_version(call: Call[VersionQuery, NoBody]) -> VersionObject:
    """One version: its base, its threshold, its training and the figures of its gate."""
    return VersionObject(version=json_of(call.client.models.get(text_in_path(call, "version"), call.query.role)))


@routes.post(
    "/v1/versions/{version:path}/promote", needs=AccessRole.ADMIN, body=Promotion, answer=VersionObject, of_all=True
)
def promote_version(call: Call[NoQuery, Promotion]) -> VersionObject:
    """Make a version champion; workers load it at their next shard."""
    found = call.client.models.get(text_in_path(call, "version"), call.body.role).version
    return VersionObject(version=json_of(call.client.models.promote(found.name, found.role, call.body.reason)))


@routes.post(
    "/v1/versions/{version:path}/judge",
    needs=AccessRole.ADMIN,
    body=Judgement,
    answer=QueuedJob,
    status=202,
    of_all=True,
)
def judge_version(call: Call[NoQuery, Judgement]) -> QueuedJob:
    """Evaluate a version that the gate refused once more, on the labels of now, in a job."""
    with call.client.access.admitted(call.principal):
        return QueuedJob(job=call.client.models.judge(text_in_path(call, "version"), call.body.role))


def _request(call: Call[NoQuery, NewTraining]) -> TrainingRequest:
    body = call.body
    return TrainingRequest(
        role=body.role,
        archives=tuple(dict.fromkeys(map(call.archive, body.archives))),
        preset=body.preset or call.client.models.default_preset(),
        overrides=body.overrides,
        since=body.since,
        promote=body.promote,
        negatives=body.negatives,
        precision=body.precision,
        top_k=body.top_k,
        bare_share=body.bare_share,
    )
