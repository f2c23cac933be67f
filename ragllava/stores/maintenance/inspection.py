"""What can be wrong in the database: queries that `doctor --deep` counts, each with one example. Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select, text, union_all

from ragllava.stores.database import record
from ragllava.stores.schema import jobs
from ragllava.stores.sessions import allow_statements

_TIMEOUT_S = 900  # counting everything takes longer than other statements may


@dataclass(frozen=True, slots=True)
class CountedRows:
    """How many rows are wrong, and an example for the user; None when there are none."""

    number: int
    example: str | None


def allow_minutes(connection: Connection) -> None:
    """Let the statements of this transaction take minutes."""
    allow_statements(connection, _TIMEOUT_S)


def count(connection: Connection, query: str, values: Mapping[str, Any]) -> CountedRows:
    """Count the rows of one of the queries below; values that it does not use are ignored."""
    counted = text(f"SELECT count(*) AS number, min(example) AS example FROM ({query}) wrong")  # noqa: S608 - our own text
    return record(CountedRows, connection.execute(counted, dict(values)).one())


# Running shards whose lease ended and was not reaped.
EXPIRED_LEASES = """
    SELECT 'shard ' || id || ' of job ' || job_id || ', worker ' || coalesce(worker, '-') AS example FROM shards
    WHERE state = 'running' AND lease_until < now() - make_interval(secs => :grace_s)
"""

# Shards whose message should have been sent again.
STALE_MESSAGES = """
    SELECT 'shard ' || s.id || ' of job ' || s.job_id AS example FROM shards s JOIN jobs j ON j.id = s.job_id
    WHERE j.finished_at IS NULL AND s.state = 'queued'
      AND s.queued_at < now() - make_interval(secs => :queued_s)
"""

# Open jobs that should have been closed. The next tick closes a large job, whose outcomes take time to count.
JOBS_WITHOUT_OPEN_SHARD = """
    SELECT 'job ' || j.id || ' (' || j.kind || ', ' || j.state || ')' AS example FROM jobs j
    WHERE finished_at IS NULL AND NOT EXISTS (
        SELECT 1 FROM shards s WHERE s.job_id = j.id AND (
            s.state IN ('pending', 'queued', 'running')
            OR s.finished_at > now() - make_interval(secs => :result_s)))
"""

# Jobs that ended some time ago and have no result yet.
JOBS_WITHOUT_RESULT = """
    SELECT 'job ' || id || ' (' || kind || ')' AS example FROM jobs
    WHERE result IS NULL AND finished_at < now() - make_interval(secs => :result_s)
"""

# Removals without progress that the tick should have finished; one that waits for a job makes progress.
STALLED_ERASURES = """
    SELECT 'removal ' || id || ' (' || kind || ')' AS example FROM erasures
    WHERE finished_at IS NULL AND updated_at < now() - make_interval(secs => :result_s)
"""

# Schedules whose due time passed without firing.
OVERDUE_SCHEDULES = """
    SELECT name || ', due ' || to_char(next_due, 'YYYY-MM-DD HH24:MI:SS') || ' UTC' AS example FROM schedules
    WHERE NOT paused AND next_due < now() - make_interval(secs => :grace_s)
"""

# Workers that stopped reporting and did not sign off; after :forgotten_s they are not reported any more.
SILENT_WORKERS = """
    SELECT name || ', last seen ' || to_char(seen_at, 'YYYY-MM-DD HH24:MI:SS') || ' UTC' AS example FROM workers
    WHERE seen_at < now() - make_interval(secs => :grace_s)
      AND seen_at > now() - make_interval(secs => :forgotten_s)
"""

# Shards that wait for a queue which no live worker serves; :queues maps kinds of jobs to queues.
UNSERVED_SHARDS = """
    SELECT 'shard ' || id || ' of job ' || job_id || ', queue ' || queue AS example FROM (
        SELECT s.id, s.job_id, coalesce(s.queue, CAST(:queues AS jsonb)->>j.kind) AS queue
        FROM shards s JOIN jobs j ON j.id = s.job_id
        WHERE j.state = 'running' AND s.state IN ('pending', 'queued')
    ) waiting
    WHERE NOT EXISTS (SELECT 1 FROM workers w WHERE waiting.queue = ANY(w.queues) AND w.state = 'live'
                      AND w.seen_at > now() - make_interval(secs => :grace_s))
"""

# Archives that have images and no active index.
ARCHIVES_WITHOUT_INDEX = """
    SELECT name AS example FROM archives a WHERE active_index_id IS NULL
    AND EXISTS (SELECT 1 FROM images WHERE archive_id = a.id AND NOT retired)
