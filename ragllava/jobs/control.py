"""What people do with jobs: create, cancel, pause, resume, retry; and what becomes of a job that nobody can do."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, case, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from ragllava import tracing
from ragllava.errors import Conflict, KeyReused
from ragllava.jobs import totalling
from ragllava.jobs.closing import close_job_if_ended
from ragllava.jobs.deadlines import NO_LIMITS, JobLimits
from ragllava.jobs.kinds import kind_of
from ragllava.jobs.locking import lock_job
from ragllava.jobs.queue import Lease, hand_back, insert_shards, unqueue
from ragllava.jobs.states import JobState, ShardState
from ragllava.jobs.stopping import ENDED_AT_ONCE, end_waiting_shards, stop_waiting_shards
from ragllava.jobs.views import JobView, unknown_job
from ragllava.settings import Settings
from ragllava.stores.access.usage import require_room
from ragllava.stores.database import seconds
from ragllava.stores.jobs import workers
from ragllava.stores.schema import jobs, shards
from ragllava.stores.schema import workers as workers_table
from ragllava.stores.sessions import OWNER


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be created.

    `content_digest` covers what was asked for: it distinguishes a repeated submit from another one under the same key.
    `archive_id` None is for maintenance tasks that concern all archives.
    `last_on` names a queue: then the last input is a shard of its own there, dispatched when all others have ended.
    `name` is what a person calls it. `estimate` is what is expected of it, as JSON.
    """

    kind: str
    archive_id: int | None
    spec: dict[str, Any]
    total: int
    per_shard: int
    priority: int = 0
    idempotency_key: str | None = None
    content_digest: str = ""
    last_on: str | None = None
    name: str | None = None
    limits: JobLimits = NO_LIMITS
    estimate: dict[str, Any] | None = None


def create(connection: Connection, new: NewJob) -> tuple[int, bool]:
    """Create the job and its shards; returns its id and whether it is new.

    Raises QuotaExceeded if the session's caller may have no more jobs open. With an idempotency key that exists
    already, nothing is created and the existing id returned; UsageError if that job has another content. Of two
    submits at once with the same key, the second waits for the first. ValueError for limits of a kind whose inputs
    cannot expire.
    """
    if new.limits != NO_LIMITS and "expired" not in list(kind_of(new.kind).statuses):
        raise ValueError(f"a job of the kind {new.kind} has no limits: its inputs cannot expire")
    digest = hashlib.sha256(json.dumps([new.kind, new.archive_id, new.content_digest]).encode()).hexdigest()
    same_columns = ("kind", "archive_id", "priority", "spec", "total", "idempotency_key", "name")
    row = {name: getattr(new, name) for name in same_columns} | {"state": JobState.RUNNING, "spec_digest": digest}
    row |= {"estimate": new.estimate, "max_gpu_s": new.limits.max_gpu_s, "deadline_at": new.limits.at}
    if new.limits.within_s is not None:
        row["deadline_at"] = func.now() + seconds(new.limits.within_s)
    row["trace"] = tracing.context()
    row["owner"] = func.nullif(func.current_setting(OWNER, True), "")
    created = insert(jobs).values(row).on_conflict_do_nothing(index_elements=["idempotency_key"]).returning(jobs.c.id)
    job_id = connection.scalar(created)
    if job_id is None:
        of_key = select(jobs.c.id, jobs.c.spec_digest).where(jobs.c.idempotency_key == new.idempotency_key)
        existing = connection.execute(of_key).one()
        if existing.spec_digest != digest:
            raise KeyReused(
                f"idempotency key {new.idempotency_key!r} belongs to job {existing.id}, which has another content; "
                "use a new key"
            )
        return int(existing.id), False
    end = new.total - 1 if new.last_on else new.total
    bounds = [(lo, min(lo + new.per_shard, end)) for lo in range(0, end, new.per_shard)]
    insert_shards(connection, job_id, 1, bounds)
    if new.last_on:
        insert_shards(connection, job_id, 1, [(end, new.total)], queue=new.last_on, is_last=True)
    require_room(connection)
    return int(job_id), True


