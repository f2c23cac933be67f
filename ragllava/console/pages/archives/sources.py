"""What feeds an archive: uploads, bound buckets, rejected files, pictures that no question finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import JSONResponse, Response

from ragllava.api.route import Body, NoBody, NoQuery, Query
from ragllava.api.routes.native.picture_forms import MAX_FORM_BYTES, PicturesForm, ingest_form
from ragllava.api.routes.native.shared import Line
from ragllava.client import AccessRole, BindingRole, JobView, TaskName
from ragllava.console.page import ROOT, Context, Done, Pages, Visit
from ragllava.console.pages.archives.archives import ARCHIVE, LIST

pages = Pages("Archives")

_SHOWN_ROWS = 200  # of rejected files, notes and gaps
_MOST_UPLOADS = 200  # jobs of one visit whose progress is shown


class BindingForm(Body):
    """A part of a bucket. `outbox` is where an inbox puts its results."""

    address: Line
    role: BindingRole = BindingRole.PICTURES
    outbox: Line | None = None


class AddressForm(Body):
    """Which binding."""

    address: Line


class UploadsQuery(Query):
    """The jobs of the uploads of this visit, separated by commas."""

    jobs: Annotated[str, Field(pattern=r"^(\d{1,18}(,\d{1,18})*)?$", max_length=20 * _MOST_UPLOADS)] = ""


@pages.get(f"{ARCHIVE}/files", needs=AccessRole.READ, template="sources.html", title="Files", archive_in="path:archive")
def show_files(visit: Visit[NoQuery, NoBody]) -> Context:
    """Upload, bindings, rejected files with reasons, gaps."""
    name, archives = visit.archive(visit.path("archive")), visit.client.archives
    lists: dict[str, Sequence[Any]] = {
        "rejected": archives.rejected(name),
        "gaps": archives.gaps(name),
        "notes": archives.notes(name),
    }
    return {
        "archive": name,
        "tab": "files",
        "bindings": archives.bindings(name),
        "open_jobs": archives.open_ingests(name),
        **{kind: rows[:_SHOWN_ROWS] for kind, rows in lists.items()},
        "counts": {kind: len(rows) for kind, rows in lists.items()},
        "may_write": visit.may(AccessRole.WRITE),
        "may_manage": visit.may(AccessRole.ADMIN, of_all=True),
        "roles": list(BindingRole),
    }


@pages.post(
    f"{ARCHIVE}/files",
    needs=AccessRole.WRITE,
    body=PicturesForm,
    upload=MAX_FORM_BYTES,
    archive_in="path:archive",
)
def upload(visit: Visit[NoQuery, PicturesForm]) -> Done | Response:
    """Add the files of a form, in a job; to the script of the page it says which."""
    name = visit.archive(visit.path("archive"))
    # A browser sends an empty part for an input without a file.
    files = {field: file for field, file in visit.files.items() if file.filename}
    job = ingest_form(visit, name, visit.body, files)
    if "application/json" in visit.request.headers.get("accept", ""):
        figures: dict[str, Any] = {"job": job.job_id, "files": job.total}
        figures["lost_captions"] = list(job.unused_captions[:20])
        figures["passed_over"] = dict(job.beside.passed_over)
        return JSONResponse(figures, 202)
    return Done(f"Job {job.job_id} adds {job.total:,} files.", f"{LIST}/{name}/files")


@pages.part(
    f"{ARCHIVE}/uploads", needs=AccessRole.READ, template="_uploads.html", query=UploadsQuery, archive_in="path:archive"
)
def show_uploads(visit: Visit[UploadsQuery, NoBody]) -> Context:
    """How far the uploads of this visit are, and the files of theirs that were rejected: a part of the page."""
    name = visit.archive(visit.path("archive"))
    ids = [int(given) for given in visit.query.jobs.split(",") if given][:_MOST_UPLOADS]
    jobs = [job for job in visit.client.jobs.several(ids) if job.archive == name]
    own = {job.job_id for job in jobs}
    is_open = any(not job.is_final for job in jobs)
    rejected = [] if is_open else [file for file in visit.client.archives.rejected(name) if file.job_id in own]
    return {
        "archive": name,
        "jobs": visit.query.jobs,
        "is_open": is_open,
        "done": sum(job.progress.done for job in jobs),
        "total": sum(job.progress.total for job in jobs),
        "by_status": _added(jobs),
        "rejected": rejected[:_SHOWN_ROWS],
        "errors": [job.error for job in jobs if job.error],
    }


def _added(jobs: list[JobView]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for job in jobs:
        for status, number in job.progress.by_status.items():
            counts[status] = counts.get(status, 0) + number
    return counts


@pages.post(f"{ARCHIVE}/bind", needs=AccessRole.WRITE, body=BindingForm, archive_in="path:archive")
def bind(visit: Visit[NoQuery, BindingForm]) -> Done:
    """Let a part of a bucket feed the archive, from now on and with what is there."""
    name, body = visit.archive(visit.path("archive")), visit.body
    with visit.client.access.admitted(visit.principal):
        made = visit.client.archives.bind(name, body.address, body.role, {"outbox": body.outbox} if body.outbox else {})
        job = visit.client.schedules.run_task(TaskName.SCAN, name)
    return Done(f"{made.address} feeds {name} now. Job {job} takes what is there.", f"{LIST}/{name}/files")


@pages.post(f"{ARCHIVE}/unbind", needs=AccessRole.WRITE, body=AddressForm, archive_in="path:archive")
def unbind(visit: Visit[NoQuery, AddressForm]) -> Done:
    """Remove a binding; its pictures stay."""
    name = visit.archive(visit.path("archive"))
    removed = visit.client.archives.unbind(name, visit.body.address)
    return Done(f"{removed.address} does not feed {name} any more. Its pictures stay.", f"{LIST}/{name}/files")


@pages.post(f"{ARCHIVE}/scan", needs=AccessRole.WRITE, archive_in="path:archive")
def scan(visit: Visit[NoQuery, NoBody]) -> Done:
    """Compare the bound buckets with what is stored of them, in a job."""
    name = visit.archive(visit.path("archive"))
    with visit.client.access.admitted(visit.principal):
        job = visit.client.schedules.run_task(TaskName.SCAN, name)
    return Done(f"Job {job} compares the buckets with the archive.", f"{ROOT}/jobs/{job}")
