"""The status of a batch, as OpenAI's clients know it, from its row and its job."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import Connection

from ragllava.jobs.kinds import kind_of
from ragllava.jobs.states import FINAL_JOB_STATES, JobState
from ragllava.records import AnswerStatus, JobKind
from ragllava.stores.access.batches import Batch

_COMPLETED = (AnswerStatus.ANSWERED, AnswerStatus.NO_EVIDENCE)


class BatchStatus(StrEnum):
    """The eight of OpenAI; clients know no others."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


def status_of(batch: Batch) -> BatchStatus:
    """An ended batch has the time of its end; an open one is told by its job."""
    for status in (BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED):
        if getattr(batch, f"{status}_at") is not None:
            return status
    if batch.cancelling_at is not None:
        return BatchStatus.CANCELLING
    if batch.job_id is None:
        return BatchStatus.VALIDATING
    return BatchStatus.FINALIZING if batch.overdue_at or is_job_ended(batch) else BatchStatus.IN_PROGRESS


def is_job_ended(batch: Batch) -> bool:
    """Whether the job of a batch has ended."""
    return batch.job_state is not None and JobState(batch.job_state) in FINAL_JOB_STATES


def request_counts(connection: Connection, batch: Batch) -> dict[str, int]:
    """`total`, `completed` and `failed` lines; of an ended batch they add up."""
    if batch.counts is not None:
        return batch.counts
    if batch.job_id is None or batch.job_total is None:
        return {"total": 0, "completed": 0, "failed": 0}
    by_status = batch.job_counts
    if by_status is None:
        by_status = kind_of(JobKind.ANSWER).inputs.count(connection, batch.job_id, batch.job_total)
    completed = sum(by_status.get(status, 0) for status in _COMPLETED)
    return {"total": batch.job_total, "completed": completed, "failed": sum(by_status.values()) - completed}
