"""Jobs: the list, and one job with its rows, progress and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import Field
from starlette.responses import Response

from ragllava.api.route import NoBody, NoQuery, Query
from ragllava.api.routes.native.results import ResultsQuery, read_report, read_results, sight_of_job
from ragllava.api.routes.native.shared import Line, OwnedFile
from ragllava.client import (
    AccessRole,
    JobKind,
    JobState,
    JobView,
    ResultFilter,
    ResultPage,
    ResultQuery,
    seconds_left,
)
from ragllava.client.reporting import estimate_line, limit_lines
from ragllava.console.following import follow_while_signed_in, sight_of
from ragllava.console.page import ROOT, Context, Done, Pages, Visit

pages = Pages("Jobs")

JOBS = f"{ROOT}/jobs"
_LISTED = 50
_ROWS = 50


class JobsQuery(Query):
    """Which jobs; `after` is the last id of the page before."""

    after: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    archive: str = Field(default="", max_length=500)
    kind: JobKind | None = None
    state: JobState | None = None
    open: bool = False


class RowsQuery(Query):
    """Which rows of a job; `after` is the number of the last row of the page before."""

    show: ResultFilter = ResultFilter.ALL
    after: Annotated[int, Field(ge=-1, le=2**62)] = -1
    code: Line | None = None
    below: Annotated[float, Field(ge=0, le=1)] = 0.5
    against: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job in a list."""

    job: JobView
    seconds_left: float | None


def job_lines(jobs: Iterable[JobView]) -> list[JobLine]:
    """Each with an estimate of the seconds that are left."""
    now = datetime.now(UTC)
    return [JobLine(job, seconds_left(job, now)) for job in jobs]


@pages.get(JOBS, needs=AccessRole.READ, query=JobsQuery, template="jobs.html", title="Jobs", menu="Jobs")
def list_jobs(visit: Visit[JobsQuery, NoBody]) -> Context:
    """Jobs, the newest first."""
    return _list_context(visit) | {
        "archives": visit.client.archives.names(),
        "kinds": [kind for kind in JobKind if kind is not JobKind.REQUEST],
        "states": list(JobState),
    }


@pages.part(f"{JOBS}/list", needs=AccessRole.READ, query=JobsQuery, template="_jobs.html")
def show_list(visit: Visit[JobsQuery, NoBody]) -> Context:
    """The part of the page that the browser renews: the table of jobs."""
    return _list_context(visit)


@pages.events(f"{JOBS}/list/events", needs=AccessRole.READ, query=JobsQuery)
async def follow_list(visit: Visit[JobsQuery, NoBody]) -> Response:
    """An event when the list would show something else."""
    return await follow_while_signed_in(visit, lambda: sight_of(_listed(visit)))


def _listed(visit: Visit[JobsQuery, NoBody]) -> list[JobView]:
    """One more than are shown tells whether there are more."""
    query = visit.query
    return visit.client.jobs.list(
        limit=_LISTED + 1,
        only_open=query.open,
        archive=visit.archive(query.archive) if query.archive else None,
        kind=query.kind,
        state=query.state,
        before=query.after,
    )


def _list_context(visit: Visit[JobsQuery, NoBody]) -> dict[str, Any]:
    listed, query = _listed(visit), visit.query
    shown = listed[:_LISTED]
    return {
        "jobs": job_lines(shown),
        "query": query,
        "chosen": with_others(query),
        "more": with_others(query, after=shown[-1].job_id) if len(listed) > _LISTED else None,
        "may_submit": visit.may(AccessRole.ASK),
    }


@pages.get(
    f"{JOBS}/{{job_id}}",
    needs=AccessRole.READ,
    query=RowsQuery,
    template="job.html",
    title="Job",
    archive_in="path:job_id",
)
def show_job(visit: Visit[RowsQuery, NoBody]) -> Context:
    """One job: its state, what can be done, its rows."""
    job = visit.client.jobs.get(visit.number("job_id"))
    return _job_context(visit, job) | _rows_context(visit, job)


@pages.part(f"{JOBS}/{{job_id}}/state", needs=AccessRole.READ, template="_job_state.html", archive_in="path:job_id")
def show_job_state(visit: Visit[NoQuery, NoBody]) -> Context:
    """The part of a job's page that changes by itself."""
    return _job_context(visit, visit.client.jobs.get(visit.number("job_id")))


@pages.events(f"{JOBS}/{{job_id}}/events", needs=AccessRole.READ, archive_in="path:job_id")
async def follow_one_job(visit: Visit[NoQuery, NoBody]) -> Response:
    """The progress of a job, as the HTTP API tells it."""
    return await follow_while_signed_in(visit, lambda: sight_of_job(visit))


