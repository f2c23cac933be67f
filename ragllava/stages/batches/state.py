"""The status of a batch, as OpenAI's clients know it, from its row and its job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from sqlalchemy import Connection

from ragllava.jobs.states import FINAL_JOB_STATES, JobState
from ragllava.records import AnswerStatus
from ragllava.stores.access.batches import Batch
from ragllava.stores.jobs.outcomes import QuestionInputs

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


def request_counts(connection: Connection, batches: Sequence[Batch]) -> list[dict[str, int]]:
    """`total`, `completed` and `failed` lines of each batch; of an ended one they add up. All that have to be counted
    share a statement."""
    uncounted = {
        batch.job_id: batch.job_total
        for batch in batches
        if batch.counts is None
        and batch.job_counts is None
        and batch.job_id is not None
        and batch.job_total is not None
    }
    counted = QuestionInputs().count_many(connection, uncounted)
    return [_counts(batch, counted) for batch in batches]


def _counts(batch: Batch, counted: Mapping[int, dict[str, int]]) -> dict[str, int]:
    if batch.counts is not None:
        return batch.counts
    if batch.job_id is None or batch.job_total is None:
        return {"total": 0, "completed": 0, "failed": 0}
    by_status = batch.job_counts if batch.job_counts is not None else counted[batch.job_id]
    completed = sum(by_status.get(status, 0) for status in _COMPLETED)
    return {"total": batch.job_total, "completed": completed, "failed": sum(by_status.values()) - completed}
