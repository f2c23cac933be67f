"""A shard's life in Postgres: claim, heartbeat, commit behind the fence, finish, fail (docs/reliability.md D1, D2, D4).

Postgres owns the work; a Celery message only says that a shard may be ready. Every function takes a Connection inside
a transaction of the caller, uses the database's clock only, and says what it promises when several workers call it at
once. `epoch` is the fence: it grows with every claim, so a worker that lost its lease cannot write, however late it
wakes up. jobs/retry.py has the rule for failed attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
    update,
)

from ragllava.errors import LeaseLost, ShardInterrupted
from ragllava.jobs import deadlines, totalling
from ragllava.jobs.closing import close_job_if_ended
from ragllava.jobs.kinds import is_known_kind, kind_of, kinds_beside
from ragllava.jobs.locking import lock_job, lock_shard
from ragllava.jobs.retry import Limits, NextStep, backoff_s, next_step
from ragllava.jobs.states import STOPPING_JOB_STATES, JobState, ShardState, stopped_as
from ragllava.jobs.turns import has_waiting_shard
from ragllava.records import Priority
from ragllava.stores.database import equals_any, lock_rows, record, seconds
from ragllava.stores.jobs.workers import has_refused
from ragllava.stores.schema import jobs, shards, workers


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on inputs [lo, hi) of a job until the lease runs out or the epoch grows.

    `archive_id` is 0, which no archive has, for a maintenance task that concerns all archives. `is_limited`: its job
    has a deadline or a budget; `has_budget`: a budget. `trace` is where its job was asked for (ragllava/tracing.py).
    """

    shard_id: int
    job_id: int
    kind: str
    archive_id: int
    spec: dict[str, Any]
    run_no: int
    lo: int
    hi: int
    epoch: int
    worker: str
    is_planned: bool = False
    is_limited: bool = False
    has_budget: bool = False
    trace: str | None = None


def claim(connection: Connection, shard_id: int, worker: str, lease_s: float) -> Lease | None:
    """Take a queued shard of a running job. Of any number of callers exactly one gets the lease; the others None.

    A worker that has refused the job gets none either, nor one of a version that does not know its kind.
    """
    unfit = exists().where(workers.c.name == worker, has_refused(shards.c.job_id))
    # The first claim of a job also writes the job's row, so it locks that first, as everybody does.
    unstarted = select(jobs.c.id).join(shards).where(shards.c.id == shard_id, jobs.c.started_at.is_(None))
    is_first = connection.scalar(unstarted.with_for_update(of=jobs, key_share=True)) is not None
    row = connection.execute(
        update(shards)
        .where(
            shards.c.id == shard_id,
            shards.c.state == ShardState.QUEUED,
            jobs.c.id == shards.c.job_id,
            jobs.c.state == JobState.RUNNING,
            is_known_kind(),
            ~unfit,
        )
        .values(
            state=ShardState.RUNNING,
            epoch=shards.c.epoch + 1,
            attempts=shards.c.attempts + 1,
            worker=worker,
            lease_until=func.now() + seconds(lease_s),
            claimed_at=func.now(),
            not_before=None,
        )
        .returning(
            shards.c.id.label("shard_id"),
            shards,
            jobs.c.kind,
            func.coalesce(jobs.c.archive_id, 0).label("archive_id"),
            jobs.c.spec,
            jobs.c.trace,
            or_(jobs.c.deadline_at.is_not(None), jobs.c.max_gpu_s.is_not(None)).label("is_limited"),
            jobs.c.max_gpu_s.is_not(None).label("has_budget"),
        )
    ).one_or_none()
    if row is None:
        return None
    lease = record(Lease, row)
    if is_first:
        started = update(jobs).where(jobs.c.id == lease.job_id, jobs.c.started_at.is_(None))
        connection.execute(started.values(started_at=func.now()))
    return lease


