"""Reviewers in the browser: who gave a label, leases on cases, what can be undone; losses of running trainings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_TABLES = ("reviews", "training_steps")
_CASE_COLUMNS = ("version", "locked_by", "locked_tab", "locked_until")


def upgrade() -> None:
    """The policies name roles, so `ragllava migrate` makes them when it makes the roles."""
    op.add_column("labels", sa.Column("reviewer", sa.Text()))
    op.add_column("noisy_cases", sa.Column("version", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.add_column("noisy_cases", sa.Column("locked_by", sa.Text()))
    op.add_column("noisy_cases", sa.Column("locked_tab", sa.Text()))
    op.add_column("noisy_cases", sa.Column("locked_until", sa.DateTime(timezone=True)))
    op.drop_index("ix_noisy_cases_archive_id_state", "noisy_cases")
    queue: list[str | sa.TextClause] = ["archive_id", "state", sa.text("job_id DESC"), "question_no"]
    op.create_index("ix_noisy_cases_queue", "noisy_cases", queue)
    held = sa.text("locked_by IS NOT NULL")
    op.create_index("ix_noisy_cases_locked_by", "noisy_cases", ["locked_by", "locked_tab"], postgresql_where=held)
    _create_reviews()
    _create_training_steps()
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")


def downgrade() -> None:
    """Labels stay; who gave them, and what can be undone, is lost."""
    for table in reversed(_TABLES):
        op.drop_table(table)
    op.drop_index("ix_noisy_cases_locked_by", "noisy_cases")
    op.drop_index("ix_noisy_cases_queue", "noisy_cases")
    op.create_index("ix_noisy_cases_archive_id_state", "noisy_cases", ["archive_id", "state"])
    for column in reversed(_CASE_COLUMNS):
        op.drop_column("noisy_cases", column)
    op.drop_column("labels", "reviewer")


def _create_reviews() -> None:
    op.create_table(
        "reviews",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("archive_id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("question_no", sa.BigInteger(), nullable=False),
        sa.Column("reviewer", sa.Text(), nullable=False),
        sa.Column("save_id", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text()),
        sa.Column("relevant", ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("irrelevant", ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("label_id", sa.BigInteger()),
        sa.Column("undo", JSONB()),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("id", name="pk_reviews"),
        sa.ForeignKeyConstraint(["archive_id"], ["archives.id"], name="fk_reviews_archive_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["job_id", "question_no"],
            ["questions.job_id", "questions.question_no"],
            name="fk_reviews_job_id_question_no",
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("archive_id", "reviewer", "save_id", name="uq_reviews_archive_id_reviewer_save_id"),
    )
    op.create_index("ix_reviews_question", "reviews", ["job_id", "question_no", "id"])
    op.create_index("ix_reviews_archive_id_created_at", "reviews", ["archive_id", "created_at"])


def _create_training_steps() -> None:
    op.create_table(
        "training_steps",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("loss", sa.Float(), nullable=False),
        sa.Column("learning_rate", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "step", name="pk_training_steps"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_training_steps_job_id", ondelete="CASCADE"),
    )
