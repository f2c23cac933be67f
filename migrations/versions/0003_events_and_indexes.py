"""What events need: bound buckets and what is known of their objects, hints, schedules, chores, reindexing, refreshing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NEW_TABLES = (
    "reindexed", "chores", "schedule_runs", "schedules", "hint_totals", "hints", "bound_objects", "bindings",
)  # fmt: skip


def upgrade() -> None:
    """Add the tables, shards that wait for the others, and indexes whose retriever is not the profile's."""
    op.add_column("shards", sa.Column("queue", sa.Text()))
    op.add_column("shards", sa.Column("is_last", sa.Boolean(), nullable=False, server_default=sa.text("false")))
    op.alter_column("jobs", "archive_id", nullable=True)
    op.add_column("indexes", sa.Column("spec", JSONB()))
    op.add_column("indexes", sa.Column("gate", JSONB()))
    op.add_column("indexes", sa.Column("retired_at", sa.DateTime(timezone=True)))
    op.add_column("questions", sa.Column("previous", JSONB()))
    op.add_column("answers", sa.Column("candidates_digest", sa.Text()))
    op.add_column("answers", sa.Column("changes", ARRAY(sa.Text())))
    # An index may be built beside the active one by the same retriever.
    op.drop_index("uq_indexes_living", "indexes")
    op.create_index(
        "uq_indexes_active", "indexes", ["archive_id"], unique=True, postgresql_where=sa.text("state = 'active'")
    )
    _create_bindings()
    _create_bound_objects()
    _create_hints()
    _create_schedules()
    _create_chores()
    _create_reindexed()


def downgrade() -> None:
    """Bindings, schedules and the jobs of reindexing and upkeep are forgotten; images and indexes stay."""
    for table in _NEW_TABLES:
        op.drop_table(table)
    op.execute("DELETE FROM jobs WHERE kind IN ('reindex', 'chore')")
    for column in ("changes", "candidates_digest"):
        op.drop_column("answers", column)
    op.drop_column("questions", "previous")
    # Half-built ones would get no new images any more.
    op.execute("UPDATE indexes SET state = 'retired' WHERE state = 'building'")
    op.drop_index("uq_indexes_active", "indexes")
    op.create_index(
        "uq_indexes_living",
        "indexes",
        ["archive_id", "retriever"],
        unique=True,
        postgresql_where=sa.text("state <> 'retired'"),
    )
    op.alter_column("jobs", "archive_id", nullable=False)
    for column in ("retired_at", "gate", "spec"):
        op.drop_column("indexes", column)
    for column in ("is_last", "queue"):
        op.drop_column("shards", column)


def _time(name: str, *, nullable: bool = False) -> sa.Column[object]:
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _create_bindings() -> None:
    op.create_table(
        "bindings",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("archive_id", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("options", JSONB(), nullable=False),
        _time("created_at"),
        _time("scanned_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_bindings"),
        sa.ForeignKeyConstraint(
            ["archive_id"], ["archives.id"], name="fk_bindings_archive_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("bucket", "prefix", name="uq_bindings_bucket_prefix"),
    )


def _create_bound_objects() -> None:
    op.create_table(
        "bound_objects",
        sa.Column("binding_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(collation="C"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("caption", sa.Text()),
        sa.Column("job_id", sa.BigInteger()),
        sa.Column("file_no", sa.BigInteger()),
        sa.Column("image_id", sa.BigInteger()),
        sa.Column("reason", sa.Text()),
        _time("seen_at"),
        sa.PrimaryKeyConstraint("binding_id", "key", name="pk_bound_objects"),
        sa.ForeignKeyConstraint(
            ["binding_id"], ["bindings.id"], name="fk_bound_objects_binding_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_bound_objects_job_id", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(
            ["image_id"], ["images.id"], name="fk_bound_objects_image_id", ondelete="SET NULL"
        ),
    )
    op.create_index(
        "ix_bound_objects_job_id", "bound_objects", ["job_id"], postgresql_where=sa.text("job_id IS NOT NULL")
    )
    op.create_index("ix_bound_objects_image_id", "bound_objects", ["image_id"])


def _create_hints() -> None:
    op.create_table(
        "hints",
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        _time("received_at"),
        _time("not_before"),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("repeats", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("bucket", "key", name="pk_hints"),
    )
    op.create_table(
        "hint_totals",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("name", name="pk_hint_totals"),
    )


def _create_schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("archive_id", sa.BigInteger()),
        sa.Column("options", JSONB(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        _time("next_due"),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
        sa.UniqueConstraint("name", name="uq_schedules_name"),
        sa.ForeignKeyConstraint(
            ["archive_id"], ["archives.id"], name="fk_schedules_archive_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "schedule_runs",
        sa.Column("schedule_id", sa.BigInteger(), autoincrement=False, nullable=False),
        _time("due_at"),
        _time("fired_at"),
        sa.Column("job_id", sa.BigInteger()),
        sa.Column("note", sa.Text()),
        sa.PrimaryKeyConstraint("schedule_id", "due_at", name="pk_schedule_runs"),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name="fk_schedule_runs_schedule_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_schedule_runs_job_id", ondelete="SET NULL"),
    )


def _create_chores() -> None:
    op.create_table(
        "chores",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("status", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("report", JSONB()),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("job_id", name="pk_chores"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_chores_job_id", ondelete="CASCADE"),
    )


def _create_reindexed() -> None:
    op.create_table(
        "reindexed",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("item_no", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("image_id", sa.BigInteger()),
        sa.Column("status", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("job_id", "item_no", name="pk_reindexed"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_reindexed_job_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="fk_reindexed_image_id", ondelete="SET NULL"),
    )
    op.create_index("ix_reindexed_image_id", "reindexed", ["image_id"])
