"""What people do with jobs: create, look, cancel, pause, resume, retry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, case, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from ragllava.errors import UsageError
from ragllava.jobs.queue import Lease, close_job_if_ended, end_open_shards, hand_back, insert_shards
from ragllava.jobs.states import FINAL_JOB_STATES, JobState, ShardState
from ragllava.records import AnswerStatus, FileStatus, JobKind, Progress, ReindexStatus, TaskStatus, TrainingStatus
from ragllava.stores.archives import reindex_items
from ragllava.stores.archives.reindex_items import ReindexingView
from ragllava.stores.jobs import outcomes, refreshes
from ragllava.stores.jobs.refreshes import RefreshView
from ragllava.stores.learning import trainings
from ragllava.stores.learning.trainings import TrainingView
from ragllava.stores.maintenance import tasks
from ragllava.stores.maintenance.tasks import TaskView
from ragllava.stores.schema import archives, jobs, shards

ALL_ARCHIVES = "*"  # no archive can have this name

RETRIED_STATUSES: dict[JobKind, Sequence[StrEnum]] = {
    JobKind.ANSWER: [AnswerStatus.FAILED, AnswerStatus.DEAD, AnswerStatus.CANCELLED],
    JobKind.INGEST: [FileStatus.DEAD, FileStatus.CANCELLED, FileStatus.REJECTED],
    JobKind.TRAIN: [TrainingStatus.FAILED, TrainingStatus.DEAD, TrainingStatus.CANCELLED],
    JobKind.REINDEX: [
        ReindexStatus.UNREADABLE,
        ReindexStatus.REFUSED,
        ReindexStatus.FAILED,
        ReindexStatus.DEAD,
        ReindexStatus.CANCELLED,
    ],
    JobKind.MAINTENANCE: [TaskStatus.FAILED, TaskStatus.DEAD, TaskStatus.CANCELLED],
}


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be created.

    `content_digest` covers what was asked for: it tells a repeated submit from another one under the same key.
    `archive_id` None is for maintenance tasks that concern all archives.
    `last_on` names a queue: then the last input is a shard of its own there, dispatched when all others have ended.
    """

    kind: JobKind
    archive_id: int | None
    spec: dict[str, Any]
    total: int
    per_shard: int
    priority: int = 0
    idempotency_key: str | None = None
    content_digest: str = ""
    last_on: str | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as people see it. `archive` is `*` for a maintenance task that concerns all archives.

    `training`, `reindexing` and `task` are set for train, reindex and maintenance jobs, `refresh` for an answer job
    that refreshes another.
    """

    job_id: int
    kind: JobKind
    archive: str
    state: JobState
    priority: int
    spec: dict[str, Any]
    progress: Progress
    error: str | None
    result: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    training: TrainingView | None = None
    refresh: RefreshView | None = None
    reindexing: ReindexingView | None = None
    task: TaskView | None = None

    @property
    def is_final(self) -> bool:
        """Nothing more will happen to this job by itself."""
        return self.state in FINAL_JOB_STATES

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        times = {"created_at": self.created_at, "started_at": self.started_at, "finished_at": self.finished_at}
        return {
            "job": self.job_id,
            "kind": self.kind.value,
            "archive": self.archive,
            "state": self.state.value,
            "priority": self.priority,
            "total": self.progress.total,
            "counts": self.progress.by_status,
            "error": self.error,
            "result": self.result,
            **{name: time.isoformat() if time else None for name, time in times.items()},
            **({"training": self.training.as_json()} if self.training else {}),
            **({"refresh": self.refresh.as_json()} if self.refresh else {}),
            **({"reindexing": self.reindexing.as_json()} if self.reindexing else {}),
            **({"maintenance": self.task.as_json()} if self.task else {}),
        }


@dataclass(frozen=True, slots=True)
class ShardView:
    """A shard that is not simply waiting or done: what an operator asks for first."""

    shard_id: int
    state: ShardState
    lo: int
    hi: int
    attempts: int
    worker: str | None
    error: str | None


def create(connection: Connection, new: NewJob) -> tuple[int, bool]:
    """Create the job and its shards; returns its id and whether it is new.

    With an idempotency key that exists already, nothing is created and the existing id returned; if its content
    was another one, UsageError. Of two submits at once with one key, the second waits for the first.
    """
    digest = hashlib.sha256(json.dumps([new.kind, new.archive_id, new.content_digest]).encode()).hexdigest()
    job_id = connection.scalar(
        insert(jobs)
        .values(
            kind=new.kind,
            archive_id=new.archive_id,
            state=JobState.RUNNING,
            priority=new.priority,
            spec=new.spec,
            total=new.total,
            idempotency_key=new.idempotency_key,
            spec_digest=digest,
        )
        .on_conflict_do_nothing(index_elements=["idempotency_key"])
        .returning(jobs.c.id)
    )
    if job_id is None:
        existing = connection.execute(
            select(jobs.c.id, jobs.c.spec_digest).where(jobs.c.idempotency_key == new.idempotency_key)
        ).one()
        if existing.spec_digest != digest:
            raise UsageError(
                f"idempotency key {new.idempotency_key!r} belongs to job {existing.id}, which has another content; "
                "use a new key"
            )
        return int(existing.id), False
    end = new.total - 1 if new.last_on else new.total
    bounds = [(lo, min(lo + new.per_shard, end)) for lo in range(0, end, new.per_shard)]
    insert_shards(connection, job_id, 1, bounds)
    if new.last_on:
        insert_shards(connection, job_id, 1, [(end, new.total)], queue=new.last_on, is_last=True)
    return int(job_id), True


def view(connection: Connection, job_id: int) -> JobView:
    """One job with its counts. Raises UsageError for an unknown id."""
    row = connection.execute(_select_jobs().where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise _unknown_job(job_id)
    return _as_view(connection, row)


def has_ended(connection: Connection, job_id: int) -> bool:
    """Whether nothing more will happen to a job by itself, by its row alone. Raises UsageError for an unknown id."""
    state = connection.scalar(select(jobs.c.state).where(jobs.c.id == job_id))
    if state is None:
        raise _unknown_job(job_id)
    return JobState(state) in FINAL_JOB_STATES


def find_job(connection: Connection, idempotency_key: str) -> int | None:
    """The job that was made under this key, None when there is none."""
    found: int | None = connection.scalar(select(jobs.c.id).where(jobs.c.idempotency_key == idempotency_key))
    return found


def list_jobs(connection: Connection, *, limit: int = 50, only_open: bool = False) -> list[JobView]:
    """Newest first."""
    query = _select_jobs().order_by(jobs.c.id.desc()).limit(limit)
    if only_open:
        query = query.where(jobs.c.finished_at.is_(None))
    return [_as_view(connection, row) for row in connection.execute(query).all()]


def troubled_shards(connection: Connection, job_id: int) -> list[ShardView]:
    """Shards that run, failed or are dead, with the reason."""
    rows = connection.execute(
        select(shards)
        .where(
            shards.c.job_id == job_id,
            (shards.c.error.is_not(None)) | (shards.c.state.in_([ShardState.RUNNING, ShardState.DEAD])),
            shards.c.state.not_in([ShardState.DONE, ShardState.CANCELLED]),
        )
        .order_by(shards.c.lo, shards.c.id)
    )
    return [
        ShardView(row.id, ShardState(row.state), row.lo, row.hi, row.attempts, row.worker, row.error) for row in rows
    ]


def cancel(connection: Connection, job_id: int) -> None:
    """Stop a job: what has not begun is cancelled now, what runs stops at its next sub-batch. Answers stay."""
    _move(connection, job_id, (JobState.RUNNING, JobState.PAUSED), JobState.CANCELLING, "cancelled")
    end_open_shards(connection, job_id, "cancelled", "cancelled by the user")
    close_job_if_ended(connection, job_id)


def pause(connection: Connection, job_id: int) -> None:
    """Let nothing new begin; what runs is handed back at its next sub-batch."""
    _move(connection, job_id, (JobState.RUNNING,), JobState.PAUSED, "paused")
    connection.execute(
        update(shards)
        .where(shards.c.job_id == job_id, shards.c.state == ShardState.QUEUED)
        .values(state=ShardState.PENDING, queued_at=None)
    )


def resume(connection: Connection, job_id: int) -> None:
    """Let a paused job go on."""
    _move(connection, job_id, (JobState.PAUSED,), JobState.RUNNING, "resumed")


def retry(connection: Connection, job_id: int, per_shard: int) -> int:
    """Try the failed, dead and cancelled inputs of an ended job again in a new run; returns how many there are.

    Inputs that were invalid from the start stay as they are. Earlier answers are kept under their own run. Raises
    UsageError for an unknown job, for one that has not ended, and for a training while another one of its role is open.
    """
    role = trainings.role_of(connection, job_id)
    if role is not None:
        # Before the job's row: who holds a role's lock may have to wait for a row, never the other way round.
        trainings.lock_role(connection, role)
    job = _lock_job(connection, job_id)
    if job.finished_at is None:
        raise UsageError(f"job {job_id} is {job.state}; only an ended job can be retried")
    kind = JobKind(job.kind)
    last_run = connection.scalar(select(func.max(shards.c.run_no)).where(shards.c.job_id == job_id)) or 0
    run_no = int(last_run) + 1
    numbers = outcomes.reopen(connection, kind, job_id, [str(status) for status in RETRIED_STATUSES[kind]], run_no)
    if not numbers:
        return 0
    if role is not None:
        trainings.require_none_open(connection, role)
    last = _last_shard(connection, job_id)
    others = [number for number in numbers if last is None or number != last.lo]
    chunks = [others[i : i + per_shard] for i in range(0, len(others), per_shard)]
    insert_shards(connection, job_id, run_no, [(chunk[0], chunk[-1] + 1) for chunk in chunks])
    if last is not None and len(others) < len(numbers):
        insert_shards(connection, job_id, run_no, [(last.lo, last.hi)], queue=last.queue, is_last=True)
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(state=JobState.RUNNING, finished_at=None, result=None, error=None)
    )
    return len(numbers)


def _last_shard(connection: Connection, job_id: int) -> Row[Any] | None:
    """The shard that waited for all others in the first run; None when the job has none."""
    return connection.execute(
        select(shards).where(shards.c.job_id == job_id, shards.c.is_last).order_by(shards.c.id).limit(1)
    ).one_or_none()


def jobs_without_result(connection: Connection) -> list[int]:
    """Ended jobs whose result was not written down yet, oldest first."""
    return list(
        connection.scalars(
            select(jobs.c.id).where(jobs.c.finished_at.is_not(None), jobs.c.result.is_(None)).order_by(jobs.c.id)
        )
    )


def set_result(connection: Connection, job: JobView, result: dict[str, Any]) -> None:
    """Write down the result of an ended job; `job` is what it was before the result was made.

    Of a job that was retried meanwhile it would tell of an earlier run: then there is no result, and if that run
    has ended too, the next tick makes a new one.
    """
    of_this_run = case((jobs.c.finished_at == job.finished_at, literal(result, jobs.c.result.type)))
    connection.execute(
        update(jobs).where(jobs.c.id == job.job_id, jobs.c.finished_at.is_not(None)).values(result=of_this_run)
    )


def fail_unreconciled(connection: Connection, job: JobView, problem: str) -> None:
    """What an ended job left does not add up: it has failed, whatever it ended as. Not if it was retried meanwhile."""
    if not job.is_final:
        return
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job.job_id, jobs.c.finished_at == job.finished_at)
        .values(state=JobState.FAILED, error=problem)
    )


def refuse(connection: Connection, lease: Lease, reason: str) -> None:
    """This job cannot be done as it is (its index belongs to another retriever, …): end all of it with the reason.

    Nothing happens when the lease is lost: perhaps the worker that has it now can do the job.
    """
    if not hand_back(connection, lease):
        return
    connection.execute(update(jobs).where(jobs.c.id == lease.job_id).values(error=reason))
    end_open_shards(connection, lease.job_id, "rejected" if lease.kind == JobKind.INGEST else "failed", reason)
    close_job_if_ended(connection, lease.job_id)


def _move(connection: Connection, job_id: int, allowed: tuple[JobState, ...], to: JobState, verb: str) -> None:
    job = _lock_job(connection, job_id)
    if job.state == to:
        return
    if job.state not in allowed:
        raise UsageError(f"job {job_id} is {job.state} and cannot be {verb}")
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=to))


def _lock_job(connection: Connection, job_id: int) -> Row[Any]:
    job: Row[Any] | None = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
    if job is None:
        raise _unknown_job(job_id)
    return job


def _unknown_job(job_id: int) -> UsageError:
    return UsageError(f"there is no job {job_id}; `ragllava jobs list` shows all")


def _select_jobs() -> Any:
    name = func.coalesce(archives.c.name, ALL_ARCHIVES)
    return select(jobs, name.label("archive")).outerjoin(archives, archives.c.id == jobs.c.archive_id)


def _as_view(connection: Connection, row: Row[Any]) -> JobView:
    kind = JobKind(row.kind)
    return JobView(
        job_id=row.id,
        kind=kind,
        archive=row.archive,
        state=JobState(row.state),
        priority=row.priority,
        spec=row.spec,
        progress=Progress(row.total, outcomes.count(connection, kind, row.id)),
        error=row.error,
        result=row.result,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        training=trainings.view(connection, row.id) if kind is JobKind.TRAIN else None,
        refresh=refreshes.view(connection, row.id, row.spec["refreshes"]) if "refreshes" in row.spec else None,
        reindexing=reindex_items.view(connection, row.id) if kind is JobKind.REINDEX else None,
        task=tasks.view(connection, row.id) if kind is JobKind.MAINTENANCE else None,
    )
