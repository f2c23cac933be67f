"""The rows of a job and of its shards are locked here, always in the same order: the job first, then the shard."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Text, literal, select

from ragllava.stores.schema import jobs, shards


def lock_job(connection: Connection, job_id: int, *, skip_locked: bool = False) -> Row[Any] | None:
    """Lock a job's row until the end of the transaction; None for an unknown job, and for a locked one to be skipped.

    Whoever writes the rows of a job and of its shards locks the job first. The lock does not block rows that refer to
    the job, such as its new shards: so the order of locks is the same for all, and nobody waits in a circle.
    """
    job: Row[Any] | None = connection.execute(
        select(jobs).where(jobs.c.id == job_id).with_for_update(key_share=True, skip_locked=skip_locked)
    ).one_or_none()
    return job


def lock_shard(
    connection: Connection, job_id: int, *conditions: ColumnElement[bool], skip_locked: bool = False
) -> Row[Any] | None:
    """Lock an open job, then the one of its shards that meets the conditions; None when there is none.

    With `skip_locked`, None as well when another transaction has locked one of the two.
    """
    job = lock_job(connection, job_id, skip_locked=skip_locked)
    if job is None or job.finished_at is not None:
        return None
    row: Row[Any] | None = connection.execute(
        select(
            shards,
            literal(job.kind).label("kind"),
            literal(job.state).label("job_state"),
            literal(job.error, Text).label("job_error"),
        )
        .where(shards.c.job_id == job_id, *conditions)
        .with_for_update(of=shards, skip_locked=skip_locked)
    ).one_or_none()
    return row
