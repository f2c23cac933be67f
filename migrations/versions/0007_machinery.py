"""What keeps the machinery going: open inputs, turns, workers, isolated faults."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_OPEN_SHARD = sa.text("state IN ('pending', 'queued', 'running')")
# Columns that name the owner of many rows, and number them. A new owner is in no statistics, so the planner would
# expect a single row of it, and plan for that, until the next ANALYZE; and numbers beyond those of older jobs would look
# rare. Without statistics it always expects the same part of the table.
_WITHOUT_STATISTICS = {
    "questions": ("job_id", "question_no", "place"),
    "answers": ("job_id", "question_no"),
    "candidates": ("job_id", "question_no"),
    "files": ("job_id", "file_no"),
    "reindexed": ("job_id", "item_no"),
    "shards": ("job_id",),
    "labels": ("job_id", "question_no"),
    "noisy_cases": ("job_id", "question_no"),
    "bound_objects": ("binding_id",),
}


def upgrade() -> None:
    """Each part of the machinery has a function of its own."""
    _upgrade_scale()


def downgrade() -> None:
    """Undo the parts in the reverse order."""
    _downgrade_scale()


def _upgrade_scale() -> None:
    """Jobs of a million inputs: plans that do not depend on fresh statistics, and counts that are kept."""
    can_clear = op.get_bind().scalar(sa.text("SELECT to_regproc('pg_clear_attribute_stats') IS NOT NULL"))
    for table, columns in _WITHOUT_STATISTICS.items():
        for column in columns:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")
            if can_clear:  # since PostgreSQL 18
                op.execute(f"SELECT pg_clear_attribute_stats(current_schema()::text, '{table}', '{column}', false)")
    op.add_column("jobs", sa.Column("counts", postgresql.JSONB()))
    op.execute("UPDATE jobs SET counts = result -> 'counts' WHERE jsonb_typeof(result -> 'counts') = 'object'")
    op.create_index(
        "ix_jobs_without_result",
        "jobs",
        ["id"],
        postgresql_where=sa.text("finished_at IS NOT NULL AND result IS NULL"),
    )
    op.create_index("ix_shards_open", "shards", ["state", "job_id", "lo"], postgresql_where=_OPEN_SHARD)
    op.add_column("shards", sa.Column("open_inputs", sa.Integer()))


def _downgrade_scale() -> None:
    op.drop_column("shards", "open_inputs")
    op.drop_index("ix_shards_open", "shards")
    op.drop_index("ix_jobs_without_result", "jobs")
    op.drop_column("jobs", "counts")
    for table, columns in _WITHOUT_STATISTICS.items():
        for column in columns:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS -1")
