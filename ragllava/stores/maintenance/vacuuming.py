"""VACUUM of the tables that churn, and what delays it (docs/reliability.md D12)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from ragllava.stores.database import outside_transaction, record

# Rows that are updated or deleted, beside the inputs of jobs; answers and candidates are written once.
CHURNING = (
    "shards", "jobs", "workers", "noisy_cases", "images", "blobs", "archives", "indexes", "model_versions",
    "bound_objects", "change_events", "change_event_totals", "schedules", "schedule_runs",
    "image_words", "word_counts", "vocabulary",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TableState:
    """A table after its VACUUM. `dead_rows` are those that an old transaction keeps from being removed."""

    table: str
    live_rows: int
    dead_rows: int
    size_bytes: int


def partitions(connection: Connection) -> list[str]:
    """The tables of all indexes' vectors, oldest first."""
    query = (
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'embeddings'::regclass ORDER BY inhrelid"
    )
    return list(connection.scalars(text(query)))


def vacuum_table(engine: Engine, table: str) -> TableState | None:
    """VACUUM (ANALYZE) a table, by a name from our own code; None when it was dropped meanwhile.

    Runs beside reads and writes. Pages in use are skipped.
    """
    with outside_transaction(engine) as connection:
        if connection.scalar(text("SELECT to_regclass(:table)"), {"table": table}) is None:
            return None
        connection.execute(text(f"VACUUM (ANALYZE) {table}"))
        query = text("""
            SELECT n_live_tup AS live_rows, n_dead_tup AS dead_rows, pg_total_relation_size(relid) AS size_bytes
            FROM pg_stat_user_tables WHERE relid = to_regclass(:table)
        """)
        row = connection.execute(query, {"table": table}).one_or_none()
    return record(TableState, row, table=table) if row else None


def oldest_transaction_s(connection: Connection) -> float:
    """The age of the oldest other transaction of this database; VACUUM keeps the rows that it can still see."""
    query = text("""
        SELECT max(extract(epoch FROM clock_timestamp() - xact_start)) FROM pg_stat_activity
        WHERE datname = current_database() AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
    """)
    return float(connection.scalar(query) or 0.0)
