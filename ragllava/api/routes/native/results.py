"""What a job has brought: results, report, and its progress as events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import anyio
from starlette.responses import Response, StreamingResponse

from ragllava.api.route import Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.jobs import JobObject, job_object
from ragllava.api.routes.native.shared import OwnedFile, made_file
from ragllava.client import AccessRole, acting, pause_between_views

routes = Routes("Results")

_MEDIA_TYPES = {
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
_LOOK_S = 1.0  # between two looks at a job, at least
_HEARTBEAT_S = 15.0  # proxies close a connection on which nothing comes
# The report has a policy of its own, by the hashes of its style and script; nothing else of it may run.
_REPORT_POLICY = "sandbox allow-scripts"


class ResultsQuery(Query):
    """The form of the results, and whether the pictures of the evidence come with their metadata."""

    format: Literal["jsonl", "csv", "parquet"] = "jsonl"
    metadata: bool = False


@routes.get(
    "/v1/jobs/{job_id}/results",
    needs=AccessRole.READ,
    query=ResultsQuery,
    streams="application/x-ndjson",
    archive_in="path:job_id",
)
def read_results(call: Call[ResultsQuery, NoBody]) -> OwnedFile:
    """The results of an answer job so far, a line or row for each question that has one, in input order.

    As JSON lines, CSV or Parquet; with evidence and scores. Of an ended job, a part can be read (`Range`), and `ETag`
    tells whether it is still a part of the same file.
    """
    job_id, query = call.number("job_id"), call.query
    return made_file(
        lambda path: call.client.questions.fetch_results(job_id, path, with_metadata=query.metadata),
        f"results.{query.format}",
        _MEDIA_TYPES[query.format],
        content_disposition=f'attachment; filename="job-{job_id}.{query.format}"',
    )


@routes.get("/v1/jobs/{job_id}/report", needs=AccessRole.READ, streams="text/html", archive_in="path:job_id")
def read_report(call: Call[NoQuery, NoBody]) -> OwnedFile:
    """The results of an answer job as one HTML page with its pictures, at most 2,000 questions."""
    job_id = call.number("job_id")
    return made_file(
        lambda path: call.client.questions.save_report(job_id, path, replace_any=True),
        "report.html",
        "text/html; charset=utf-8",
        content_security_policy=_REPORT_POLICY,
    )


@routes.get("/v1/jobs/{job_id}/events", needs=AccessRole.READ, streams="text/event-stream", archive_in="path:job_id")
async def follow_job(call: Call[NoQuery, NoBody]) -> Response:
    """The progress of a job as server-sent events: `progress` when something has changed, `end` as the last one.

    The data of an event is the job. A client that comes back with `Last-Event-ID` is not told again what it knows;
    after the end it gets 204. A comment comes every 15 seconds.
    """
    job = await call.run(_look, call)
    last = call.request.headers.get("last-event-id", "")
    if job.finished_at is not None and last == _event_id(job):
        return Response(status_code=204)
    headers = {"x-accel-buffering": "no"}  # else a proxy may hold the events back
    return StreamingResponse(_events(call, job, last), headers=headers, media_type="text/event-stream")


async def _events(call: Call[NoQuery, NoBody], job: JobObject, last: str) -> AsyncIterator[str]:
    quiet_s, pause_s = 0.0, _LOOK_S
    while True:
        event_id = _event_id(job)
        if event_id != last:
            yield _event(job, event_id)
            last, quiet_s = event_id, 0.0
        elif quiet_s >= _HEARTBEAT_S:
            yield ": nothing new\n\n"
            quiet_s = 0.0
        if job.finished_at is not None:
            return
        slept_s = min(pause_s, _HEARTBEAT_S)
        await anyio.sleep(slept_s)
        quiet_s, pause_s = quiet_s + slept_s, pause_s - slept_s
        if pause_s > 0:  # a heartbeat is due before the next look
            continue
        began = time.monotonic()
        with acting(call.principal.scope):
            job = await call.run(_look, call)
        pause_s = pause_between_views(time.monotonic() - began, _LOOK_S)


def _look(call: Call[Any, Any]) -> JobObject:
    return job_object(call.client.jobs.get(call.number("job_id")))


def _event_id(job: JobObject) -> str:
    """The same for the same state of a job: an estimate that changes is no news."""
    return f"{job.job}-{job.state}-{job.done}-{int(job.finished_at.timestamp()) if job.finished_at else 0}"


def _event(job: JobObject, event_id: str) -> str:
    name = "progress" if job.finished_at is None else "end"
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps(job.model_dump(mode='json'))}\n\n"
