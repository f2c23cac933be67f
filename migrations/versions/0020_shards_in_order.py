"""The shards of a job in the order of their inputs, so that dispatch reads none that has ended."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None
expands = True


def upgrade() -> None:
    """The index of the shards of a job gets two more columns, which never change."""
    op.create_index("ix_shards_job_id_run_no_lo", "shards", ["job_id", "run_no", "lo"])
    op.drop_index("ix_shards_job_id", table_name="shards")


def downgrade() -> None:
    """The index has the job alone again."""
    op.create_index("ix_shards_job_id", "shards", ["job_id"])
    op.drop_index("ix_shards_job_id_run_no_lo", table_name="shards")
