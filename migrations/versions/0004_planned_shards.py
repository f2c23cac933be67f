"""Shards of questions that share candidates: a question's place in the order of work, and shards that were planned."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Questions of old jobs are worked on in the order of their lines."""
    op.add_column("questions", sa.Column("place", sa.BigInteger()))
    op.execute("UPDATE questions SET place = question_no")
    op.alter_column("questions", "place", nullable=False)
    op.create_index("ix_questions_job_id_place", "questions", ["job_id", "place"])
    op.add_column("shards", sa.Column("is_planned", sa.Boolean(), nullable=False, server_default=sa.text("false")))


def downgrade() -> None:
    """Bounds of shards are then read as numbers of questions again, so no answer job may be open."""
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM jobs WHERE kind = 'answer' AND finished_at IS NULL")):
        raise RuntimeError("answer jobs are open; let them end, or cancel them, before the database goes back")
    op.drop_column("shards", "is_planned")
    op.drop_index("ix_questions_job_id_place", "questions")
    op.drop_column("questions", "place")