"""

# Images of the archive that a search in this index cannot find.
IMAGES_WITHOUT_VECTOR = """
    SELECT source AS example FROM images i WHERE archive_id = :archive_id AND NOT retired
    AND (SELECT 1 FROM embeddings e WHERE e.index_id = :index_id AND e.image_id = i.id LIMIT 1) IS NULL
"""

# Vectors of images that are retired or not in the archive.
VECTORS_WITHOUT_IMAGE = """
    SELECT 'image ' || image_id AS example FROM embeddings e WHERE index_id = :index_id
    AND (SELECT 1 FROM images i WHERE i.id = e.image_id AND archive_id = :archive_id AND NOT retired LIMIT 1) IS NULL
"""

# Left by interrupted builds: never searched, and updated by every insert.
INVALID_GRAPHS = """
    SELECT indexrelid::regclass::text AS example FROM pg_index WHERE NOT indisvalid
    AND indexrelid NOT IN (SELECT index_relid FROM pg_stat_progress_create_index WHERE index_relid IS NOT NULL)
"""

# Images whose content need not be in the object store.
IMAGES_WITHOUT_LIVE_BLOB = """
    SELECT i.source || ' of ' || a.name || ' (' || b.state || ')' AS example
    FROM images i JOIN blobs b ON b.sha256 = i.sha256 JOIN archives a ON a.id = i.archive_id
    WHERE b.state <> 'live'
"""


def jobs_that_do_not_add_up(connection: Connection, totals_of_kind: Mapping[str, Select[Any]]) -> CountedRows:
    """Ended jobs that are not `failed` although inputs or outcomes are missing.

    `totals_of_kind` has for each kind of job the query for its inputs and outcomes (JobInputs.totals).
    """
    example = func.concat("job ", jobs.c.id, " (", jobs.c.kind, ", ", jobs.c.state, ")").label("example")
    queries = []
    for kind, query in totals_of_kind.items():
        totals = query.subquery()
        inputs, outcomes = func.coalesce(totals.c.inputs, 0), func.coalesce(totals.c.outcomes, 0)
        queries.append(
            select(example)
            .outerjoin_from(jobs, totals, totals.c.job_id == jobs.c.id)
            .where(jobs.c.kind == kind, jobs.c.finished_at.is_not(None), jobs.c.state != "failed")
            .where((jobs.c.total != inputs) | (jobs.c.total != outcomes))
        )
    wrong = union_all(*queries).subquery()
    row = connection.execute(select(func.count(), func.min(wrong.c.example)).select_from(wrong)).one()
    return CountedRows(*row)


def queued_shards(connection: Connection, queue_of_kind: Mapping[str, str]) -> dict[str, int]:
    """The largest correct number of messages in each queue."""
    query = text("""
        SELECT coalesce(s.queue, CAST(:queues AS jsonb)->>j.kind), count(*) FROM shards s JOIN jobs j ON j.id = s.job_id
        WHERE s.state = 'queued' AND j.finished_at IS NULL GROUP BY 1
    """)
    return dict(connection.execute(query, {"queues": json.dumps(dict(queue_of_kind))}).all())


def named_content(connection: Connection) -> dict[str, int]:
    """The size in bytes of all content that images or questions refer to, by hash."""
    query = text("""
        SELECT sha256, size_bytes FROM blobs WHERE sha256 IN (SELECT sha256 FROM images)
        OR sha256 IN (SELECT picture FROM questions WHERE picture IS NOT NULL)
    """)
    return dict(connection.execute(query).all())


def image_named(connection: Connection, sha256: str) -> str:
    """An image with this content, else a question that was asked with it, for people."""
    query = text("""
        SELECT coalesce(
            (SELECT source || ' of ' || archives.name FROM images JOIN archives ON archives.id = archive_id
             WHERE sha256 = :sha256 ORDER BY images.id LIMIT 1),
            (SELECT 'the picture of a question of job ' || job_id FROM questions
             WHERE picture = :sha256 ORDER BY job_id LIMIT 1))
    """)
    return str(connection.scalar(query, {"sha256": sha256}))


def result_keys(connection: Connection) -> dict[str, str]:
    """The keys of all result files, each with its job for people."""
    query = text("""
        SELECT file.value->>'key', 'job ' || id FROM jobs, jsonb_each(result->'files') AS file
        WHERE jsonb_typeof(result->'files') = 'object' AND file.value->>'key' <> ''
    """)
    return dict(connection.execute(query).all())


def adapters_of_versions(connection: Connection) -> dict[str, str]:
    """The adapters of all model versions, each with the version's name."""
    query = text("SELECT adapter_sha256, name FROM model_versions WHERE adapter_sha256 IS NOT NULL ORDER BY id")
    return dict(connection.execute(query).all())