@pages.get(f"{JOBS}/{{job_id}}/results", needs=AccessRole.READ, query=ResultsQuery, archive_in="path:job_id")
def download_results(visit: Visit[ResultsQuery, NoBody]) -> OwnedFile:
    """The results as JSON lines, CSV or Parquet."""
    return read_results(visit)


@pages.get(f"{JOBS}/{{job_id}}/report", needs=AccessRole.READ, archive_in="path:job_id")
def show_report(visit: Visit[NoQuery, NoBody]) -> OwnedFile:
    """The results as one page with pictures, at most 2,000 questions."""
    return read_report(visit)


@pages.post(f"{JOBS}/{{job_id}}/pause", needs=AccessRole.ASK, archive_in="path:job_id")
def pause(visit: Visit[NoQuery, NoBody]) -> Done:
    """Stop dispatching shards of a job."""
    return _changed(visit, visit.client.jobs.pause, "is paused; shards that run are handed back soon.")


@pages.post(f"{JOBS}/{{job_id}}/resume", needs=AccessRole.ASK, archive_in="path:job_id")
def resume(visit: Visit[NoQuery, NoBody]) -> Done:
    """Continue a paused job."""
    return _changed(visit, visit.client.jobs.resume, "continues.")


@pages.post(f"{JOBS}/{{job_id}}/cancel", needs=AccessRole.ASK, archive_in="path:job_id")
def cancel(visit: Visit[NoQuery, NoBody]) -> Done:
    """Stop a job; its answers so far stay."""
    return _changed(visit, visit.client.jobs.cancel, "is cancelled; its answers so far stay.")


@pages.post(f"{JOBS}/{{job_id}}/retry", needs=AccessRole.ASK, archive_in="path:job_id")
def retry(visit: Visit[NoQuery, NoBody]) -> Done:
    """Try the failed, dead, expired and cancelled inputs again."""
    job_id, count = visit.number("job_id"), visit.client.access.count_questions(visit.principal)
    number = visit.client.jobs.retry(job_id, count)
    return _done(job_id, f"{number:,} inputs of job {job_id} are tried again.")


@pages.post(f"{JOBS}/{{job_id}}/refresh", needs=AccessRole.ASK, archive_in="path:job_id")
def refresh(visit: Visit[NoQuery, NoBody]) -> Done:
    """Ask those questions again for which something has changed since, in a new job."""
    job_id, count = visit.number("job_id"), visit.client.access.count_questions(visit.principal)
    refreshing, is_new = visit.client.questions.refresh(job_id, count)
    return _done(refreshing, f"Job {refreshing} refreshes job {job_id}{'' if is_new else ' already'}.")


def _job_context(visit: Visit[Any, NoBody], job: JobView) -> dict[str, Any]:
    return {
        "line": job_lines([job])[0],
        "job": job,
        "title": f"Job {job.job_id}",
        "is_answers": job.kind == JobKind.ANSWER,
        "shards": visit.client.jobs.troubled_shards(job.job_id)[:20],
        "detail": job.detail_json(),
        "plan": {"estimate": estimate_line(job), "limits": list(limit_lines(job))},
        "may_change": visit.may(AccessRole.ASK),
        "has_failures": any(
            job.progress.by_status.get(status) for status in ("failed", "dead", "expired", "cancelled")
        ),
        "csrf": visit.csrf,
    }


def _rows_context(visit: Visit[RowsQuery, NoBody], job: JobView) -> dict[str, Any]:
    if job.kind != JobKind.ANSWER:
        return {"page": None}
    query = visit.query
    page: ResultPage = visit.client.questions.page(
        job.job_id, ResultQuery(query.show, query.after, _ROWS, query.code, query.below, query.against)
    )
    counts = job.progress.by_status
    is_refresh = job.refresh is not None
    has_failed = bool(counts.get("failed") or counts.get("dead") or counts.get("expired"))
    return {
        "page": page,
        "query": query,
        "more": None if page.next_after is None else with_others(query, after=page.next_after),
        "codes": visit.client.questions.failures_by_code(job.job_id) if has_failed else {},
        "filters": [which for which in ResultFilter if which is not ResultFilter.CHANGED or is_refresh],
        "comparable": visit.client.questions.comparable_jobs(job.job_id),
    }


def with_others(query: Query, **others: object) -> str:
    """The query of a link: this one with other values, without what is the default."""
    values = query.model_dump(mode="json", exclude_defaults=True) | others
    return urlencode({name: value for name, value in values.items() if value is not None})


def _changed(visit: Visit[NoQuery, NoBody], change: Callable[[int], object], said: str) -> Done:
    job_id = visit.number("job_id")
    change(job_id)
    return _done(job_id, f"Job {job_id} {said}")


def _done(job_id: int, message: str) -> Done:
    return Done(message, f"{JOBS}/{job_id}")
