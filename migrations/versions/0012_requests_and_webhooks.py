"""Interactive requests of the HTTP API, and webhooks that report ended jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_TABLES = ("requests", "webhooks", "deliveries")


def upgrade() -> None:
    """The policies name roles, so `ragllava migrate` makes them when it makes the roles."""
    _create_requests()
    _create_webhooks()
    _create_deliveries()
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")


def downgrade() -> None:
    """Requests end with whoever waits for them; webhooks have to be made again."""
    for table in reversed(_TABLES):
        op.drop_table(table)
    op.execute("DELETE FROM jobs WHERE kind = 'request'")


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _create_requests() -> None:
    op.create_table(
        "requests",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("body", JSONB()),
        sa.Column("result", JSONB()),
        sa.Column("status", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("job_id", name="pk_requests"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_requests_job_id", ondelete="CASCADE"),
        postgresql_with={"fillfactor": "70"},
    )


def _create_webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("archive_id", sa.BigInteger()),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("kinds", ARRAY(sa.Text()), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        _moment("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
        sa.ForeignKeyConstraint(["archive_id"], ["archives.id"], name="fk_webhooks_archive_id", ondelete="CASCADE"),
    )
    op.create_index("ix_webhooks_archive_id", "webhooks", ["archive_id"])


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("webhook_id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'waiting'")),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        _moment("not_before"),
        sa.Column("error", sa.Text()),
        _moment("created_at"),
        _moment("delivered_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name="fk_deliveries_webhook_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_deliveries_job_id", ondelete="CASCADE"),
        sa.UniqueConstraint(
            "webhook_id", "job_id", "finished_at", name="uq_deliveries_webhook_id_job_id_finished_at"
        ),
        postgresql_with={"fillfactor": "70"},
    )
    waiting = sa.text("state = 'waiting'")
    op.create_index("ix_deliveries_waiting", "deliveries", ["not_before"], postgresql_where=waiting)
    op.create_index("ix_deliveries_job_id", "deliveries", ["job_id"])
