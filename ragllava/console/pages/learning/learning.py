"""Trainings, versions and the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from markupsafe import Markup
from pydantic import BeforeValidator, Field

from ragllava.api.route import Body, NoBody, NoQuery, Query
from ragllava.api.routes.native.shared import Line, text_in_path
from ragllava.client import (
    AccessRole,
    JobKind,
    JobView,
    Promotion,
    Role,
    StepLoss,
    TrainingRequest,
    VersionView,
)
from ragllava.client.learning.comparison import threshold_fit
from ragllava.console.charts import fit_chart, loss_chart, rate_chart, threshold_chart
from ragllava.console.page import ROOT, Context, Done, Pages, Shown, Visit, as_list
from ragllava.errors import NotFound

pages = Pages("Learning")

LEARNING = f"{ROOT}/learning"
_TRAININGS, _VERSIONS, _PROMOTIONS = 20, 20, 30  # newest ones that are listed; versions of each role


class LearningQuery(Query):
    """The archive of the threshold curve, and an archive to train on."""

    archive: Line | None = None
    train: Line | None = None


class RoleQuery(Query):
    """Of which role, where a name fits two."""

    role: Role | None = None


class TrainForm(Body):
    """What to train. `what` is `plan` for what it would learn from, without a training.

    Without a preset it is that of the profile; `epochs` and `max_steps` replace those of the preset.
    """

    role: Role
    archives: Annotated[list[Line], BeforeValidator(as_list), Field(min_length=1, max_length=100)]
    promote: bool = False
    preset: Line | None = None
    epochs: Annotated[float, Field(gt=0, le=1_000)] | None = None
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    what: str = "train"


class PromoteForm(Body):
    """Why a version is promoted."""

    role: Role
    reason: Line = "promoted in the console"


class RoleForm(Body):
    """Which role."""

    role: Role


@dataclass(frozen=True, slots=True)
class RoleLine:
    """A role with its champion, and whether there is a version to go back to."""

    role: Role
    champion: VersionView | None
    fit: dict[str, Any]
    before: str | None

    @property
    def fit_chart(self) -> Markup | None:
        """What the champion's threshold was fitted on."""
        return fit_chart(self.champion) if self.champion else None


@pages.get(
    LEARNING, needs=AccessRole.READ, query=LearningQuery, of_all=True, template="learning.html", title="Learning",
    menu="Learning",
)  # fmt: skip
def show_learning(visit: Visit[LearningQuery, NoBody]) -> Context:
    """Champions, the threshold, trainings, versions and who was champion when."""
    return _learning(visit, visit.query.archive, visit.query.train)


@pages.post(f"{LEARNING}/train", needs=AccessRole.ADMIN, body=TrainForm, of_all=True)
def train(visit: Visit[NoQuery, TrainForm]) -> Done | Shown:
    """Queue a training, or show what it would learn from."""
    body = visit.body
    request = TrainingRequest(
        role=body.role,
        archives=tuple(map(visit.archive, dict.fromkeys(body.archives))),
        preset=body.preset or visit.client.models.default_preset(),
        overrides=body.model_dump(include={"epochs", "max_steps"}, exclude_none=True),
        promote=body.promote,
    )
    if body.what == "plan":
        plan = visit.client.models.plan_training(request)
        return Shown({**_learning(visit, None, request.archives[0]), "plan": plan}, "learning.html")
    with visit.client.access.admitted(visit.principal):
        job_id = visit.client.models.train(request)
    return Done(f"Training {job_id} is queued.", f"{LEARNING}/trainings/{job_id}")


@pages.get(
    f"{LEARNING}/trainings/{{job_id}}", needs=AccessRole.READ, of_all=True, template="training.html", title="Training",
)  # fmt: skip
def show_training(visit: Visit[NoQuery, NoBody]) -> Context:
    """One training: its curve while it grows, its outcome, the gate's table and the examples."""
    context = _training(visit)
    version = _version_of(visit, context["job"])
    return {
        **context,
        **(_version(visit, version) if version else {"view": None}),
        "may_change": visit.may(AccessRole.ADMIN),
    }


@pages.part(
    f"{LEARNING}/trainings/{{job_id}}/curve", needs=AccessRole.READ, of_all=True, template="_training_curve.html",
)  # fmt: skip
def show_curve(visit: Visit[NoQuery, NoBody]) -> Context | Shown:
    """The part of a training's page that changes while it runs; when it has ended, the whole page is loaded again."""
    context = _training(visit)
    headers = {"hx-refresh": "true"} if context["job"].is_final else {}
    return Shown(context, headers=headers)


@pages.get(
    f"{LEARNING}/versions/{{version:path}}", needs=AccessRole.READ, query=RoleQuery, of_all=True,
    template="version.html", title="Version",
)  # fmt: skip
def show_version(visit: Visit[RoleQuery, NoBody]) -> Context:
    """One version: its facts, its gate, what it gained and lost."""
    view = visit.client.models.get(text_in_path(visit, "version"), visit.query.role)
    return {**_version(visit, view), "may_change": visit.may(AccessRole.ADMIN)}


