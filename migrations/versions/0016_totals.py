"""What has happened since the system began, for its metrics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The ended jobs that are there are counted; how long they and their shards took is not."""
    op.create_table(
        "totals",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("measure", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("number", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_totals"),
    )
    op.add_column("jobs", sa.Column("counted", JSONB()))
    op.add_column("shards", sa.Column("claimed_at", sa.DateTime(timezone=True)))
    op.execute("""
        INSERT INTO totals (measure, kind, result, number)
        SELECT 'jobs', kind, state, count(*) FROM jobs WHERE finished_at IS NOT NULL GROUP BY kind, state ORDER BY kind, state
    """)
    op.execute("""
        INSERT INTO totals (measure, kind, result, number)
        SELECT 'inputs', kind, outcome.key, sum(CAST(outcome.value AS bigint))
        FROM jobs CROSS JOIN LATERAL jsonb_each_text(counts) outcome
        WHERE finished_at IS NOT NULL GROUP BY kind, outcome.key ORDER BY kind, outcome.key
    """)
    # A job that runs again: what of it ended before is not known any more, so it counts when it ends.
    op.execute("""
        UPDATE jobs SET counted = '{}' WHERE finished_at IS NULL
            AND EXISTS (SELECT FROM shards WHERE job_id = jobs.id AND run_no > 1)
    """)
    op.execute("ALTER TABLE totals ENABLE ROW LEVEL SECURITY")


def downgrade() -> None:
    """The counters of the metrics are lost."""
    op.drop_table("totals")
    op.drop_column("jobs", "counted")
    op.drop_column("shards", "claimed_at")
