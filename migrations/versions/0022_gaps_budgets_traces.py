"""How many gaps an archive has, what workers have spent of a budget, and the trace that a job belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None
# It contracts: a worker of the version before would not add what it spends to the budget.


def upgrade() -> None:
    """Open jobs with a budget keep what was spent of it."""
    op.add_column("archives", sa.Column("gaps", JSONB()))
    op.add_column("jobs", sa.Column("busy_s", sa.Float(), nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("trace", sa.Text()))
    op.execute("""
        UPDATE jobs SET busy_s = (SELECT coalesce(sum(busy_s), 0) FROM shards WHERE job_id = jobs.id)
        WHERE finished_at IS NULL AND max_gpu_s IS NOT NULL
    """)


def downgrade() -> None:
    """The shards still have what was spent."""
    op.drop_column("jobs", "trace")
    op.drop_column("jobs", "busy_s")
    op.drop_column("archives", "gaps")
