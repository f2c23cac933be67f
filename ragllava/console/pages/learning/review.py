"""Noisy cases, one after another: by keyboard and by mouse, with scripts and without."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from starlette.responses import JSONResponse, Response

from ragllava.api.route import Body, NoBody, NoQuery, Query
from ragllava.api.routes.native.shared import Id, Line, storable
from ragllava.client import (
    AccessRole,
    NoisyReason,
    NoisyView,
    Opinion,
    QueueFilter,
    ReviewProgress,
    SaidOpinion,
    Verdict,
)
from ragllava.console.page import ROOT, Context, Done, Pages, Visit, as_list
from ragllava.console.templates import render
from ragllava.errors import UsageError

pages = Pages("Review")

REVIEW = f"{ROOT}/review"
ENOUGH_LABELS = 50  # new ones, after which the page offers a training
_SHOWN_PICTURES = 6  # the others are folded
_AHEAD = 12  # cases that a script takes with one request
_AS_JSON = "application/json"

Tab = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(storable)]


Ids = Annotated[list[Id], BeforeValidator(as_list), Field(max_length=1_000)]


class Which(Query):
    """Which cases, and which of them."""

    archive: Line | None = None
    reason: NoisyReason | None = None
    job: Id | None = None
    model: Line | None = None
    second: bool = False
    case: Annotated[str, StringConstraints(pattern=r"^\d{1,18}-\d{1,18}$")] | None = None
    tab: Tab | None = None

    @property
    def filter(self) -> QueueFilter:
        """As the client takes it."""
        return QueueFilter(self.reason, self.job, self.model, self.second)

    def address(self, **changed: Any) -> str:
        """The page with this choice, and changes to it."""
        chosen = self.model_dump(mode="json", exclude_none=True, exclude={"case"}) | changed
        chosen = {name: value for name, value in chosen.items() if value not in (None, "", False)}
        return f"{REVIEW}?{urlencode(chosen)}"


class NextForm(Body):
    """Which cases a script takes ahead."""

    archive: Line
    tab: Tab
    reason: NoisyReason | None = None
    job: Id | None = None
    model: Line | None = None
    second: bool = False
    after_job: Id | None = None
    after_no: Id | None = None


class SaveForm(Body):
    """What is said of a case. `verdict` may be `dismiss`; `back` is the query of the page to return to."""

    archive: Line
    job: Id
    question_no: Id
    version: Id
    tab: Tab
    save_id: Tab
    verdict: Annotated[str, StringConstraints(pattern="^(right|wrong|dismiss)$")]
    answer: Annotated[str, StringConstraints(max_length=2_000, strip_whitespace=True), AfterValidator(storable)] = ""
    relevant: Ids = Field(default_factory=list)
    irrelevant: Ids = Field(default_factory=list)
    back: Annotated[str, StringConstraints(max_length=2_000)] = ""


class TabForm(Body):
    """A tab, and the cases that it holds, as JOB-NUMBER."""

    archive: Line
    tab: Tab
    save_id: Tab | None = None
    held: Annotated[list[str], BeforeValidator(as_list), Field(max_length=500)] = Field(default_factory=list)
    back: Annotated[str, StringConstraints(max_length=2_000)] = ""


@pages.get(REVIEW, needs=AccessRole.REVIEW, query=Which, template="review.html", title="Review", menu="Review")
def show_review(visit: Visit[Which, NoBody]) -> Context:
    """The next case of the queue as a form, with what is needed to go on with scripts."""
    names = _names(visit)
    if not names:
        return {"archives": [], "which": visit.query, "case": None}
    which = visit.query.model_copy(update={"archive": visit.query.archive or _busiest(visit, names)})
    name = visit.archive(which.archive or "")
    tab = which.tab or f"tab-{secrets.token_hex(8)}"
    which = which.model_copy(update={"tab": tab})
    opinions: list[SaidOpinion] = []
    if which.case is not None:
        opinions = visit.client.reviewing.opinions(_key(which.case))
        case: NoisyView | None = visit.client.reviewing.open(_key(which.case), tab)
    else:
        case = next(iter(visit.client.reviewing.next(name, tab, which.filter)), None)
    progress = visit.client.reviewing.progress(name, tab)
    shown = _case_context(visit, case, which, opinions) if case else {"case": None}
    return {
        "archives": names,
        "which": which,
        "reasons": _reasons(progress),
        **_progress_context(visit, name, progress),
        **shown,
    }


@pages.post(f"{REVIEW}/next", needs=AccessRole.REVIEW, body=NextForm, archive_in="body:archive")
def take_cases(visit: Visit[NoQuery, NextForm]) -> Response:
    """The next cases as JSON, each with its form as HTML: what a script loads ahead."""
    form = visit.body
    name = visit.archive(form.archive)
    which = Which(archive=name, reason=form.reason, job=form.job, model=form.model, second=form.second, tab=form.tab)
    after = (form.after_job, form.after_no) if form.after_job is not None and form.after_no is not None else None
    cases = visit.client.reviewing.next(name, form.tab, which.filter, limit=_AHEAD, after=after)
    return JSONResponse({"cases": [_case_json(visit, case, which) for case in cases]})


@pages.post(f"{REVIEW}/save", needs=AccessRole.REVIEW, body=SaveForm, archive_in="body:archive")
def save_review(visit: Visit[NoQuery, SaveForm]) -> Done | Response:
    """Store what is said of a case; scripts are told its state, and without scripts the next case is shown."""
    form = visit.body
    visit.archive(form.archive)
    if form.verdict == Verdict.RIGHT and form.answer:
        raise UsageError(
            "you wrote another answer and called the given one right: choose Wrong, or clear what you wrote"
        )
    opinion = Opinion(
        job_id=form.job,
        question_no=form.question_no,
        version=form.version,
        save_id=form.save_id,
        verdict=None if form.verdict == "dismiss" else Verdict(form.verdict),
        answer=form.answer or None,
        relevant=tuple(form.relevant),
        irrelevant=tuple(form.irrelevant),
    )
    saved = visit.client.reviewing.save(opinion, form.tab)
    if _wants_json(visit):
        return JSONResponse({"state": saved.state.value, "version": saved.version})
    said = {"right": "Saved as right.", "wrong": "Saved as wrong.", "dismiss": "Dismissed."}[form.verdict]
    if form.verdict == Verdict.WRONG and saved.state.value == "open":
        said += " The case stays open: nothing says what is right."
    return Done(said, f"{REVIEW}?{form.back}")


@pages.post(f"{REVIEW}/undo", needs=AccessRole.REVIEW, body=TabForm, archive_in="body:archive")
def undo_review(visit: Visit[NoQuery, TabForm]) -> Done | Response:
    """Undo the last review, or that of a save; its case is shown again."""
    form = visit.body
    name = visit.archive(form.archive)
    case = visit.client.reviewing.undo(name, form.tab, form.save_id)
    if _wants_json(visit):
        return JSONResponse(_case_json(visit, case, Which(archive=name, tab=form.tab)))
    key = f"{case.question.job_id}-{case.question.question_no}"
    return Done("Your last review is undone.", Which(archive=name, tab=form.tab).address(case=key))


# Not counted as a request of the person: an open tab sends it every minute.
@pages.post(f"{REVIEW}/renew", needs=AccessRole.REVIEW, body=TabForm, archive_in="body:archive", is_counted=False)
def renew_leases(visit: Visit[NoQuery, TabForm]) -> Response:
    """Keep the cases that a tab has open; which of them it still has, as JSON."""
    visit.archive(visit.body.archive)
    held = visit.client.reviewing.renew([_key(case) for case in visit.body.held], visit.body.tab)
    return JSONResponse({"held": [f"{job_id}-{number}" for job_id, number in held]})


@pages.post(f"{REVIEW}/release", needs=AccessRole.REVIEW, body=TabForm, archive_in="body:archive")
def release_leases(visit: Visit[NoQuery, TabForm]) -> Response:
    """Give back what a tab has open: it is being left."""
    visit.archive(visit.body.archive)
    return JSONResponse({"released": visit.client.reviewing.release(visit.body.tab)})


@pages.part(f"{REVIEW}/progress", needs=AccessRole.REVIEW, query=Which, template="_review_progress.html")
def show_progress(visit: Visit[Which, NoBody]) -> Context:
    """Progress and agreement: a part of the page."""
    which = visit.query.model_copy(update={"archive": visit.query.archive or _busiest(visit, _names(visit))})
    name = visit.archive(which.archive or "")
    progress = visit.client.reviewing.progress(name, which.tab or "")
    return {"which": which, **_progress_context(visit, name, progress)}


def _names(visit: Visit[Any, Any]) -> list[str]:
    return list(visit.client.archives.names())


def _busiest(visit: Visit[Any, Any], names: Sequence[str]) -> str:
    """The archive with the most open cases."""
    counts = visit.client.reviewing.count_open()
    return max(names, key=lambda name: counts.get(name, 0), default="")


def _key(case: str) -> tuple[int, int]:
    job_id, _, number = case.partition("-")
    return int(job_id), int(number)


def _wants_json(visit: Visit[Any, Any]) -> bool:
    return _AS_JSON in visit.request.headers.get("accept", "")


def _reasons(progress: ReviewProgress) -> list[tuple[NoisyReason, int]]:
    return [(reason, progress.counts.by_reason.get(reason.value, 0)) for reason in NoisyReason]


def _progress_context(visit: Visit[Any, Any], name: str, progress: ReviewProgress) -> dict[str, Any]:
    return {
        "progress": progress,
        "new_labels": visit.client.models.new_labels(name),
        "enough_labels": ENOUGH_LABELS,
        "may_train": visit.may(AccessRole.ADMIN, of_all=True),
    }


def _case_context(
    visit: Visit[Any, Any], case: NoisyView, which: Which, opinions: Sequence[SaidOpinion] = ()
) -> dict[str, Any]:
    question = case.question
    kept = [candidate for candidate in question.candidates if candidate.evidence_no is not None]
    others = [candidate for candidate in question.candidates if candidate.evidence_no is None]
    ordered = [*kept, *others]
    shown = max(_SHOWN_PICTURES, len(kept))
    holder = case.locked_by if case.locked_by != visit.client.reviewing.name else None
    return {
        "case": case,
        "key": f"{question.job_id}-{question.question_no}",
        "pictures": ordered[:shown],
        "folded": ordered[shown:],
        "threshold": (question.models or {}).get("threshold"),
        "holder": holder,
        "opinions": opinions,
        "which": which,
        "back": which.address().partition("?")[2],
        "save_id": secrets.token_hex(12),
        "csrf": visit.csrf,
    }


def _case_json(visit: Visit[Any, Any], case: NoisyView, which: Which) -> dict[str, Any]:
    context = _case_context(visit, case, which)
    question = case.question
    return {
        "key": context["key"],
        "job": question.job_id,
        "question_no": question.question_no,
        "version": case.version,
        "html": render("_case.html", context),
    }