def heartbeat(
    connection: Connection, lease: Lease, lease_s: float, busy_s: float = 0.0
) -> LeaseLost | ShardInterrupted | None:
    """Extend the lease if it is still ours. Returns the error to stop with, if the lease, job or worker is ending.

    `busy_s` are the seconds that the worker was busy with the shard since it reported last, by its own clock.
    """
    _spend(connection, lease, busy_s, _mine(lease))
    until, busy = func.now() + seconds(lease_s), shards.c.busy_s + busy_s
    extended = update(shards).where(*_mine(lease)).values(lease_until=until, busy_s=busy)
    if connection.execute(extended).rowcount == 0:
        return _lost(lease)
    job_state = connection.scalar(select(jobs.c.state).where(jobs.c.id == lease.job_id))
    worker_state = connection.scalar(select(workers.c.state).where(workers.c.name == lease.worker))
    return _error_of(lease, job_state, worker_state)


@dataclass(frozen=True, slots=True)
class Watched:
    """What a look at a lease has shown: the error to stop with, if any, and whether an urgent shard waits."""

    error: LeaseLost | ShardInterrupted | None
    urgent_waits: bool


def watch(connection: Connection, lease: Lease) -> Watched:
    """Look whether a lease is still ours, its job and worker go on, and no shard of an urgent job waits for a worker of
    this kind of job. Reads only."""
    given = {"shard": lease.shard_id, "epoch": lease.epoch, "worker": lease.worker}
    row = connection.execute(_look(tuple(kinds_beside(lease.kind))), given).one_or_none()
    is_ours, job_state, worker_state, waits = row or (False, None, None, False)
    return Watched(_error_of(lease, job_state, worker_state) if is_ours else _lost(lease), bool(waits))


@cache
def _look(kinds: tuple[str, ...]) -> Select[Any]:
    """The statement of `watch`, built once: it is sent four times a second, and building it takes longer than it."""
    urgent = jobs.alias("urgent")
    urgent_waits = exists().where(
        is_urgent(urgent, kinds),
        urgent.c.priority > jobs.c.priority,
        has_waiting_shard(urgent.c.id),
    )
    ours = [shards.c.epoch == bindparam("epoch"), shards.c.state == ShardState.RUNNING]
    return (
        select(and_(*ours).label("is_ours"), jobs.c.state, workers.c.state, urgent_waits)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .outerjoin(workers, workers.c.name == bindparam("worker"))
        .where(shards.c.id == bindparam("shard"))
    )


def is_urgent(job: FromClause, kinds: Sequence[str]) -> ColumnElement[bool]:
    """The condition that a job of these kinds runs and is urgent: shards of other jobs give way to its shards."""
    return and_(
        job.c.finished_at.is_(None),
        job.c.state == JobState.RUNNING,
        job.c.priority >= Priority.URGENT,
        equals_any(job.c.kind, kinds),
    )


def is_waiting(shard: FromClause) -> ColumnElement[bool]:
    """The condition that a shard waits for a worker, with or without a message."""
    is_ready = shard.c.not_before.is_(None) | (shard.c.not_before <= func.now())
    return (shard.c.state == ShardState.QUEUED) | ((shard.c.state == ShardState.PENDING) & is_ready)


def count_attempt(connection: Connection, lease: Lease, by: int) -> None:
    """Add to the attempts of the shard, if the lease is still ours: -1 while its worker works on another shard, which
    may kill it, and 1 afterwards."""
    connection.execute(update(shards).where(*_mine(lease)).values(attempts=shards.c.attempts + by))


def fence(connection: Connection, lease: Lease, lease_s: float) -> None:
    """Call first in every transaction that writes results: locks the shard's row, or raises LeaseLost."""
    error = heartbeat(connection, lease, lease_s)
    if isinstance(error, LeaseLost):
        raise error


def reset_attempts(connection: Connection, lease: Lease) -> None:
    """The shard made progress: earlier attempts are not counted against it any more."""
    connection.execute(update(shards).where(*_mine(lease)).values(attempts=1, transient_attempts=0))


def note_busy(connection: Connection, lease: Lease, busy_s: float) -> bool:
    """Add what a worker was busy with the shard since it reported last, unless another one has claimed it. Returns
    whether its job stops because that was its budget."""
    same = (shards.c.id == lease.shard_id, shards.c.epoch == lease.epoch)
    is_used_up = _spend(connection, lease, busy_s, same)
    connection.execute(update(shards).where(*same).values(busy_s=shards.c.busy_s + busy_s))
    return is_used_up


