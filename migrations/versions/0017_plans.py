"""Deadlines and budgets of jobs, the time that workers spend on them, and estimates beside what came out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_OF_JOBS = ("deadline_at", "max_gpu_s", "estimate", "timing")
_OF_SHARDS = ("busy_s", "reranked_at_most")


def upgrade() -> None:
    """Jobs that are there have no limit and no estimate; what workers spent on them is not known."""
    op.add_column("jobs", sa.Column("deadline_at", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("max_gpu_s", sa.Float()))
    op.add_column("jobs", sa.Column("estimate", JSONB()))
    op.add_column("jobs", sa.Column("timing", JSONB()))
    op.add_column("shards", sa.Column("busy_s", sa.Float(), nullable=False, server_default=sa.text("0")))
    op.add_column("shards", sa.Column("reranked_at_most", sa.Integer()))


def downgrade() -> None:
    """Open jobs with a limit go on without it. Inputs that are expired become cancelled ones, which can be retried."""
    op.execute("UPDATE jobs SET state = 'cancelling' WHERE state = 'expiring'")
    op.execute("UPDATE answers SET status = 'cancelled' WHERE status = 'expired'")
    op.execute("""
        UPDATE jobs SET counts = (counts - 'expired') || jsonb_build_object('cancelled',
            coalesce(CAST(counts ->> 'cancelled' AS bigint), 0) + CAST(counts ->> 'expired' AS bigint))
        WHERE counts ? 'expired'
    """)
    for name in _OF_SHARDS:
        op.drop_column("shards", name)
    for name in _OF_JOBS:
        op.drop_column("jobs", name)