def cancel(connection: Connection, job_id: int) -> None:
    """Stop a job: its running shards stop at their next sub-batch. Outcomes stay.

    The waiting shards of a small job are cancelled now; those of a large one by `end_job` (jobs/ending.py), after the
    commit: the job's row must not be locked meanwhile.
    """
    total = _move(connection, job_id, (JobState.RUNNING, JobState.PAUSED), JobState.CANCELLING, "cancelled")
    if total <= ENDED_AT_ONCE:
        while stop_waiting_shards(connection, job_id):
            pass
        close_job_if_ended(connection, job_id)


def pause(connection: Connection, job_id: int) -> None:
    """Stop dispatching shards of a job; running ones are handed back at their next sub-batch."""
    _move(connection, job_id, (JobState.RUNNING,), JobState.PAUSED, "paused")
    unqueue(connection, shards.c.job_id == job_id)


def resume(connection: Connection, job_id: int) -> None:
    """Continue a paused job."""
    _move(connection, job_id, (JobState.PAUSED,), JobState.RUNNING, "resumed")


def retry(connection: Connection, job_id: int, per_shard: int) -> int:
    """Try the failed, dead, expired and cancelled inputs of an ended job again in a new run; returns how many there
    are.

    Inputs that were invalid from the start stay as they are. Earlier answers are kept under their own run. The new run
    has no deadline and no budget. Raises UsageError for an unknown job, for one that has not ended, and for a training
    while another one of its role is open.
    """
    name = connection.scalar(select(jobs.c.kind).where(jobs.c.id == job_id))
    if name is None:
        raise unknown_job(job_id)
    kind = kind_of(name)
    if kind.guard_retry is not None:
        kind.guard_retry(connection, job_id)
    workers.forget_refusals(connection, job_id)  # workers before the job, as they are locked when one refuses it
    job = _locked(connection, job_id)
    if job.finished_at is None:
        raise Conflict(f"job {job_id} is {job.state}; only an ended job can be retried")
    last_run = connection.execute(select(func.max(shards.c.run_no)).where(shards.c.job_id == job_id)).scalar_one()
    run_no = (last_run or 0) + 1
    numbers = kind.inputs.reopen(connection, job_id, run_no, kind.retried)
    if not numbers:
        return 0
    last = connection.execute(  # the shard that waited for all others in the first run, if the job has one
        select(shards).where(shards.c.job_id == job_id, shards.c.is_last).order_by(shards.c.id).limit(1)
    ).one_or_none()
    others = [number for number in numbers if last is None or number != last.lo]
    chunks = [others[i : i + per_shard] for i in range(0, len(others), per_shard)]
    insert_shards(connection, job_id, run_no, [(chunk[0], chunk[-1] + 1) for chunk in chunks])
    if last is not None and len(others) < len(numbers):
        insert_shards(connection, job_id, run_no, [(last.lo, last.hi)], queue=last.queue, is_last=True)
    nothing = dict.fromkeys(("finished_at", "result", "counts", "error", "deadline_at", "max_gpu_s"))
    reopened = nothing | {"state": JobState.RUNNING, "counted": totalling.counted_so_far(job)}
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(reopened))
    require_room(connection)
    return len(numbers)


def set_result(connection: Connection, job: JobView, result: dict[str, Any]) -> None:
    """Store the result of an ended job; `job` is what it was before the result was made.

    If the job was retried meanwhile, the result belongs to an earlier run: then none is stored, and if the new run has
    ended too, the next tick makes a new one.
    """
    of_this_run = case((jobs.c.finished_at == job.finished_at, literal(result, jobs.c.result.type)))
    ended = update(jobs).where(jobs.c.id == job.job_id, jobs.c.finished_at.is_not(None))
    connection.execute(ended.values(result=of_this_run))


