"""The waiting shards of a job that stops: cancelled by its user, expired at its limit, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from sqlalchemy import Connection, Row, select

from ragllava.jobs.kinds import kind_of
from ragllava.jobs.queue import mark_ended
from ragllava.jobs.states import STOPPING_JOB_STATES, ShardState, stopped_as
from ragllava.stores.database import equals_any
from ragllava.stores.schema import jobs, shards

ENDED_AT_ONCE = 5_000  # inputs that one transaction ends: well below a second
SHARDS_ENDED_AT_ONCE = 500


def stop_waiting_shards(connection: Connection, job_id: int) -> bool:
    """`end_waiting_shards` for a job that stops; False for any other."""
    job = connection.execute(select(jobs.c.state, jobs.c.error).where(jobs.c.id == job_id)).one_or_none()
    if job is None or job.state not in STOPPING_JOB_STATES:
        return False
    return end_waiting_shards(connection, job_id, *stopped_as(job.state, job.error))


def end_waiting_shards(connection: Connection, job_id: int, status: str, reason: str) -> bool:
    """Cancel some of a job's pending and queued shards, of about ENDED_AT_ONCE inputs; False when there were none.

    Their open inputs get the outcome. Running shards stop at a heartbeat; those that others have locked are left out.
    The job's row is not locked, so that a large job can be ended in many transactions without blocking anybody.
    """
    is_waiting = shards.c.state.in_([ShardState.PENDING, ShardState.QUEUED])
    first = (
        select(shards, jobs.c.kind, jobs.c.total)
        .join(jobs)
        .where(jobs.c.id == job_id, jobs.c.finished_at.is_(None), is_waiting)
        .order_by(shards.c.lo, shards.c.id)
        .limit(SHARDS_ENDED_AT_ONCE)
        .with_for_update(of=shards, skip_locked=True)
    )
    rows = _of_about(ENDED_AT_ONCE, connection.execute(first).all())
    for lo, hi, run_no, kind in _adjoining(rows):
        kind_of(kind).inputs.end(connection, job_id, run_no, lo, hi, status, reason)
    mark_ended(connection, ShardState.CANCELLED, reason, equals_any(shards.c.id, [row.id for row in rows]))
    return bool(rows)


def _of_about(inputs: int, rows: Sequence[Row[Any]]) -> list[Row[Any]]:
    """The first of the shards, which have at most `inputs` inputs together; at least one of them."""
    ends = accumulate(row.hi - row.lo for row in rows)
    return [row for number, (row, end) in enumerate(zip(rows, ends, strict=True)) if not number or end <= inputs]


def _adjoining(rows: Sequence[Row[Any]]) -> Iterator[tuple[int, int, int, str]]:
    """Ranges of inputs, each of as many shards of one run as follow each other without a gap."""
    last: tuple[int, int, int, str] | None = None
    for row in rows:
        if last is not None and (row.lo, row.run_no) == (last[1], last[2]):
            last = (last[0], row.hi, row.run_no, row.kind)
            continue
        if last is not None:
            yield last
        last = (row.lo, row.hi, row.run_no, row.kind)
    if last is not None:
        yield last
