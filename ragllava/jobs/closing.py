"""The end of a job: its outcomes are counted, its final state is set, and the metrics and webhooks are told."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, Row, func, literal, select, text, update

from ragllava.jobs import totalling
from ragllava.jobs.kinds import Kind, kind_of
from ragllava.jobs.locking import lock_job
from ragllava.jobs.states import JobState
from ragllava.jobs.turns import has_open_shard
from ragllava.stores.database import in_transaction, read_at_once
from ragllava.stores.jobs import job_ends
from ragllava.stores.jobs.outcomes import COUNTED_AT_ONCE, Reconciliation, reconcile
from ragllava.stores.schema import jobs


def close_job_if_ended(connection: Connection, job_id: int) -> None:
    """Set the job's final state when no shard is open. The job's row is locked, so the last two cannot both miss it.

    A job of more than COUNTED_AT_ONCE inputs takes too long to count here; the next tick closes it (jobs/ending.py).
    """
    job = lock_job(connection, job_id)
    if (
        job is not None
        and job.finished_at is None
        and job.total <= COUNTED_AT_ONCE
        and not _is_open(connection, job_id)
    ):
        kind = kind_of(job.kind)
        _close(connection, job, kind, reconcile(connection, kind.inputs, job_id))


def close_ended_job(engine: Engine, job_id: int) -> bool:
    """Close a job of any size that has no open shard; returns whether it was closed.

    Nothing is locked while it is counted: without an open shard no outcome can change.
    """
    job = in_transaction(engine, _ended_job, job_id)
    if job is None:
        return False
    kind = kind_of(job.kind)
    counted = read_at_once(engine, reconcile, kind.inputs, job_id)

    def close(connection: Connection) -> bool:
        job = lock_job(connection, job_id)
        if job is None or job.finished_at is not None or _is_open(connection, job_id):
            return False
        _close(connection, job, kind, counted)
        return True

    return in_transaction(engine, close)


def _ended_job(connection: Connection, job_id: int) -> Row[Any] | None:
    job: Row[Any] | None = connection.execute(
        select(jobs).where(jobs.c.id == job_id, jobs.c.finished_at.is_(None))
    ).one_or_none()
    return None if job is None or _is_open(connection, job_id) else job


def _is_open(connection: Connection, job_id: int) -> bool:
    return bool(connection.scalar(select(has_open_shard(literal(job_id)))))


def _close(connection: Connection, job: Row[Any], kind: Kind, counted: Reconciliation) -> None:
    """A job is `completed` only if every input has an outcome and at least one is good."""
    state, error = _final_state(JobState(job.state), kind, counted)
    # The last answer may come after the limit was noticed: then nothing has expired, and the limit is no error.
    is_in_time = job.state == JobState.EXPIRING and not counted.by_status.get("expired")
    reason = error if is_in_time else func.coalesce(jobs.c.error, error)
    ended: dict[str, Any] = {"state": state, "error": reason, "finished_at": func.now()}
    ended |= {"counts": counted.by_status, "timing": job.timing or _timing(connection, job)}
    connection.execute(update(jobs).where(jobs.c.id == job.id).values(ended))
    totalling.note_job(connection, job, state, counted)
    job_ends.notify(connection, job.id)


def _timing(connection: Connection, job: Row[Any]) -> dict[str, Any]:
    """What a job has taken until its first end, for its estimate and for those of later jobs; `cut_to`: the fewest
    candidates that a limit left to one of its questions."""
    row = connection.execute(_TIMING, {"job_id": job.id}).one()
    return dict(row._mapping)


# `profile` is that of a worker of the job which is still there. By the clock of the database, as `created_at`.
_TIMING = text("""
    SELECT CAST(extract(epoch FROM now() - j.created_at) AS double precision) AS took_s,
        CAST(extract(epoch FROM j.started_at - j.created_at) AS double precision) AS waited_s,
        s.busy_s, s.cut_to, s.workers, s.profile
    FROM jobs j, (
        SELECT coalesce(sum(shards.busy_s), 0) AS busy_s, min(reranked_at_most) AS cut_to,
            count(DISTINCT worker) AS workers, max(w.versions ->> 'profile') AS profile
        FROM shards LEFT JOIN workers w ON w.name = shards.worker WHERE job_id = :job_id
    ) s WHERE j.id = :job_id
""")


def _final_state(state: JobState, kind: Kind, counted: Reconciliation) -> tuple[JobState, str | None]:
    bad = sum(number for status, number in counted.by_status.items() if status in kind.bad)
    if counted.problem is not None:
        return JobState.FAILED, counted.problem
    if state == JobState.CANCELLING:
        return JobState.CANCELLED, None
    if counted.total and bad == counted.total:
        return JobState.FAILED, "no input succeeded"
    return (JobState.COMPLETED_WITH_ERRORS if bad else JobState.COMPLETED), None
