"""What can be wrong in the database, each as one question: how many, and one example. Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, func, select, text, union_all

from ragllava.stores.archives.vectors import IndexView
from ragllava.stores.schema import jobs

_TIMEOUT_S = 900  # counting everything takes more than other statements may


@dataclass(frozen=True, slots=True)
class Found:
    """What one question found. `example` is for people, None when nothing was found."""

    number: int
    example: str | None


def be_patient(connection: Connection) -> None:
    """Let the statements of this transaction take minutes."""
    connection.execute(text(f"SET LOCAL statement_timeout = '{_TIMEOUT_S}s'"))


# Jobs and shards


def expired_leases(connection: Connection, grace_s: float) -> Found:
    """Shards that run on a lease which ended, and that no sweep took back."""
    return _ask(
        connection,
        """
        SELECT 'shard ' || id || ' of job ' || job_id || ', worker ' || coalesce(worker, '-') AS example FROM shards
        WHERE state = 'running' AND lease_until < now() - make_interval(secs => :grace_s)
        """,
        grace_s=grace_s,
    )


def stale_messages(connection: Connection, older_than_s: float) -> Found:
    """Shards whose message should have been sent again."""
    return _ask(
        connection,
        """
        SELECT 'shard ' || s.id || ' of job ' || s.job_id AS example FROM shards s JOIN jobs j ON j.id = s.job_id
        WHERE j.finished_at IS NULL AND s.state = 'queued'
          AND s.queued_at < now() - make_interval(secs => :older_than_s)
        """,
        older_than_s=older_than_s,
    )


def jobs_without_open_shard(connection: Connection) -> Found:
    """Open jobs that nobody will ever finish."""
    return _ask(
        connection,
        """
        SELECT 'job ' || j.id || ' (' || j.kind || ', ' || j.state || ')' AS example FROM jobs j
        WHERE finished_at IS NULL AND NOT EXISTS (
            SELECT 1 FROM shards s WHERE s.job_id = j.id AND s.state IN ('pending', 'queued', 'running'))
        """,
    )


def jobs_without_result(connection: Connection, older_than_s: float) -> Found:
    """Jobs that ended some time ago and whose result nobody could write down."""
    return _ask(
        connection,
        """
        SELECT 'job ' || id || ' (' || kind || ')' AS example FROM jobs
        WHERE result IS NULL AND finished_at < now() - make_interval(secs => :older_than_s)
        """,
        older_than_s=older_than_s,
    )


def jobs_that_do_not_add_up(connection: Connection, totals_of_kind: Mapping[str, Select[Any]]) -> Found:
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
    return Found(*row)


def unserved_shards(connection: Connection, queue_of_kind: Mapping[str, str], silent_s: float) -> Found:
    """Shards that wait for a queue from which no live worker takes anything."""
    return _ask(
        connection,
        """
        SELECT 'shard ' || id || ' of job ' || job_id || ', queue ' || queue AS example FROM (
            SELECT s.id, s.job_id, coalesce(s.queue, CAST(:queues AS jsonb)->>j.kind) AS queue
            FROM shards s JOIN jobs j ON j.id = s.job_id
            WHERE j.state = 'running' AND s.state IN ('pending', 'queued')
        ) waiting
        WHERE NOT EXISTS (SELECT 1 FROM workers w WHERE waiting.queue = ANY(w.queues) AND w.state = 'live'
                          AND w.seen_at > now() - make_interval(secs => :silent_s))
        """,
        queues=json.dumps(dict(queue_of_kind)),
        silent_s=silent_s,
    )


def queued_shards(connection: Connection, queue_of_kind: Mapping[str, str]) -> dict[str, int]:
    """How many messages should be in each queue, at most."""
    rows = connection.execute(
        text("""
            SELECT coalesce(s.queue, CAST(:queues AS jsonb)->>j.kind) AS queue, count(*) AS number
            FROM shards s JOIN jobs j ON j.id = s.job_id
            WHERE s.state = 'queued' AND j.finished_at IS NULL GROUP BY 1
        """),
        {"queues": json.dumps(dict(queue_of_kind))},
    )
    return {row.queue: row.number for row in rows}


# Workers and the clock


def silent_workers(connection: Connection, silent_s: float, forgotten_s: float) -> Found:
    """Workers that did not say goodbye and were not seen for so long; after `forgotten_s` nobody asks for them."""
    return _ask(
        connection,
        """
        SELECT name || ', last seen ' || to_char(seen_at, 'YYYY-MM-DD HH24:MI:SS') || ' UTC' AS example FROM workers
        WHERE seen_at < now() - make_interval(secs => :silent_s)
          AND seen_at > now() - make_interval(secs => :forgotten_s)
        """,
        silent_s=silent_s,
        forgotten_s=forgotten_s,
    )


def overdue_schedules(connection: Connection, grace_s: float) -> Found:
    """Schedules whose time passed and that no tick fired."""
    return _ask(
        connection,
        """
        SELECT name || ', due ' || to_char(next_due, 'YYYY-MM-DD HH24:MI:SS') || ' UTC' AS example FROM schedules
        WHERE NOT paused AND next_due < now() - make_interval(secs => :grace_s)
        """,
        grace_s=grace_s,
    )


# Images, their content and their vectors


def named_content(connection: Connection) -> dict[str, int]:
    """The size in bytes of all content that images refer to, by hash."""
    rows = connection.execute(
        text("SELECT DISTINCT blobs.sha256, size_bytes FROM images JOIN blobs ON blobs.sha256 = images.sha256")
    )
    return {row.sha256: row.size_bytes for row in rows}


def image_named(connection: Connection, sha256: str) -> str:
    """An image with this content, for people."""
    query = text("""
        SELECT source || ' of ' || archives.name FROM images JOIN archives ON archives.id = archive_id
        WHERE sha256 = :sha256 ORDER BY images.id LIMIT 1
    """)
    return str(connection.scalar(query, {"sha256": sha256}))


def images_of_no_living_blob(connection: Connection) -> Found:
    """Images whose content is not promised to be in the store."""
    return _ask(
        connection,
        """
        SELECT i.source || ' of ' || a.name || ' (' || b.state || ')' AS example
        FROM images i JOIN blobs b ON b.sha256 = i.sha256 JOIN archives a ON a.id = i.archive_id
        WHERE b.state <> 'live'
        """,
    )


def searched_indexes(connection: Connection) -> list[tuple[str, IndexView]]:
    """The active index of each archive, with the archive's name."""
    rows = connection.execute(
        text("""
            SELECT archives.name, indexes.* FROM indexes JOIN archives ON archives.id = indexes.archive_id
            WHERE indexes.state = 'active' ORDER BY archives.name
        """)
    )
    return [
        (row.name, IndexView(row.id, row.archive_id, row.retriever, row.dim, row.state, row.has_hnsw)) for row in rows
    ]


