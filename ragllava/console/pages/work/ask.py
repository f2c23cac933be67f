"""One question, and its answer with the evidence."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import RedirectResponse, Response

from ragllava.api.route import Body, NoBody, NoQuery, Query
from ragllava.api.routes.native import pictures as api
from ragllava.api.routes.native.shared import Line
from ragllava.client import AccessRole, AnswerOptions, JobKind, JobView, ResultRow, StoredContent
from ragllava.console.page import ROOT, Context, Done, Pages, Shown, Visit
from ragllava.errors import NotFound, UsageError
from ragllava.records import Candidate, by_relevance, by_retrieval

pages = Pages("Ask")

ASK = f"{ROOT}/ask"
_MOST_BYTES = 210 * 2**20  # of a form: a picture, and a little more
_LONGEST = 20_000  # characters of a form's field; the question's own limit is lower
_SHOWN_CANDIDATES = 20
_CUSTOM_ID = "ask"  # of the one question of such a job


class AskQuery(Query):
    """What the form is filled with."""

    archive: str = ""
    q: Annotated[str, Field(max_length=_LONGEST)] = ""
    where: Annotated[str, Field(max_length=_LONGEST)] = ""


class QuestionForm(Body):
    """A question to an archive; `where` is a condition on metadata."""

    archive: Line
    question: Annotated[str, Field(max_length=_LONGEST)] = ""
    where: Annotated[str, Field(max_length=_LONGEST)] = ""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None


class VerdictForm(Body):
    """What a person says about the answer; `answer` is the right one."""

    verdict: Literal["right", "wrong"]
    answer: Annotated[str, Field(max_length=_LONGEST)] = ""


@pages.get(ASK, needs=AccessRole.ASK, query=AskQuery, template="ask.html", title="Ask", menu="Ask")
def show_form(visit: Visit[AskQuery, NoBody]) -> Context:
    """The form."""
    given = visit.query
    return _form(visit, archive=given.archive, question=given.q, where=given.where)


def _form(visit: Visit[Any, Any], **given: Any) -> dict[str, Any]:
    blank = {"archive": "", "question": "", "where": "", "threshold": None, "problem": None, "job": None, "row": None}
    return blank | given | {"archives": visit.client.archives.names()}


@pages.post(
    ASK,
    needs=AccessRole.ASK,
    body=QuestionForm,
    upload=_MOST_BYTES,
    template="ask.html",
    title="Ask",
    archive_in="body:archive",
)
def ask(visit: Visit[NoQuery, QuestionForm]) -> Response | Shown:
    """Ask, perhaps with a picture, and go to where the answer appears."""
    body = visit.body
    name = visit.archive(body.archive)
    question = body.question.replace("\x00", " ")
    options = AnswerOptions(threshold=body.threshold)
    count_bytes = visit.client.access.count_bytes(visit.principal)
    try:
        with visit.client.access.admitted(visit.principal, 1):
            job_id = visit.client.questions.begin(
                question,
                name,
                options,
                where=body.where.strip() or None,
                picture=_picture(visit),
                count_bytes=count_bytes,
            )
    except UsageError as error:
        kept = {"archive": name, "question": question, "where": body.where, "threshold": body.threshold}
        return Shown(_form(visit, **kept, problem=str(error)), status=400)
    return RedirectResponse(f"{ASK}/{job_id}", 303)


def _picture(visit: Visit[NoQuery, QuestionForm]) -> bytes | None:
    """What was dropped in; a browser sends an empty part for none."""
    file = visit.files.get("picture")
    return file.file.read() or None if file is not None else None


@pages.get(f"{ASK}/{{job_id}}/picture", needs=AccessRole.ASK, archive_in="path:job_id", is_counted=False)
def send_asked_picture(visit: Visit[NoQuery, NoBody]) -> Response:
    """A small JPEG of the picture that the question is asked with."""
    job = _asked_job(visit)
    row = next(visit.client.questions.results(job.job_id), None)
    if row is None or row.picture is None:
        raise UsageError(f"the question of job {job.job_id} has no picture, or no answer yet")
    return api.send_thumbnail(visit, StoredContent(row.picture, "image/jpeg"))


@pages.get(
    f"{ASK}/{{job_id}}",
    needs=AccessRole.ASK,
    template="ask.html",
    title="Ask",
    archive_in="path:job_id",
    is_counted=False,  # it is fetched twice a second until the answer is there
)
def show_answer(visit: Visit[NoQuery, NoBody]) -> Context | Shown:
    """The answer, or how far it is; htmx asks for that part again until it is there."""
    job = _asked_job(visit)
    row = next(visit.client.questions.results(job.job_id), None) if job.is_final else None
    view = visit.client.reviews.get(job.job_id, _custom_id(row))
    where = job.spec["options"].get("filter")
    shown = {
        "job": job,
        "row": row,
        **_others(row),
        "threshold_used": (row.models or {}).get("threshold") if row else None,
        "label": view.label,
        "may_review": visit.may(AccessRole.REVIEW),
        "question": view.question.text,
        "where": json.dumps(where, ensure_ascii=False) if where else "",
        "archive": job.archive,
    }
    return Shown(shown, "_answer.html") if visit.is_partial else _form(visit, **shown)


def _asked_job(visit: Visit[Any, Any]) -> JobView:
    """The job of a single question. Raises NotFound for another one."""
    job = visit.client.jobs.get(visit.number("job_id"))
    if job.kind != JobKind.ANSWER or job.progress.total != 1:
        raise NotFound(f"job {job.job_id} is not a single question; look at it on the page of jobs")
    return job


def _custom_id(row: ResultRow | None) -> str:
    """That of the question; of one without an outcome yet, that of all single questions."""
    return (row.custom_id if row is not None else None) or _CUSTOM_ID


def _others(row: ResultRow | None) -> dict[str, list[Candidate]]:
    """The candidates that are no evidence: those below the threshold, the best first, and those not reranked."""
    others = [candidate for candidate in row.candidates if candidate.evidence_no is None] if row else []
    dropped = [candidate for candidate in by_relevance(others) if candidate.relevance is not None]
    unread = [candidate for candidate in by_retrieval(others) if candidate.relevance is None]
    return {"dropped": dropped[:_SHOWN_CANDIDATES], "unread": unread[:_SHOWN_CANDIDATES]}


@pages.post(
    f"{ASK}/{{job_id}}/verdict",
    needs=AccessRole.REVIEW,
    body=VerdictForm,
    archive_in="path:job_id",
)
def give_verdict(visit: Visit[NoQuery, VerdictForm]) -> Done:
    """Store what a person says about the answer."""
    job = _asked_job(visit)
    custom_id = _custom_id(next(visit.client.questions.results(job.job_id), None))
    label: dict[str, Any] = {"job": job.job_id, "custom_id": custom_id, "verdict": visit.body.verdict}
    if visit.body.answer.strip():
        label["answer"] = visit.body.answer.strip()
    visit.client.reviews.feedback([label])
    said = f"The answer is marked as {visit.body.verdict}. The models learn from it at the next training."
    return Done(said, f"{ASK}/{job.job_id}")