def _spend(connection: Connection, lease: Lease, busy_s: float, ours: Sequence[ColumnElement[bool]]) -> bool:
    """Add to what a job with a budget has used, if the shard's row will show it too. The job's row is locked before the
    shard's, and while it is locked, nobody takes the shard from its worker.

    The job stops in the same transaction when that was its budget: no worker claims one more of its shards. Returns
    whether it does.
    """
    if lease.has_budget and busy_s > 0:
        lock_job(connection, lease.job_id)  # in a statement of its own: the next one sees who took the shard before it
        spent = update(jobs).where(jobs.c.id == lease.job_id, exists().where(*ours))
        used_up = spent.values(busy_s=jobs.c.busy_s + busy_s).returning(jobs.c.busy_s >= jobs.c.max_gpu_s)
        if connection.scalar(used_up):
            return deadlines.expire_if_due(connection, lease.job_id)
    return False


def note_depth(connection: Connection, lease: Lease, candidates: int) -> None:
    """Note that a limit of the job cut the candidates that are reranked for a question of this shard to so many."""
    least = func.least(shards.c.reranked_at_most, candidates)
    connection.execute(update(shards).where(*_mine(lease)).values(reranked_at_most=least))


def finish(connection: Connection, lease: Lease, busy_s: float = 0.0) -> bool:
    """Mark the shard done; the last one closes the job. Nothing is left to do when its stage has split it.

    `busy_s` as in `heartbeat`. Returns whether the job stops: then jobs/ending.py ends what waits of it. Raises
    LeaseLost when the lease is not ours any more.
    """
    job = lock_job(connection, lease.job_id)
    is_stopping = note_busy(connection, lease, busy_s) or (job is not None and job.state in STOPPING_JOB_STATES)
    worked_s = func.extract("epoch", func.now() - shards.c.claimed_at)
    done = update(shards).where(*_mine(lease)).values(_ended(ShardState.DONE, None))
    row = connection.execute(done.returning(worked_s)).one_or_none()
    if row is None:
        shard = connection.execute(select(shards.c.state, shards.c.epoch).where(shards.c.id == lease.shard_id)).one()
        if shard == (ShardState.SPLIT, lease.epoch):
            return is_stopping
        raise LeaseLost(f"shard {lease.shard_id}: epoch {lease.epoch} is over; its result is dropped")
    if row[0] is not None:  # None: an earlier version claimed it
        totalling.note_shard(connection, lease.kind, float(row[0]))
    close_job_if_ended(connection, lease.job_id)
    return is_stopping


def split(connection: Connection, lease: Lease, bounds: list[tuple[int, int]]) -> None:
    """Replace the shard by planned shards over its open inputs; call it behind the fence."""
    insert_shards(connection, lease.job_id, lease.run_no, bounds, is_planned=True)
    mark_ended(connection, ShardState.SPLIT, None, shards.c.id == lease.shard_id)


def hand_back(connection: Connection, lease: Lease) -> bool:
    """Give back what is not finished; the attempt is not counted. False when the lease is lost."""
    row = lock_shard(connection, lease.job_id, *_mine(lease))
    if row is None:
        return False
    if row.job_state in STOPPING_JOB_STATES:
        _end(connection, row, ShardState.CANCELLED, *stopped_as(row.job_state, row.job_error))
        close_job_if_ended(connection, row.job_id)
    else:
        _requeue(connection, row, attempts=max(0, row.attempts - 1), error=None)
    return True


def fail(connection: Connection, lease: Lease, error: str, limits: Limits, *, is_transient: bool = False) -> None:
    """The attempt failed. `is_transient`: a service did not answer. Nothing happens when the lease is lost."""
    row = lock_shard(connection, lease.job_id, *_mine(lease))
    if row is not None:
        settle(connection, row, error, limits, is_transient=is_transient)


def expire(connection: Connection, worker: str, shard_id: int | None = None) -> None:
    """End the lease of a child process that its parent saw die, or all leases of the worker if no shard is named, so
    that the next tick reaps the shards."""
    running = [shards.c.worker == worker, shards.c.state == ShardState.RUNNING]
    if shard_id is not None:
        running.append(shards.c.id == shard_id)
    open_jobs = select(jobs.c.id).where(jobs.c.finished_at.is_(None))
    running.append(shards.c.job_id.in_(open_jobs))
    lock_rows(connection, shards, *running, key_share=True)
    connection.execute(update(shards).where(*running).values(lease_until=func.now()))