def images_without_vector(connection: Connection, index: IndexView) -> Found:
    """Images of the archive that no search in this index can find."""
    return _ask(
        connection,
        """
        SELECT source AS example FROM images i WHERE archive_id = :archive_id AND NOT retired
        AND NOT EXISTS (SELECT 1 FROM embeddings e WHERE e.index_id = :index_id AND e.image_id = i.id)
        """,
        archive_id=index.archive_id,
        index_id=index.index_id,
    )


def vectors_without_image(connection: Connection, index: IndexView) -> Found:
    """Vectors of retired images, or of none of the archive's."""
    return _ask(
        connection,
        """
        SELECT 'image ' || image_id AS example FROM embeddings e WHERE index_id = :index_id
        AND NOT EXISTS (SELECT 1 FROM images i
                        WHERE i.id = e.image_id AND archive_id = :archive_id AND NOT retired)
        """,
        archive_id=index.archive_id,
        index_id=index.index_id,
    )


def archives_without_index(connection: Connection) -> Found:
    """Archives that hold images and are searched in no index."""
    return _ask(
        connection,
        """
        SELECT name AS example FROM archives a WHERE active_index_id IS NULL
        AND EXISTS (SELECT 1 FROM images WHERE archive_id = a.id AND NOT retired)
        """,
    )


def invalid_graphs(connection: Connection) -> Found:
    """What interrupted builds left: never searched, and maintained by every insert."""
    return _ask(
        connection,
        """
        SELECT indexrelid::regclass::text AS example FROM pg_index WHERE NOT indisvalid
        AND indexrelid NOT IN (SELECT index_relid FROM pg_stat_progress_create_index WHERE index_relid IS NOT NULL)
        """,
    )


# What rows name in the object store


def result_keys(connection: Connection) -> dict[str, str]:
    """The keys of all result files, each with its job for people."""
    rows = connection.execute(
        text("""
            SELECT id, file.value->>'key' AS key FROM jobs, jsonb_each(result->'files') AS file
            WHERE jsonb_typeof(result->'files') = 'object'
        """)
    )
    return {row.key: f"job {row.id}" for row in rows if row.key}


def adapters_of_versions(connection: Connection) -> dict[str, str]:
    """The adapters of all model versions, each with the version's name."""
    rows = connection.execute(
        text("SELECT adapter_sha256, name FROM model_versions WHERE adapter_sha256 IS NOT NULL ORDER BY id")
    )
    return {row.adapter_sha256: row.name for row in rows}


def unknown_content(connection: Connection, hashes: Sequence[str]) -> Found:
    """Those of the hashes that no blob has."""
    return _ask(
        connection,
        """
        SELECT sha256 AS example FROM unnest(CAST(:hashes AS text[])) AS found (sha256)
        WHERE NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.sha256 = found.sha256)
        """,
        hashes=list(hashes),
    )


def clock(connection: Connection) -> datetime:
    """What time it is for the database."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


def _ask(connection: Connection, query: str, **values: Any) -> Found:
    row = connection.execute(
        text(f"SELECT count(*) AS number, min(example) AS example FROM ({query}) wrong"),  # noqa: S608 - our own text
        values,
    ).one()
    return Found(row.number, row.example)
