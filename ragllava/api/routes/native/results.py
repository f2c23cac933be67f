"""What a job has brought: results, report, and its progress as events."""

from __future__ import annotations

import json
from typing import Any, Literal

from starlette.responses import Response

from ragllava.api.following import EVENTS, Sight, follow_while_admitted
from ragllava.api.route import Call, NoBody, NoQuery, Query, Routes
from ragllava.api.routes.native.jobs import JobObject, job_object
from ragllava.api.routes.native.shared import OwnedFile, made_file
from ragllava.client import AccessRole

routes = Routes("Results")

_MEDIA_TYPES = {
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
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


@routes.get("/v1/jobs/{job_id}/events", needs=AccessRole.READ, streams=EVENTS, archive_in="path:job_id")
async def follow_job(call: Call[NoQuery, NoBody]) -> Response:
    """The progress of a job as server-sent events: `progress` when something has changed, `end` as the last one.

    The data of an event is the job. A client that comes back with `Last-Event-ID` is not told again what it knows;
    after the end it gets 204. A comment comes every 15 seconds. The events end with the key or token of the request.
    """
    return await follow_while_admitted(call, lambda: sight_of_job(call))


def sight_of_job(call: Call[Any, Any]) -> Sight:
    """The job of a path as an event of it. Raises UsageError."""
    job = job_object(call.client.jobs.get(call.number("job_id")))
    return Sight(_event_id(job), json.dumps(job.model_dump(mode="json")), job.finished_at is not None)


def _event_id(job: JobObject) -> str:
    """The same for the same state of a job: an estimate that changes is no news."""
    return f"{job.job}-{job.state}-{job.done}-{int(job.finished_at.timestamp()) if job.finished_at else 0}"
