"""Refreshing a job: its questions again, of which the workers ask only those for which something has changed.

The comparison is part of the answer stage (stages/answer/changes.py) because it retrieves, and a machine that only
submits may have no retriever. Only `refresh_plan.py`, the preview, needs one in the calling process.
"""

from __future__ import annotations

from sqlalchemy import Connection

from ragllava.errors import UsageError
from ragllava.jobs import control
from ragllava.jobs.control import JobView, NewJob
from ragllava.records import AnswerStatus, JobKind
from ragllava.settings import Settings
from ragllava.stages.answer.submit import BULK_PRIORITY
from ragllava.stores.archives import archive
from ragllava.stores.jobs import refreshes


def submit_refresh(connection: Connection, settings: Settings, earlier_job_id: int) -> tuple[int, bool]:
    """Create an answer job that refreshes an ended one; returns its id and whether it is new.

    It has the same lines and options. Lines without an answer keep their outcome: those are for a retry. While a
    refresh of that job is open, that refresh is returned. Raises UsageError when there is nothing to refresh.
    """
    open_refresh = refreshes.lock_earlier(connection, earlier_job_id)
    earlier = require_answered(control.view(connection, earlier_job_id))
    if open_refresh is not None:
        return open_refresh, False
    job_id, is_new = control.create(
        connection,
        NewJob(
            kind=JobKind.ANSWER,
            archive_id=archive.get_archive(connection, earlier.archive).archive_id,
            spec={
                "options": earlier.spec["options"],
                "input": earlier.spec.get("input"),
                "refreshes": earlier_job_id,
            },
            total=earlier.progress.total,
            per_shard=settings.questions_per_shard,
            priority=BULK_PRIORITY,
        ),
    )
    refreshes.copy_lines(connection, job_id, earlier_job_id, earlier.progress.total)
    return job_id, is_new


def require_answered(job: JobView) -> JobView:
    """The job, if it can be refreshed; else UsageError."""
    if job.kind != JobKind.ANSWER:
        raise UsageError(f"job {job.job_id} is of the kind {job.kind}; only an answer job can be refreshed")
    if not job.is_final:
        raise UsageError(f"job {job.job_id} is {job.state.value}; only an ended job can be refreshed")
    if not answered_lines(job):
        raise UsageError(
            f"job {job.job_id} has no answer to refresh; `ragllava jobs retry {job.job_id}` asks its questions again"
        )
    return job


def answered_lines(job: JobView) -> int:
    """How many lines have the outcome `answered` or `no_evidence`."""
    return sum(job.progress.by_status.get(status, 0) for status in (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE))
