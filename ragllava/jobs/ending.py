"""The ends of jobs that are too large for one transaction: stopped in parts, counted without a lock, then closed.

`cancel` in the client does it at once, and so does a worker that sees a job at its limit; the tick does what a crash,
or a job's size, has left.
"""

from __future__ import annotations

import logging
import time

from sqlalchemy import Connection, Engine, select

from ragllava.jobs import closing, control, deadlines, stopping
from ragllava.jobs.kinds import is_known_kind, kind_of
from ragllava.jobs.states import STOPPING_JOB_STATES
from ragllava.jobs.turns import has_open_shard
from ragllava.settings import Settings
from ragllava.stores.database import in_transaction, read_at_once
from ragllava.stores.schema import jobs

log = logging.getLogger(__name__)


def end_jobs(engine: Engine) -> int:
    """End the waiting shards of jobs that stop, and close the jobs without an open shard; returns how many were closed.

    One job whose end fails does not hold up the others; the next tick tries it again.
    """
    closed = 0
    for job_id in read_at_once(engine, _ending_jobs):
        try:
            closed += end_job(engine, job_id)
        except Exception:
            log.exception("the job could not be ended", extra={"action": "job_not_ended", "job": job_id})
    return closed


def expire_due_jobs(engine: Engine) -> int:
    """Let the jobs stop that have reached a limit; returns how many there were. `end_jobs` ends what waits of them.

    A worker that runs a shard of such a job sees it itself, and sooner. One job that fails does not hold up the others.
    """
    expired = 0
    for job_id in read_at_once(engine, deadlines.due_jobs):
        try:
            expired += in_transaction(engine, deadlines.expire_if_due, job_id)
        except Exception:
            log.exception("the job could not expire", extra={"action": "job_not_expired", "job": job_id})
    return expired


def end_job(engine: Engine, job_id: int, most_s: float = 60.0) -> bool:
    """End the waiting shards of a job if it stops, for about `most_s` seconds at most; close it if no shard is open.
    Returns whether it was closed.

    Any number may do this at once, for the same job too.
    """
    until = time.monotonic() + most_s
    while in_transaction(engine, stopping.stop_waiting_shards, job_id):
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
    while in_transaction(engine, stopping.end_waiting_shards, job_id, status, reason):
        pass
    closing.close_ended_job(engine, job_id)


def _ending_jobs(connection: Connection) -> list[int]:
    """Jobs that stop and have not ended, and jobs without an open shard, oldest first."""
    is_ending = jobs.c.state.in_(STOPPING_JOB_STATES) | ~has_open_shard(jobs.c.id)
    query = select(jobs.c.id).where(jobs.c.finished_at.is_(None), is_known_kind(), is_ending)
    return list(connection.scalars(query.order_by(jobs.c.id)))
