"""What keeps the machinery going: open inputs, turns, workers, isolated faults."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Each part of the machinery has a function of its own."""
    _upgrade_turns()


def downgrade() -> None:
    """Undo the parts in the reverse order."""
    _downgrade_turns()


def _upgrade_turns() -> None:
    """What a worker cannot do, and when the last tick ended."""
    refused = sa.Column("refused", postgresql.JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb"))
    op.add_column("workers", refused)
    op.create_table(
        "ticks",
        sa.Column("name", sa.Text()),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("name", name="pk_ticks"),
        postgresql_with={"fillfactor": "70"},
    )


def _downgrade_turns() -> None:
    op.drop_table("ticks")
    op.drop_column("workers", "refused")
