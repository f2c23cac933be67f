"""VACUUM of the tables that churn, and what holds it up (docs/reliability.md D12)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from ragllava.stores.archives.vectors import IndexView
from ragllava.stores.database import outside_transaction

# Rows that are updated or deleted, beside the inputs of jobs; answers and candidates are written once.
CHURNING = (
    "shards", "jobs", "workers", "noisy_cases", "images", "blobs", "archives", "indexes", "model_versions",
    "bound_objects", "change_events", "change_event_totals", "schedules", "schedule_runs",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TableState:
    """A table after its VACUUM. `dead_rows` are those that an old transaction keeps from being removed."""

    table: str
    live_rows: int
    dead_rows: int
    size_bytes: int


def partitions(connection: Connection) -> list[str]:
    """The tables of all indexes' vectors, in order of their making."""
    rows = connection.scalars(
        text("""
            SELECT inhrelid::regclass::text FROM pg_inherits
            WHERE inhparent = 'embeddings'::regclass ORDER BY inhrelid
        """)
    )
    return list(rows)


def vacuum_table(engine: Engine, table: str) -> TableState | None:
    """VACUUM (ANALYZE) a table, by a name that our own code gives; None when it was dropped meanwhile.

    Works beside reads and writes. Pages that are in use are passed over.
    """
    with outside_transaction(engine) as connection:
        if connection.scalar(text("SELECT to_regclass(:table)"), {"table": table}) is None:
            return None
        connection.execute(text(f"VACUUM (ANALYZE) {table}"))
        row = connection.execute(
            text("""
                SELECT n_live_tup, n_dead_tup, pg_total_relation_size(relid) AS size_bytes
                FROM pg_stat_user_tables WHERE relid = to_regclass(:table)
            """),
            {"table": table},
        ).one_or_none()
    return TableState(table, row.n_live_tup, row.n_dead_tup, row.size_bytes) if row else None


def oldest_transaction_s(connection: Connection) -> float:
    """The age of the oldest transaction of this database but our own; VACUUM removes nothing that it may still see."""
    age = connection.scalar(
        text("""
            SELECT max(extract(epoch FROM clock_timestamp() - xact_start)) FROM pg_stat_activity
            WHERE datname = current_database() AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
        """)
    )
    return float(age or 0.0)


def graphs(connection: Connection) -> list[tuple[str, IndexView]]:
    """The living indexes that are searched by a graph, each with the name of its archive."""
    rows = connection.execute(
        text("""
            SELECT archives.name, indexes.* FROM indexes JOIN archives ON archives.id = indexes.archive_id
            WHERE has_hnsw AND state <> 'retired' ORDER BY indexes.id
        """)
    )
    return [
        (row.name, IndexView(row.id, row.archive_id, row.retriever, row.dim, row.state, row.has_hnsw)) for row in rows
    ]


def stored_questions(connection: Connection, archive_id: int, limit: int) -> list[str]:
    """The latest different questions that were asked of an archive."""
    rows = connection.scalars(
        text("""
            SELECT text FROM (
                SELECT DISTINCT ON (q.text) q.text, q.job_id, q.question_no
                FROM (SELECT * FROM questions WHERE text IS NOT NULL AND job_id IN (
                          SELECT id FROM jobs WHERE archive_id = :archive_id AND kind = 'answer'
                          ORDER BY id DESC LIMIT 100)
                      ORDER BY job_id DESC, question_no LIMIT :looked_at) q
                ORDER BY q.text, q.job_id DESC) asked
            ORDER BY job_id DESC, question_no LIMIT :limit
        """),
        {"archive_id": archive_id, "limit": limit, "looked_at": 20 * limit},
    )
    return list(rows)
