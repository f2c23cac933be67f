"""Jobs of every kind: submit questions, list, show, pause, resume, cancel, retry, refresh, remove."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from pydantic import Field

from ragllava.api.bodies import close_files, read_form
from ragllava.api.errors import InvalidRequest
from ragllava.api.route import Answer, Body, Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.archives import RemovalObject, RemovalQuery, removal_object
from ragllava.api.routes.native.shared import Json, Line, LongText, Where, json_of, page_of
from ragllava.client import AccessRole, AnswerOptions, JobKind, JobState, JobView, Priority, Retrieval, seconds_left
from ragllava.client.checking import MOST_GPU_SECONDS
from ragllava.records import PRIORITIES, Depth

routes = Routes("Jobs")

MAX_FORM_BYTES = 201 * 2**20
_MAX_QUESTIONS = 50_000


class AnswerChoices(Body):
    """How questions are answered; `threshold` null: the reranker's own, `where`: a condition on metadata.

    What has no answer at the `deadline` (`2h`, `1h30m`, or a time in ISO 8601; UTC without a zone), or when workers
    were busy with the job for `max_gpu_seconds`, ends as `expired`.
    """

    top_k: Annotated[int, Field(ge=1, le=1_000)] = 20
    top_n: Annotated[int, Field(ge=1, le=20)] = 2
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    captions_in_answer: bool = True
    retrieval: Retrieval = Retrieval.HYBRID
    depth: Depth = Depth.NEED
    where: Where = None
    name: Line | None = None
    priority: Literal["low", "normal", "high"] = "normal"
    skip_invalid: bool = False
    deadline: Line | None = None
    max_gpu_seconds: Annotated[float, Field(gt=0, le=MOST_GPU_SECONDS)] | None = None

    @property
    def options(self) -> AnswerOptions:
        """Without the filter."""
        names = ("top_k", "top_n", "threshold", "captions_in_answer", "retrieval", "depth")
        return AnswerOptions(**{name: getattr(self, name) for name in names})

    @property
    def chosen_priority(self) -> Priority:
        """As the client knows it."""
        return PRIORITIES[self.priority]


class NewJobBody(AnswerChoices):
    """Questions: texts, or objects with the keys of a line of a question file (`question`, `custom_id`, `where`)."""

    archive: Line
    questions: Annotated[list[LongText | Json], Field(min_length=1, max_length=_MAX_QUESTIONS)]


class JobFileForm(AnswerChoices):
    """The fields beside the field `file` with the question file."""

    archive: Line


class SubmittedJob(Answer):
    """The job, whether it is new, and what is wrong with lines that were left out (`skip_invalid`)."""

    object: Literal["submitted"] = "submitted"
    job: int
    is_new: bool
    total: int
    errors: list[Json]
    notes: list[str]


class JobsQuery(Query):
    """Which jobs; `after` is the `last_id` of the page before."""

    after: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    archive: Line | None = None
    kind: JobKind | None = None
    state: JobState | None = None
    open: bool = False


class SpanObject(Answer):
    """Seconds: at best, as expected, at worst."""

    low_s: float
    expected_s: float
    high_s: float


class EstimateObject(Answer):
    """How long a job would take. `time`: from submit to end; null where it is not known. `busy`: what workers are busy
    with it, all together. `basis`: `jobs`, `sample` or `nothing` was timed."""

    object: Literal["estimate"] = "estimate"
    time: SpanObject | None
    busy: SpanObject | None
    questions: int
    candidates: int
    slots: int
    basis: str
    based_on: int
    jobs_before: int
    before_s: float | None
    start_s: float
    assumptions: list[str]


class JobObject(Answer):
    """A job. `counts` are its inputs by outcome, `seconds_left` an estimate; `detail` is what only its kind has.

    `estimate` is what was expected when it was made, `timing` what came out; `max_gpu_s` is its budget.
    """

    object: Literal["job"] = "job"
    job: int
    kind: str
    name: str | None
    file: str | None
    archive: str
    owner: str | None
    state: str
    priority: int
    jobs_before: int | None
    total: int
    done: int
    counts: dict[str, int]
    seconds_left: float | None
    error: str | None
    result: Json | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    max_gpu_s: float | None
    estimate: Json | None
    timing: Json | None
    detail: Json | None


class JobWithShards(JobObject):
    """A job, with its shards that run, failed or are dead."""

    shards: list[Json]


class JobList(Answer):
    """A page of jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    first_id: int | None
    last_id: int | None
    has_more: bool


