"""One shard's life in Postgres: claim, heartbeat, commit under the fence, finish, fail
(docs/reliability.md D1, D2, D4, D5).

Postgres owns the work; a Celery message is only a hint that a shard may be ready. Every function takes a
Connection inside a transaction of the caller, uses the database's clock only, and says what it promises when
several workers call it at once. `epoch` is the fence: it grows with every claim, so a worker that lost its lease
cannot write, however late it wakes up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Interval, Row, func, select, update

from ragllava.errors import LeaseLost
from ragllava.jobs.states import OPEN_SHARD_STATES, JobState, ShardState
from ragllava.records import AnswerStatus, FileStatus, JobKind, ReindexStatus, TaskStatus, TrainingStatus
from ragllava.stores.jobs import job_ends, outcomes
from ragllava.stores.jobs.outcomes import Reconciliation
from ragllava.stores.schema import jobs, shards, workers

MAX_BACKOFF_S = 60.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on inputs [lo, hi) of a job until the lease runs out or the epoch grows.

    `archive_id` is 0, which no archive has, for a maintenance task that concerns all archives.
    """

    shard_id: int
    job_id: int
    kind: JobKind
    archive_id: int
    spec: dict[str, Any]
    run_no: int
    lo: int
    hi: int
    epoch: int
    worker: str
    is_planned: bool = False


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat learned. `stop` asks the worker to hand the rest of its shard back at the next step."""

    alive: bool
    stop: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a shard may fail before it is halved, or dead when it holds one input only (docs/reliability.md D5)."""

    max_attempts: int
    max_transient_attempts: int
    backoff_s: float


def seconds(value: float) -> Any:
    """An SQL interval of so many seconds."""
    return func.make_interval(0, 0, 0, 0, 0, 0, value, type_=Interval)


def claim(connection: Connection, shard_id: int, worker: str, lease_s: float) -> Lease | None:
    """Take a queued shard of a running job. Of any number of callers exactly one gets the lease; the others None."""
    row = connection.execute(
        update(shards)
        .where(
            shards.c.id == shard_id,
            shards.c.state == ShardState.QUEUED,
            jobs.c.id == shards.c.job_id,
            jobs.c.state == JobState.RUNNING,
        )
        .values(
            state=ShardState.RUNNING,
            epoch=shards.c.epoch + 1,
            attempts=shards.c.attempts + 1,
            worker=worker,
            lease_until=func.now() + seconds(lease_s),
            not_before=None,
        )
        .returning(
            shards.c.id,
            shards.c.job_id,
            shards.c.run_no,
            shards.c.lo,
            shards.c.hi,
            shards.c.epoch,
            shards.c.is_planned,
            jobs.c.kind,
            jobs.c.archive_id,
            jobs.c.spec,
        )
    ).one_or_none()
    if row is None:
        return None
    connection.execute(
        update(jobs).where(jobs.c.id == row.job_id, jobs.c.started_at.is_(None)).values(started_at=func.now())
    )
    return Lease(
        shard_id=row.id,
        job_id=row.job_id,
        kind=JobKind(row.kind),
        archive_id=row.archive_id or 0,
        spec=row.spec,
        run_no=row.run_no,
        lo=row.lo,
        hi=row.hi,
        epoch=row.epoch,
        worker=worker,
        is_planned=row.is_planned,
    )


def heartbeat(connection: Connection, lease: Lease, lease_s: float) -> Beat:
    """Extend the lease if it is still ours, and learn whether job or worker are being stopped."""
    held = connection.execute(
        update(shards).where(*_mine(lease)).values(lease_until=func.now() + seconds(lease_s)).returning(shards.c.id)
    ).one_or_none()
    if held is None:
        return Beat(alive=False, stop=True)
    job_state = connection.scalar(select(jobs.c.state).where(jobs.c.id == lease.job_id))
    draining = connection.scalar(select(workers.c.state).where(workers.c.name == lease.worker)) == "draining"
    return Beat(alive=True, stop=draining or job_state != JobState.RUNNING)


def fence(connection: Connection, lease: Lease, lease_s: float) -> None:
    """Call first in every transaction that writes results: locks the shard's row, or raises LeaseLost."""
    if not heartbeat(connection, lease, lease_s).alive:
        raise LeaseLost(f"shard {lease.shard_id}: epoch {lease.epoch} is over; another worker owns it")


def reset_attempts(connection: Connection, lease: Lease) -> None:
    """The shard got on: attempts before this one were not poison, and are not counted against it any more."""
    connection.execute(update(shards).where(*_mine(lease)).values(attempts=1))


