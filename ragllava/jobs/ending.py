"""The ends of jobs that are too large for one transaction: cancelled in parts, counted without a lock, then closed.

`cancel` in the client does it at once; the tick does what a crash, or a job's size, has left.
"""

from __future__ import annotations

import logging
import time

from sqlalchemy import Connection, Engine, select

from ragllava.jobs import closing, control, queue
from ragllava.jobs.kinds import is_known_kind, kind_of
from ragllava.jobs.states import JobState
from ragllava.jobs.turns import has_open_shard
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction, read_at_once
from ragllava.stores.schema import jobs

log = logging.getLogger(__name__)


def end_jobs(engine: Engine) -> int:
    """End the waiting shards of cancelled jobs, and close the jobs without an open shard; returns how many were closed.

    One job whose end fails does not hold up the others; the next tick tries it again.
    """
    closed = 0
    for job_id in read_at_once(engine, _ending_jobs):
        try:
            closed += end_job(engine, job_id)
        except Exception:
            log.exception("the job could not be ended", extra={"action": "job_not_ended", "job": job_id})
    return closed


def end_job(engine: Engine, job_id: int, most_s: float = 60.0) -> bool:
    """Cancel the waiting shards of a job if it was cancelled, for about `most_s` seconds at most; close it if no shard
    is open. Returns whether it was closed.

    Any number may do this at once, for the same job too.
    """
    until = time.monotonic() + most_s
    while in_transaction(engine, _end_some, job_id):
        if time.monotonic() > until:
            return False
    return closing.close_ended_job(engine, job_id)


def pass_on(engine: Engine, shard_id: int, worker: str, settings: Settings) -> bool:
    """Give back a queued shard whose message has reached a worker that has refused its job; True if that is so.

    The shard is pending again at once. When no other live worker is left, the job ends with the reason.
    """
    refused = in_transaction(engine, control.pass_on, shard_id, worker, settings)
    if refused is not None and refused.has_ended:
        end_refused(engine, refused.job_id, refused.kind, refused.reason)
    return refused is not None


def end_refused(engine: Engine, job_id: int, kind: str, reason: str) -> None:
    """End the waiting shards of a job that was refused, and close it if no shard is open.

    If this is interrupted, the next worker that claims a shard of the job refuses it again.
    """
    status = kind_of(kind).refused
    while in_transaction(engine, queue.end_waiting_shards, job_id, status, reason):
        pass
    closing.close_ended_job(engine, job_id)


def _end_some(connection: Connection, job_id: int) -> bool:
    state = connection.scalar(select(jobs.c.state).where(jobs.c.id == job_id))
    return state == JobState.CANCELLING and queue.cancel_waiting_shards(connection, job_id)


def _ending_jobs(connection: Connection) -> list[int]:
    """Cancelled jobs that have not ended, and jobs without an open shard, oldest first."""
    is_ending = (jobs.c.state == JobState.CANCELLING) | ~has_open_shard(jobs.c.id)
    query = select(jobs.c.id).where(jobs.c.finished_at.is_(None), is_known_kind(), is_ending)
    return list(connection.scalars(query.order_by(jobs.c.id)))