class RetriedJob(Answer):
    """How many inputs are tried again."""

    object: Literal["retried"] = "retried"
    job: int
    inputs: int


class RefreshedJob(Answer):
    """The job that refreshes another one, and whether it is new."""

    object: Literal["refreshed"] = "refreshed"
    job: int
    is_new: bool


@routes.post(
    "/v1/jobs",
    needs=AccessRole.ASK,
    body=NewJobBody,
    answer=SubmittedJob,
    status=201,
    archive_in="body:archive",
)
def submit_job(call: Call[NoQuery, NewJobBody]) -> SubmittedJob:
    """Queue questions. With `Idempotency-Key`, a repetition with the same questions makes no second job."""
    rows = [row if isinstance(row, dict) else {"question": row} for row in call.body.questions]
    return submit(call, call.body, call.archive(call.body.archive), rows)


@routes.post(
    "/v1/jobs/file",
    needs=AccessRole.ASK,
    body=JobFileForm,
    upload=MAX_FORM_BYTES,
    answer=SubmittedJob,
    status=201,
)
async def submit_job_file(call: Call[NoQuery, NoBody]) -> SubmittedJob:
    """Queue a question file (JSONL, JSON, CSV, Excel or Parquet), the field `file` of a multipart form."""
    form, files = await read_form(call.request, JobFileForm, MAX_FORM_BYTES)
    try:
        if "file" not in files:
            raise InvalidRequest("the form has no field file with a file", "file")
        return await call.run(_submit_file, call, form, files["file"].file, files["file"].filename or "")
    finally:
        await close_files(files)


class EstimateBody(NewJobBody):
    """As a job; `sample` questions are timed if no earlier job tells."""

    sample: Annotated[int, Field(ge=0, le=64)] = 32


@routes.post("/v1/estimates", needs=AccessRole.ASK, body=EstimateBody, answer=EstimateObject, archive_in="body:archive")
async def estimate_job(call: Call[NoQuery, EstimateBody]) -> EstimateObject:
    """How long a job of these questions would take. Makes no job, but may time a few questions at a worker."""
    return await call.wait(_estimate, call)


def _estimate(call: Call[NoQuery, EstimateBody]) -> EstimateObject:
    body, admitted = call.body, partial(call.client.access.admitted, call.principal)
    rows = [row if isinstance(row, dict) else {"question": row} for row in body.questions]
    archive, priority = call.archive(body.archive), body.chosen_priority
    estimate = call.client.questions.estimate(
        rows,
        archive,
        body.options,
        where=body.where,
        priority=priority,
        sample=body.sample,
        admitted=admitted,
        timeout_s=call.settings.api_answer_timeout_s,
    ).estimate
    return EstimateObject(**estimate.as_json())


@routes.get("/v1/jobs", needs=AccessRole.READ, query=JobsQuery, answer=JobList)
def list_jobs(call: Call[JobsQuery, NoBody]) -> JobList:
    """Jobs, the newest first; of requests that somebody waits for only the open ones."""
    query = call.query
    found = call.client.jobs.list(
        limit=query.limit + 1,
        only_open=query.open,
        archive=call.archive(query.archive) if query.archive is not None else None,
        kind=query.kind,
        state=query.state,
        before=query.after,
    )
    return page_of(JobList, list(map(job_object, found[: query.limit])), len(found) > query.limit, "job")


@routes.get("/v1/jobs/{job_id}", needs=AccessRole.READ, answer=JobWithShards, archive_in="path:job_id")
def show_job(call: Call[NoQuery, NoBody]) -> JobWithShards:
    """One job, with its shards that run, failed or are dead."""
    job_id = call.number("job_id")
    job = job_object(call.client.jobs.get(job_id))
    return JobWithShards(**job.model_dump(), shards=list(map(json_of, call.client.jobs.troubled_shards(job_id))))


@routes.post("/v1/jobs/{job_id}/pause", needs=AccessRole.ASK, answer=JobObject, archive_in="path:job_id")
def pause_job(call: Call[NoQuery, NoBody]) -> JobObject:
    """Stop dispatching shards of a job; 409 for one that has ended."""
    return _changed(call, call.client.jobs.pause)


@routes.post("/v1/jobs/{job_id}/resume", needs=AccessRole.ASK, answer=JobObject, archive_in="path:job_id")
def resume_job(call: Call[NoQuery, NoBody]) -> JobObject:
    """Continue a paused job; 409 for one that has ended."""
    return _changed(call, call.client.jobs.resume)


