"""What is older than the settings keep and may be deleted: jobs, replaced indexes, runs of schedules."""

from __future__ import annotations

from sqlalchemy import Connection, text

from ragllava.stores.archives import indexes

_AUDIT_AT_ONCE = 10_000  # in one transaction

# Models learn from labels, and an open noisy case may become one, but not for ever: most cases are never labelled.
# Trainings, which are few, stay: model versions refer to them, and so does the check whether a new training is due.
_IS_OLD = "jobs.finished_at < now() - make_interval(secs => :older_than_s)"
_IS_NEEDED = """
    (EXISTS (SELECT 1 FROM labels WHERE labels.job_id = jobs.id)
     OR EXISTS (SELECT 1 FROM noisy_cases n WHERE n.job_id = jobs.id AND n.state = 'open'
                AND (:noisy_s = 0 OR n.created_at > now() - make_interval(secs => :noisy_s))))
"""
_DELETABLE = f"jobs.kind <> 'train' AND jobs.result IS NOT NULL AND {_IS_OLD} AND NOT {_IS_NEEDED}"


def deletable_jobs(connection: Connection, older_than_s: float, noisy_s: float) -> list[int]:
    """Jobs that ended longer ago, have a result, and are not needed for learning; oldest first.

    An open noisy case keeps its job for `noisy_s` seconds, 0: for ever.
    """
    query = f"SELECT id FROM jobs WHERE {_DELETABLE} ORDER BY id"  # noqa: S608 - no foreign text
    return list(connection.scalars(text(query), {"older_than_s": older_than_s, "noisy_s": noisy_s}))


def count_needed_jobs(connection: Connection, older_than_s: float, noisy_s: float) -> int:
    """How many jobs of that age are kept for their labels and noisy cases."""
    query = f"SELECT count(*) FROM jobs WHERE kind = 'answer' AND {_IS_OLD} AND {_IS_NEEDED}"  # noqa: S608
    return int(connection.execute(text(query), {"older_than_s": older_than_s, "noisy_s": noisy_s}).scalar_one())


def lock_deletable(connection: Connection, job_id: int, older_than_s: float, noisy_s: float) -> bool:
    """Lock a job until the end of the transaction; False when it may not be deleted any more."""
    chosen = f"SELECT id FROM jobs WHERE id = :job_id AND {_DELETABLE} FOR UPDATE"  # noqa: S608 - no foreign text
    values = {"job_id": job_id, "older_than_s": older_than_s, "noisy_s": noisy_s}
    return connection.scalar(text(chosen), values) is not None


def drop_retired_index(connection: Connection, older_than_s: float) -> int | None:
    """Drop an index that was replaced longer ago; returns its id, None when there is none."""
    values = {"older_than_s": older_than_s}
    row = connection.execute(text(f"SELECT id, archive_id {_REPLACED} ORDER BY id LIMIT 1"), values).one_or_none()
    if row is None:
        return None
    # A switch of indexes locks the archive first, too; the index may be in use again after it.
    connection.execute(text("SELECT FROM archives WHERE id = :id FOR NO KEY UPDATE"), {"id": row.archive_id})
    index_id: int | None = connection.scalar(text(f"SELECT id {_REPLACED} AND id = :id"), values | {"id": row.id})
    if index_id is not None:
        indexes.drop_index(connection, index_id)
    return index_id


_REPLACED = """
    FROM indexes WHERE state = 'retired' AND retired_at < now() - make_interval(secs => :older_than_s)
"""


def delete_runs(connection: Connection, older_than_s: float) -> int:
    """Delete old runs of schedules, but not the last run of each; returns how many."""
    query = text("""
        DELETE FROM schedule_runs r WHERE fired_at < now() - make_interval(secs => :older_than_s)
        AND EXISTS (SELECT 1 FROM schedule_runs newer
                    WHERE newer.schedule_id = r.schedule_id AND newer.fired_at > r.fired_at)
    """)
    return connection.execute(query, {"older_than_s": older_than_s}).rowcount


def delete_audit(connection: Connection, older_than_s: float) -> int:
    """Delete old records of calls to the HTTP API, a bounded number; returns how many. Repeat it until that is 0."""
    query = text("""
        DELETE FROM audit WHERE id = ANY (ARRAY(
            SELECT id FROM audit WHERE at < now() - make_interval(secs => :older_than_s) ORDER BY at LIMIT :most
        ))
    """)
    return connection.execute(query, {"older_than_s": older_than_s, "most": _AUDIT_AT_ONCE}).rowcount
