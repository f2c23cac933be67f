"""The HTTP API: its keys, its files and batches, what was done through it, and row-level security for its role."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# Those that belong to archives. The policies name roles, so `ragllava migrate` makes them when it makes the roles.
_SECURED = (
    "archives",
    "images",
    "word_counts",
    "indexes",
    "embeddings",
    "jobs",
    "shards",
    "files",
    "questions",
    "answers",
    "candidates",
    "trainings",
    "maintenance_tasks",
    "reindexed",
    "labels",
    "noisy_cases",
    "bindings",
    "bound_objects",
    "listed_captions",
    "schedules",
    "schedule_runs",
    "erasures",
    "held_removals",
    "uploads",
    "batches",
)


def upgrade() -> None:
    """Tables first, then row-level security, also of older tables."""
    _create_keys()
    _create_uploads()
    _create_batches()
    for table in _SECURED:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")


def downgrade() -> None:
    """Keys, files and batches are lost; the jobs of batches stay."""
    for table in _SECURED:
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.execute("""
        DO $$ DECLARE policy record; BEGIN
            FOR policy IN SELECT policyname, tablename FROM pg_policies WHERE schemaname = 'public' LOOP
                EXECUTE format('DROP POLICY %I ON %I', policy.policyname, policy.tablename);
            END LOOP;
        END $$
    """)
    for table in ("batches", "uploads", "audit", "api_usage", "api_keys"):
        op.drop_table(table)


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _create_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("archives", ARRAY(sa.BigInteger())),
        sa.Column("limits", JSONB(), nullable=False, server_default=sa.text("'{}'")),
        _moment("created_at"),
        _moment("expires_at", nullable=True),
        _moment("revoked_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("prefix", name="uq_api_keys_prefix"),
        sa.UniqueConstraint("sha256", name="uq_api_keys_sha256"),
    )
    op.create_table(
        "api_usage",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("questions", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "day", name="pk_api_usage"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        _moment("at"),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])


def _create_uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("archives", ARRAY(sa.BigInteger())),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger()),
        _moment("created_at"),
        _moment("expires_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_uploads_job_id", ondelete="CASCADE"),
    )
    op.create_index("ix_uploads_created_at_id", "uploads", ["created_at", "id"])
    op.create_index("ix_uploads_owner", "uploads", ["owner"])
    expiring, of_job = sa.text("expires_at IS NOT NULL"), sa.text("job_id IS NOT NULL")
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"], postgresql_where=expiring)
    op.create_index("ix_uploads_job_id", "uploads", ["job_id"], postgresql_where=of_job)


def _create_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Text(collation="C"), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("archive_id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.BigInteger()),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("completion_window", sa.Text(), nullable=False),
        sa.Column("metadata", JSONB()),
        sa.Column("options", JSONB(), nullable=False),
        sa.Column("output_expires_s", sa.BigInteger()),
        sa.Column("questions", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("content_digest", sa.Text(), nullable=False),
        sa.Column("errors", JSONB()),
        sa.Column("counts", JSONB()),
        sa.Column("output_file_id", sa.Text()),
        sa.Column("error_file_id", sa.Text()),
        _moment("created_at"),
        _moment("expires_at"),
        *(_moment(name, nullable=True) for name in _TIMES),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
        sa.ForeignKeyConstraint(["archive_id"], ["archives.id"], name="fk_batches_archive_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_batches_job_id", ondelete="SET NULL"),
    )
    op.create_index("ix_batches_archive_id", "batches", ["archive_id"])
    op.create_index("ix_batches_created_at_id", "batches", ["created_at", "id"])
    op.create_index("ix_batches_content_digest", "batches", ["content_digest", "created_at"])
    still_open, of_job = sa.text("ended_at IS NULL"), sa.text("job_id IS NOT NULL")
    with_key = sa.text("idempotency_key IS NOT NULL")
    op.create_index("ix_batches_open", "batches", ["id"], postgresql_where=still_open)
    op.create_index("ix_batches_job_id", "batches", ["job_id"], postgresql_where=of_job)
    op.create_index("ix_batches_idempotency_key", "batches", ["owner", "idempotency_key"], postgresql_where=with_key)


_TIMES = (
    "in_progress_at",
    "overdue_at",
    "cancelling_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelled_at",
    "ended_at",
)