@routes.post("/v1/jobs/{job_id}/cancel", needs=AccessRole.ASK, answer=JobObject, archive_in="path:job_id")
def cancel_job(call: Call[NoQuery, NoBody]) -> JobObject:
    """Stop a job; its answers so far stay. 409 for one that has ended."""
    return _changed(call, call.client.jobs.cancel)


@routes.post("/v1/jobs/{job_id}/retry", needs=AccessRole.ASK, answer=RetriedJob, archive_in="path:job_id")
def retry_job(call: Call[NoQuery, NoBody]) -> RetriedJob:
    """Try the failed, dead, expired and cancelled inputs of an ended job again; 409 for one that has not ended."""
    job_id, count = call.number("job_id"), call.client.access.count_questions(call.principal)
    return RetriedJob(job=job_id, inputs=call.client.jobs.retry(job_id, count))


@routes.post(
    "/v1/jobs/{job_id}/refresh", needs=AccessRole.ASK, answer=RefreshedJob, status=201, archive_in="path:job_id"
)
def refresh_job(call: Call[NoQuery, NoBody]) -> RefreshedJob:
    """Ask those questions of an ended job again for which something has changed since, in a new job."""
    count = call.client.access.count_questions(call.principal)
    job_id, is_new = call.client.questions.refresh(call.number("job_id"), count)
    return RefreshedJob(job=job_id, is_new=is_new)


@routes.delete(
    "/v1/jobs/{job_id}",
    needs=AccessRole.WRITE,
    query=RemovalQuery,
    answer=RemovalObject,
    status=202,
    archive_in="path:job_id",
)
def remove_job(call: Call[RemovalQuery, NoBody]) -> RemovalObject:
    """Erase a job that has ended, with its inputs, answers, labels and result files."""
    return removal_object(call.client.jobs.remove(call.number("job_id"), dry_run=call.query.dry_run))


def job_object(job: JobView) -> JobObject:
    """A job as clients see it."""
    shown = job.as_json()
    names = [name for name in JobObject.model_fields if name not in {"object", "done", "seconds_left", "detail"}]
    detail = job.detail_json()
    return JobObject(
        **{name: shown[name] for name in names},
        done=job.progress.done,
        seconds_left=seconds_left(job, datetime.now(UTC)),
        detail=json_of(detail) if detail else None,
    )


def _changed(call: Call[NoQuery, NoBody], change: Callable[[int], object]) -> JobObject:
    job_id = call.number("job_id")
    change(job_id)
    return job_object(call.client.jobs.get(job_id))


def submit(call: Call[NoQuery, Any], choices: AnswerChoices, archive: str, source: Path | list[Json]) -> SubmittedJob:
    """Queue questions for a caller. Raises as the client's method."""
    submitted = call.client.questions.submit(
        source,
        archive,
        choices.options,
        where=choices.where,
        skip_invalid=choices.skip_invalid,
        idempotency_key=call.idempotency_key,
        name=choices.name,
        priority=choices.chosen_priority,
        deadline=choices.deadline,
        max_gpu_seconds=choices.max_gpu_seconds,
        admitted=partial(call.client.access.admitted, call.principal),
        count_bytes=call.client.access.count_bytes(call.principal),
    )
    return SubmittedJob(
        job=submitted.job_id,
        is_new=submitted.is_new,
        total=submitted.total,
        errors=list(map(json_of, submitted.errors[:100])),
        notes=list(submitted.notes),
    )


def _submit_file(call: Call[NoQuery, NoBody], form: JobFileForm, stream: Any, name: str) -> SubmittedJob:
    archive = call.archive(form.archive)
    with named_file(stream, name) as path:
        return submit(call, form, archive, path)


@contextmanager
def named_file(stream: Any, name: str) -> Iterator[Path]:
    """A file that was sent, on disk under the name that the client gives: its extension says what it is.

    Raises InvalidRequest for a name that no file can have.
    """
    plain = Path(name.replace("\\", "/")).name
    if not plain.isprintable() or len(plain.encode(errors="replace")) > 200 or plain.startswith("."):
        raise InvalidRequest(f"{plain[:80]!r} cannot be the name of a file", "file")
    with TemporaryDirectory(prefix="ragllava-api-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / (plain or "questions")
        stream.seek(0)  # the call may have begun before (Threads)
        with path.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 2**20)
        yield path