@pages.post(f"{LEARNING}/versions/{{version:path}}/promote", needs=AccessRole.ADMIN, body=PromoteForm, of_all=True)
def promote(visit: Visit[NoQuery, PromoteForm]) -> Done:
    """Make a version champion."""
    role = visit.body.role
    name = visit.client.models.get(text_in_path(visit, "version"), role).version.name
    version = visit.client.models.promote(name, role, visit.body.reason)
    return Done(f"{version.name} is the champion {role.value} from the next shard on.", LEARNING)


@pages.post(f"{LEARNING}/versions/{{version:path}}/judge", needs=AccessRole.ADMIN, body=RoleForm, of_all=True)
def judge(visit: Visit[NoQuery, RoleForm]) -> Done:
    """Evaluate a refused version again, on the labels of now."""
    with visit.client.access.admitted(visit.principal):
        job_id = visit.client.models.judge(text_in_path(visit, "version"), visit.body.role)
    return Done(f"Job {job_id} evaluates it again.", f"{LEARNING}/trainings/{job_id}")


@pages.post(f"{LEARNING}/rollback", needs=AccessRole.ADMIN, body=RoleForm, of_all=True)
def roll_back(visit: Visit[NoQuery, RoleForm]) -> Done:
    """Promote the version that the champion replaced."""
    version = visit.client.models.rollback(visit.body.role)
    return Done(f"{version.name} is the champion {version.role.value} again.", LEARNING)


def _learning(visit: Visit[Any, Any], archive: str | None, trained: str | None) -> dict[str, Any]:
    models = visit.client.models
    promotions = models.promotions(limit=_PROMOTIONS)
    labelled = list(dict.fromkeys(name for role in Role for name in models.labelled_archives(role)))
    name = archive or next(iter(labelled), None)
    curve = models.threshold_curve(visit.archive(name)) if name is not None else None
    lines = [_role_line(role, models.champion(role), promotions) for role in Role]
    return {
        "roles": lines,
        "fitted": next((line for line in lines if line.role is Role.RERANKER and "precision" in line.fit), None),
        "versions": [view for role in Role for view in models.list(role, limit=_VERSIONS)],
        "promotions": promotions,
        "trainings": visit.client.jobs.list(kind=JobKind.TRAIN.value, limit=_TRAININGS),
        "labelled": labelled,
        "trained": trained,
        "curve": curve,
        "chart": threshold_chart(curve) if curve and curve.points else None,
        "nearest": curve.own_point if curve else None,
        "archive": name,
        "plan": None,
        "presets": models.presets(),
        "preset": models.default_preset(),
        "may_change": visit.may(AccessRole.ADMIN),
    }


def _role_line(role: Role, champion: VersionView | None, promotions: Sequence[Promotion]) -> RoleLine:
    before = next((item.replaced for item in promotions if item.role is role), None)
    return RoleLine(role, champion, threshold_fit(champion) if champion else {}, before)


def _training(visit: Visit[Any, Any]) -> dict[str, Any]:
    job = visit.client.jobs.get(visit.number("job_id"))
    if job.training is None:
        raise NotFound(f"job {job.job_id} is not a training")
    losses: Sequence[StepLoss] = visit.client.models.losses(job.job_id)
    steps = job.training.steps_total
    return {
        "job": job,
        "training": job.training,
        "losses": losses,
        "chart": loss_chart(losses, steps) if losses else None,
        "rates": rate_chart(losses, steps) if losses else None,
    }


def _version_of(visit: Visit[Any, Any], job: JobView) -> VersionView | None:
    training = job.training
    if training is None or training.version is None:
        return None
    return visit.client.models.get(training.version, training.role)


def _version(visit: Visit[Any, Any], view: VersionView) -> dict[str, Any]:
    training = view.version.training or {}
    report = training.get("report") or {}
    steps = [
        StepLoss(step["step"], step["loss"], step["learning_rate"])
        for step in report.get("steps", ())
        if step["loss"] is not None
    ]
    last = steps[-1].step if steps else 0
    return {
        "view": view,
        "story": training,
        "gate": training.get("gate"),
        "scale": _scale((training.get("gate") or {}).get("figures") or ()),
        "fit": threshold_fit(view),
        "examples": visit.client.models.examples(view),
        "report": report,
        "version_chart": loss_chart(steps, last) if steps else None,
    }


def _scale(figures: Sequence[dict[str, Any]]) -> float:
    """By what bounds of differences are multiplied so that the largest fits into a drawing from −100 to 100."""
    largest = max((abs(figure[name]) for figure in figures for name in ("low", "high")), default=0.0)
    return 95 / largest if largest else 0.0