def finish(connection: Connection, lease: Lease) -> None:
    """Mark the shard done; the last one closes the job. Nothing is left to do when its stage has split it.

    Raises LeaseLost when the lease is not ours any more.
    """
    row = connection.execute(
        update(shards)
        .where(*_mine(lease))
        .values(state=ShardState.DONE, lease_until=None, finished_at=func.now(), error=None)
        .returning(shards.c.id)
    ).one_or_none()
    if row is None:
        left = connection.execute(select(shards.c.state, shards.c.epoch).where(shards.c.id == lease.shard_id)).one()
        if left == (ShardState.SPLIT, lease.epoch):
            return
        raise LeaseLost(f"shard {lease.shard_id}: epoch {lease.epoch} is over; its result is dropped")
    close_job_if_ended(connection, lease.job_id)


def split(connection: Connection, lease: Lease, bounds: list[tuple[int, int]]) -> None:
    """Let the open inputs of the shard be worked on as planned shards; call it behind the fence."""
    insert_shards(connection, lease.job_id, lease.run_no, bounds, is_planned=True)
    _mark(connection, lease.shard_id, ShardState.SPLIT, None)


def hand_back(connection: Connection, lease: Lease) -> bool:
    """Give the unfinished rest back: nobody's fault, so the attempt is not counted. False when the lease is lost."""
    row = _lock(connection, lease)
    if row is None:
        return False
    if row.job_state == JobState.CANCELLING:
        _end(connection, row, ShardState.CANCELLED, "cancelled", "cancelled by the user")
        close_job_if_ended(connection, lease.job_id)
    else:
        _requeue(connection, row, attempts=row.attempts - 1, error=None, delay_s=0.0)
    return True


def fail_transient(connection: Connection, lease: Lease, error: str, limits: Limits) -> None:
    """A service did not answer: try again later, with a growing delay, and do not blame the inputs yet."""
    row = _lock(connection, lease)
    if row is None:
        return
    if row.transient_attempts + 1 >= limits.max_transient_attempts:
        settle(connection, row, error, limits)
        return
    delay_s = min(MAX_BACKOFF_S, limits.backoff_s * 2**row.transient_attempts)
    _requeue(connection, row, attempts=row.attempts - 1, error=error, delay_s=delay_s)
    connection.execute(
        update(shards).where(shards.c.id == row.id).values(transient_attempts=shards.c.transient_attempts + 1)
    )


def fail(connection: Connection, lease: Lease, error: str, limits: Limits) -> None:
    """The stage raised something that nobody expected: one attempt is used up."""
    row = _lock(connection, lease)
    if row is not None:
        settle(connection, row, error, limits)


def expire(connection: Connection, shard_id: int, worker: str) -> None:
    """A worker's parent saw its child die: let the sweep have the shard now instead of after the lease."""
    connection.execute(
        update(shards)
        .where(shards.c.id == shard_id, shards.c.worker == worker, shards.c.state == ShardState.RUNNING)
        .values(lease_until=func.now())
    )


