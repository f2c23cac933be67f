"""States of jobs and shards, and which moves are allowed (docs/reliability.md D1)."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """A job's life. The last four are final."""

    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    EXPIRING = "expiring"  # its deadline is over, or its budget used up: running shards stop, the others end
    COMPLETED = "completed"
    COMPLETED_WITH_ERRORS = "completed_with_errors"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ShardState(StrEnum):
    """A shard's life: pending → queued → running → done, and back to pending when it is handed back or lost.

    `queued` means that a message was published, which may be lost. The last four are final.
    """

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    SPLIT = "split"  # replaced by two smaller shards
    DEAD = "dead"
    CANCELLED = "cancelled"


FINAL_JOB_STATES = (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS, JobState.FAILED, JobState.CANCELLED)
STOPPING_JOB_STATES = (JobState.CANCELLING, JobState.EXPIRING)
OPEN_SHARD_STATES = (ShardState.PENDING, ShardState.QUEUED, ShardState.RUNNING)


def stopped_as(state: str, error: str | None) -> tuple[str, str]:
    """The outcome of the open inputs of a job that stops, and the reason; `error` is that of the job."""
    if state == JobState.EXPIRING:
        return "expired", error or "the time of the job was over"
    return "cancelled", "cancelled by the user"
