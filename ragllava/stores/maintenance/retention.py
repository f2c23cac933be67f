"""What is older than the settings keep, and may go: jobs, replaced indexes, runs of schedules."""

from __future__ import annotations

from sqlalchemy import Connection, text

from ragllava.stores.archives import indexes

# Labels are what models learn from, and a noisy case that nobody dismissed may become one; versions and the question
# whether a new training is due refer to trainings, of which there are few.
_FORGETTABLE = """
    jobs.kind <> 'train' AND jobs.result IS NOT NULL
    AND jobs.finished_at < now() - make_interval(secs => :older_than_s)
    AND NOT EXISTS (SELECT 1 FROM labels WHERE labels.job_id = jobs.id)
    AND NOT EXISTS (SELECT 1 FROM noisy_cases n WHERE n.job_id = jobs.id AND n.state <> 'dismissed')
"""
_NEEDED = """
    jobs.kind = 'answer' AND jobs.finished_at < now() - make_interval(secs => :older_than_s)
    AND (EXISTS (SELECT 1 FROM labels WHERE labels.job_id = jobs.id)
         OR EXISTS (SELECT 1 FROM noisy_cases n WHERE n.job_id = jobs.id AND n.state <> 'dismissed'))
"""
_DELETION_TIMEOUT_S = 900  # a job of a million lines takes more than other statements may


def forgettable_jobs(connection: Connection, older_than_s: float) -> list[int]:
    """Jobs that ended longer ago, whose result was written down, and that nothing learns from; oldest first."""
    query = f"SELECT id FROM jobs WHERE {_FORGETTABLE} ORDER BY id"  # noqa: S608 - no foreign text
    return list(connection.scalars(text(query), {"older_than_s": older_than_s}))


def count_needed_jobs(connection: Connection, older_than_s: float) -> int:
    """How many as old are kept for their labels and noisy cases."""
    query = f"SELECT count(*) FROM jobs WHERE {_NEEDED}"  # noqa: S608 - no foreign text
    return int(connection.execute(text(query), {"older_than_s": older_than_s}).scalar_one())


def forget_job(connection: Connection, job_id: int, older_than_s: float) -> bool:
    """Remove a job with its inputs, outcomes and shards; False when it may not go any more.

    Its result objects are the caller's, after the commit: what a crash leaves there has no row and is swept.
    """
    connection.execute(text(f"SET LOCAL statement_timeout = '{_DELETION_TIMEOUT_S}s'"))
    chosen = f"SELECT id FROM jobs WHERE id = :job_id AND {_FORGETTABLE} FOR UPDATE"  # noqa: S608 - no foreign text
    values = {"job_id": job_id, "older_than_s": older_than_s}
    return connection.execute(text(f"DELETE FROM jobs WHERE id IN ({chosen})"), values).rowcount == 1  # noqa: S608


def drop_retired_index(connection: Connection, older_than_s: float) -> int | None:
    """Drop one index that was replaced longer ago; returns its id, None when there is none."""
    values = {"older_than_s": older_than_s}
    found = connection.execute(text(f"SELECT id, archive_id {_REPLACED} ORDER BY id LIMIT 1"), values).one_or_none()
    if found is None:
        return None
    # Whoever switches indexes locks the archive first, too; then this one may be in use again.
    connection.execute(text("SELECT FROM archives WHERE id = :id FOR NO KEY UPDATE"), {"id": found.archive_id})
    index_id: int | None = connection.scalar(
        text(f"SELECT id {_REPLACED} AND id = :id"),
        values | {"id": found.id},
    )
    if index_id is not None:
        indexes.drop_index(connection, index_id)
    return index_id


_REPLACED = """
    FROM indexes WHERE state = 'retired' AND retired_at < now() - make_interval(secs => :older_than_s)
"""


def forget_runs(connection: Connection, older_than_s: float) -> int:
    """Remove old runs of schedules, but never the last one of each; returns how many."""
    result = connection.execute(
        text("""
            DELETE FROM schedule_runs r WHERE fired_at < now() - make_interval(secs => :older_than_s)
            AND EXISTS (SELECT 1 FROM schedule_runs newer
                        WHERE newer.schedule_id = r.schedule_id AND newer.fired_at > r.fired_at)
        """),
        {"older_than_s": older_than_s},
    )
    return result.rowcount