def settle(connection: Connection, row: Row[Any], error: str, limits: Limits) -> None:
    """Decide about a shard whose attempt failed; its row must be locked by the caller.

    Below the limit it is tried again whole. At the limit, several unfinished inputs are halved, so that one
    poisonous input ends alone, and a single one is dead (docs/reliability.md D5).
    """
    kind = JobKind(row.kind)
    open_inputs = outcomes.open_inputs(connection, kind, row.job_id, row.run_no, row.lo, row.hi)
    if row.job_state == JobState.CANCELLING:
        _end(connection, row, ShardState.CANCELLED, "cancelled", "cancelled by the user")
    elif not open_inputs:
        _mark(connection, row.id, ShardState.DONE, None)
    elif row.attempts < limits.max_attempts:
        _requeue(connection, row, attempts=row.attempts, error=error, delay_s=0.0)
        return
    elif len(open_inputs) == 1:
        reason = f"given up after {row.attempts} attempts: {error}"
        _end(connection, row, ShardState.DEAD, "dead", reason)
    else:
        middle = open_inputs[len(open_inputs) // 2]
        halves = [(open_inputs[0], middle), (middle, open_inputs[-1] + 1)]
        insert_shards(connection, row.job_id, row.run_no, halves, is_planned=row.is_planned)
        _mark(connection, row.id, ShardState.SPLIT, error)
    close_job_if_ended(connection, row.job_id)


def insert_shards(
    connection: Connection,
    job_id: int,
    run_no: int,
    bounds: list[tuple[int, int]],
    *,
    queue: str | None = None,
    is_last: bool = False,
    is_planned: bool = False,
) -> None:
    """New pending shards over [lo, hi) ranges.

    `queue` None is the one of the job's kind. A last shard is dispatched when all others of its job have ended. A
    planned one is small enough for its stage.
    """
    if bounds:
        common = {"job_id": job_id, "run_no": run_no, "state": ShardState.PENDING, "queue": queue}
        common |= {"is_last": is_last, "is_planned": is_planned}
        connection.execute(shards.insert(), [common | {"lo": lo, "hi": hi} for lo, hi in bounds])


def lock_shards(connection: Connection, *conditions: Any) -> list[Row[Any]]:
    """Shards of open jobs that meet the conditions, locked; those that others hold are left out."""
    return list(
        connection.execute(
            select(shards, jobs.c.kind, jobs.c.state.label("job_state"))
            .join(jobs, jobs.c.id == shards.c.job_id)
            .where(jobs.c.finished_at.is_(None), *conditions)
            .order_by(shards.c.id)
            .with_for_update(of=shards, skip_locked=True)
        )
    )


def close_job_if_ended(connection: Connection, job_id: int) -> None:
    """Set the job's final state when no shard is open. The job's row is locked, so the last two cannot both miss it.

    A job is `completed` only if every input has an outcome and at least one is good.
    """
    job = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).one()
    if job.finished_at is not None:
        return
    still_open = connection.scalar(
        select(func.count()).select_from(shards).where(shards.c.job_id == job_id, shards.c.state.in_(OPEN_SHARD_STATES))
    )
    if still_open:
        return
    state, error = _final_state(JobState(job.state), outcomes.reconcile(connection, JobKind(job.kind), job_id))
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(state=state, error=func.coalesce(jobs.c.error, error), finished_at=func.now())
    )
    job_ends.tell(connection, job_id)


def end_open_shards(connection: Connection, job_id: int, status: str, reason: str) -> None:
    """Cancel a job's pending and queued shards; their open inputs get the outcome. Running ones stop by themselves."""
    for row in lock_shards(
        connection,
        shards.c.job_id == job_id,
        shards.c.state.in_([ShardState.PENDING, ShardState.QUEUED]),
    ):
        _end(connection, row, ShardState.CANCELLED, status, reason)


def _final_state(state: JobState, counted: Reconciliation) -> tuple[JobState, str | None]:
    bad_states = {AnswerStatus.FAILED, AnswerStatus.DEAD, FileStatus.REJECTED, FileStatus.DEAD}
    bad_states |= {TrainingStatus.FAILED, TrainingStatus.DEAD, TaskStatus.FAILED, TaskStatus.DEAD}
    bad_states |= {ReindexStatus.UNREADABLE, ReindexStatus.FAILED, ReindexStatus.DEAD}
    bad = sum(number for status, number in counted.by_status.items() if status in bad_states)
    if counted.problem is not None:
        return JobState.FAILED, counted.problem
    if state == JobState.CANCELLING:
        return JobState.CANCELLED, None
    if counted.total and bad == counted.total:
        return JobState.FAILED, "no input succeeded"
    return (JobState.COMPLETED_WITH_ERRORS if bad else JobState.COMPLETED), None


def _mine(lease: Lease) -> tuple[Any, ...]:
    return (
        shards.c.id == lease.shard_id,
        shards.c.epoch == lease.epoch,
        shards.c.state == ShardState.RUNNING,
    )


def _lock(connection: Connection, lease: Lease) -> Row[Any] | None:
    return connection.execute(
        select(shards, jobs.c.kind, jobs.c.state.label("job_state"))
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(*_mine(lease))
        .with_for_update(of=shards)
    ).one_or_none()


def _requeue(connection: Connection, row: Row[Any], *, attempts: int, error: str | None, delay_s: float) -> None:
    connection.execute(
        update(shards)
        .where(shards.c.id == row.id)
        .values(
            state=ShardState.PENDING,
            attempts=max(0, attempts),
            lease_until=None,
            queued_at=None,
            not_before=func.now() + seconds(delay_s) if delay_s else None,
            error=error,
        )
    )


def _end(connection: Connection, row: Row[Any], state: ShardState, status: str, reason: str) -> None:
    outcomes.write_terminal(connection, JobKind(row.kind), row.job_id, row.run_no, (row.lo, row.hi), status, reason)
    _mark(connection, row.id, state, reason)


def _mark(connection: Connection, shard_id: int, state: ShardState, error: str | None) -> None:
    connection.execute(
        update(shards)
        .where(shards.c.id == shard_id)
        .values(state=state, error=error, lease_until=None, finished_at=func.now())
    )