def fail_unreconciled(connection: Connection, job: JobView, problem: str) -> None:
    """Set an ended job whose counts do not add up to `failed`, unless it was retried meanwhile."""
    if job.is_final:
        same_run = update(jobs).where(jobs.c.id == job.job_id, jobs.c.finished_at == job.finished_at)
        connection.execute(same_run.values(state=JobState.FAILED, error=problem))


@dataclass(frozen=True, slots=True)
class Refused:
    """A job whose shard was passed on; `has_ended`: no other worker can do it."""

    job_id: int
    kind: str
    reason: str
    has_ended: bool


def refuse(connection: Connection, lease: Lease, reason: str, settings: Settings) -> bool:
    """A worker cannot do a job (its index belongs to another retriever, …): leave the job to the other workers.

    The shard is handed back, and this worker claims none of the job any more. When no other live worker is left that
    may be able to do it, the job ends with the reason. Nothing happens when the lease is lost. Returns whether the job
    ends; the waiting shards of a large one are left to `end_refused` (jobs/ending.py), after the commit.
    """
    if not hand_back(connection, lease):
        return False
    is_worker = workers.note_refusal(connection, lease.worker, lease.job_id, reason)
    if is_worker and _can_anyone_else(connection, lease.job_id, lease.shard_id, settings):
        return False
    _refuse_job(connection, lease.job_id, lease.kind, reason)
    return True


def pass_on(connection: Connection, shard_id: int, worker: str, settings: Settings) -> Refused | None:
    """The part of `ending.pass_on` that is one transaction; None if the worker has not refused the shard's job."""
    row = connection.execute(
        select(shards.c.job_id, jobs.c.kind, workers_table.c.refused)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .join(workers_table, workers_table.c.name == worker)
        .where(shards.c.id == shard_id, shards.c.state == ShardState.QUEUED, workers.has_refused(shards.c.job_id))
    ).one_or_none()
    if row is None:
        return None
    reason = row.refused[str(row.job_id)]
    has_ended = not _can_anyone_else(connection, row.job_id, shard_id, settings)
    if has_ended:
        lock_job(connection, row.job_id)
        _refuse_job(connection, row.job_id, row.kind, reason)
    else:
        unqueue(connection, shards.c.id == shard_id)
    return Refused(row.job_id, row.kind, reason, has_ended)


def _can_anyone_else(connection: Connection, job_id: int, shard_id: int, settings: Settings) -> bool:
    """Whether another worker may do the job, or one that was seen lately and may return."""
    query = select(jobs.c.kind, shards.c.queue).join(shards).where(shards.c.id == shard_id)
    row = connection.execute(query).one()
    within_s = max(3 * settings.tick_s, settings.lease_s)
    return workers.can_anyone_else(connection, job_id, row.queue or kind_of(row.kind).queue, within_s)


def _refuse_job(connection: Connection, job_id: int, kind: str, reason: str) -> None:
    refused = update(jobs).where(jobs.c.id == job_id).values(error=reason)
    if connection.execute(refused.returning(jobs.c.total)).scalar_one() <= ENDED_AT_ONCE:
        while end_waiting_shards(connection, job_id, kind_of(kind).refused, reason):
            pass
        close_job_if_ended(connection, job_id)


def _move(connection: Connection, job_id: int, allowed: tuple[JobState, ...], to: JobState, verb: str) -> int:
    """Set the job's state, unless it has it already; returns the number of its inputs."""
    job = _locked(connection, job_id)
    if job.state != to:
        if job.state not in allowed:
            raise Conflict(f"job {job_id} is {job.state} and cannot be {verb}")
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=to))
    return int(job.total)


def _locked(connection: Connection, job_id: int) -> Row[Any]:
    job = lock_job(connection, job_id)
    if job is None:
        raise unknown_job(job_id)
    return job
