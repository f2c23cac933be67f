"""Deadlines, budgets and estimates of jobs, the time that workers spend on them; and notices for people."""

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
_TABLES = ("notices", "mailings")


def upgrade() -> None:
    """Jobs that are there have no limit and no estimate; what workers spent on them is not known."""
    op.add_column("jobs", sa.Column("deadline_at", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("max_gpu_s", sa.Float()))
    op.add_column("jobs", sa.Column("estimate", JSONB()))
    op.add_column("jobs", sa.Column("timing", JSONB()))
    op.add_column("shards", sa.Column("busy_s", sa.Float(), nullable=False, server_default=sa.text("0")))
    op.add_column("shards", sa.Column("reranked_at_most", sa.Integer()))
    op.create_index("ix_jobs_answer", "jobs", ["id"], postgresql_where=sa.text("kind = 'answer'"))
    _create_notices()
    _create_mailings()
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _create_notices() -> None:
    op.create_table(
        "notices",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("archive_id", sa.BigInteger()),
        sa.Column("job_id", sa.BigInteger()),
        sa.Column("facts", JSONB(), nullable=False),
        _moment("created_at"),
        _moment("addressed_at", nullable=True),
        _moment("over_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
        sa.ForeignKeyConstraint(["archive_id"], ["archives.id"], name="fk_notices_archive_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_notices_job_id", ondelete="CASCADE"),
    )
    is_open = sa.text("over_at IS NULL")
    op.create_index("uq_notices_open", "notices", ["event", "subject"], unique=True, postgresql_where=is_open)
    op.create_index("ix_notices_new", "notices", ["id"], postgresql_where=sa.text("addressed_at IS NULL"))
    op.create_index("ix_notices_archive_id", "notices", ["archive_id"])
    op.create_index("ix_notices_job_id", "notices", ["job_id"])
    op.create_index("ix_notices_created_at", "notices", ["created_at"])


def _create_mailings() -> None:
    op.create_table(
        "mailings",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("notice_id", sa.BigInteger(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'waiting'")),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        _moment("not_before"),
        sa.Column("error", sa.Text()),
        _moment("delivered_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_mailings"),
        sa.ForeignKeyConstraint(["notice_id"], ["notices.id"], name="fk_mailings_notice_id", ondelete="CASCADE"),
        sa.UniqueConstraint("notice_id", "target", name="uq_mailings_notice_id_target"),
        postgresql_with={"fillfactor": "70"},
    )
    open_rows = sa.text("state IN ('waiting', 'sending')")
    op.create_index("ix_mailings_open", "mailings", ["not_before"], postgresql_where=open_rows)


def downgrade() -> None:
    """Open jobs with a limit go on without it. Inputs that are expired become cancelled ones, which can be retried."""
    for table in reversed(_TABLES):
        op.drop_table(table)
    op.execute("UPDATE jobs SET state = 'cancelling' WHERE state = 'expiring'")
    op.execute("UPDATE answers SET status = 'cancelled' WHERE status = 'expired'")
    op.execute("""
        UPDATE jobs SET counts = (counts - 'expired') || jsonb_build_object('cancelled',
            coalesce(CAST(counts ->> 'cancelled' AS bigint), 0) + CAST(counts ->> 'expired' AS bigint))
        WHERE counts ? 'expired'
    """)
    op.drop_index("ix_jobs_answer", table_name="jobs")
    for name in _OF_SHARDS:
        op.drop_column("shards", name)
    for name in _OF_JOBS:
        op.drop_column("jobs", name)