def settle(
    connection: Connection,
    row: Row[Any],
    error: str,
    limits: Limits,
    *,
    is_transient: bool = False,
    is_lost: bool = False,
) -> None:
    """Do with a shard whose attempt failed what jobs/retry.py says; its row must be locked by `lock_shard`."""
    numbers = kind_of(row.kind).inputs.open_numbers(connection, row.job_id, row.run_no, row.lo, row.hi)
    # Inputs were finished since the last failure: what came before says nothing about those that are open.
    has_progressed = row.open_inputs is not None and len(numbers) < row.open_inputs
    attempts = min(row.attempts, 1) if has_progressed else row.attempts
    transient_attempts = 0 if has_progressed else row.transient_attempts
    match next_step(
        limits,
        attempts=attempts,
        transient_attempts=transient_attempts,
        open_inputs=len(numbers),
        is_transient=is_transient,
        is_lost=is_lost,
        is_cancelled=row.job_state in STOPPING_JOB_STATES,
    ):
        case NextStep.WAIT:
            _requeue(
                connection,
                row,
                attempts=max(0, attempts - 1),
                transient_attempts=transient_attempts + 1,
                open_inputs=len(numbers),
                not_before=func.now() + seconds(backoff_s(limits, transient_attempts)),
                error=error,
            )
            return
        case NextStep.TRY_AGAIN:
            _requeue(connection, row, attempts=attempts, open_inputs=len(numbers), error=error)
            return
        case NextStep.SPLIT:
            middle = numbers[len(numbers) // 2]
            halves = [(numbers[0], middle), (middle, numbers[-1] + 1)]
            insert_shards(connection, row.job_id, row.run_no, halves, is_planned=row.is_planned)
            mark_ended(connection, ShardState.SPLIT, error, shards.c.id == row.id)
        case NextStep.GIVE_UP:
            _end(connection, row, ShardState.DEAD, "dead", f"given up after {attempts} attempts: {error}")
        case NextStep.CANCEL:
            _end(connection, row, ShardState.CANCELLED, *stopped_as(row.job_state, row.job_error))
        case NextStep.FINISH:
            mark_ended(connection, ShardState.DONE, None, shards.c.id == row.id)
    close_job_if_ended(connection, row.job_id)


def unqueue(connection: Connection, *conditions: ColumnElement[bool]) -> int:
    """Set queued shards that meet the conditions back to pending; returns how many."""
    is_queued = shards.c.state == ShardState.QUEUED
    pending = {"state": ShardState.PENDING, "queued_at": None}
    lock_rows(connection, shards, is_queued, *conditions, key_share=True)
    return connection.execute(update(shards).where(is_queued, *conditions).values(pending)).rowcount


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


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"shard {lease.shard_id}: epoch {lease.epoch} is over; another worker owns it")


def _error_of(lease: Lease, job_state: str | None, worker_state: str | None) -> ShardInterrupted | None:
    if worker_state == "draining" or job_state != JobState.RUNNING:
        return ShardInterrupted(f"shard {lease.shard_id}: what is left is handed back")
    return None


def _mine(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return (shards.c.id == lease.shard_id, shards.c.epoch == lease.epoch, shards.c.state == ShardState.RUNNING)


def _requeue(connection: Connection, row: Row[Any], **values: Any) -> None:
    pending = {"state": ShardState.PENDING, "lease_until": None, "queued_at": None, "not_before": None, **values}
    connection.execute(update(shards).where(shards.c.id == row.id).values(pending))


def _end(connection: Connection, row: Row[Any], state: ShardState, status: str, reason: str) -> None:
    kind_of(row.kind).inputs.end(connection, row.job_id, row.run_no, row.lo, row.hi, status, reason)
    mark_ended(connection, state, reason, shards.c.id == row.id)


def mark_ended(connection: Connection, state: ShardState, error: str | None, *conditions: ColumnElement[bool]) -> bool:
    """End the shards that meet the conditions; False when there are none."""
    return connection.execute(update(shards).where(*conditions).values(_ended(state, error))).rowcount > 0


def _ended(state: ShardState, error: str | None) -> dict[str, Any]:
    return {"state": state, "error": error, "lease_until": None, "finished_at": func.now()}
