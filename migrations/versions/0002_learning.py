"""What learning needs: labels, noisy cases, train jobs, adapters as model versions, and who was champion when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables, and the columns of adapters. Champions of before have no promotion: nothing to roll back to."""
    op.add_column("model_versions", sa.Column("base", sa.Text()))
    op.add_column("model_versions", sa.Column("training", JSONB()))
    _create_promotions()
    _create_trainings()
    _create_labels()
    _create_noisy_cases()


def downgrade() -> None:
    """Back to base models: adapters and all that was said about answers are forgotten, train jobs with them."""
    for table in ("noisy_cases", "labels", "trainings", "promotions"):
        op.drop_table(table)
    op.execute("DELETE FROM jobs WHERE kind = 'train'")
    op.execute("DELETE FROM model_versions WHERE adapter_sha256 IS NOT NULL")
    op.execute("UPDATE model_versions SET state = 'candidate' WHERE state = 'challenger'")
    op.drop_column("model_versions", "training")
    op.drop_column("model_versions", "base")


def _now(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def _create_promotions() -> None:
    op.create_table(
        "promotions",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("replaced_id", sa.BigInteger()),
        sa.Column("reason", sa.Text(), nullable=False),
        _now("promoted_at"),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
        sa.ForeignKeyConstraint(["version_id"], ["model_versions.id"], name="fk_promotions_version_id"),
        sa.ForeignKeyConstraint(["replaced_id"], ["model_versions.id"], name="fk_promotions_replaced_id"),
    )
    op.create_index("ix_promotions_role_profile", "promotions", ["role", "profile", "id"])


def _create_trainings() -> None:
    op.create_table(
        "trainings",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False, server_default=sa.text("'waiting'")),
        sa.Column("steps_done", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("steps_total", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("status", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("version_id", sa.BigInteger()),
        _now("updated_at"),
        sa.PrimaryKeyConstraint("job_id", name="pk_trainings"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_trainings_job_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version_id"], ["model_versions.id"], name="fk_trainings_version_id"),
    )


def _create_labels() -> None:
    op.create_table(
        "labels",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("archive_id", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("question_no", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text()),
        sa.Column("relevant", ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("irrelevant", ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        _now("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_labels"),
        sa.ForeignKeyConstraint(["archive_id"], ["archives.id"], name="fk_labels_archive_id", ondelete="CASCADE"),
        _question_key("fk_labels_job_id_question_no"),
    )
    op.create_index("ix_labels_question", "labels", ["job_id", "question_no", "id"])
    op.create_index("ix_labels_archive_id_created_at", "labels", ["archive_id", "created_at"])


def _create_noisy_cases() -> None:
    op.create_table(
        "noisy_cases",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("question_no", sa.BigInteger(), nullable=False),
        sa.Column("archive_id", sa.BigInteger(), nullable=False),
        sa.Column("reasons", ARRAY(sa.Text()), nullable=False),
        sa.Column("details", JSONB(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        _now("created_at"),
        _now("updated_at"),
        sa.PrimaryKeyConstraint("job_id", "question_no", name="pk_noisy_cases"),
        sa.ForeignKeyConstraint(["archive_id"], ["archives.id"], name="fk_noisy_cases_archive_id", ondelete="CASCADE"),
        _question_key("fk_noisy_cases_job_id_question_no"),
    )
    op.create_index("ix_noisy_cases_archive_id_state", "noisy_cases", ["archive_id", "state"])


def _question_key(name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["job_id", "question_no"], ["questions.job_id", "questions.question_no"], name=name, ondelete="CASCADE"
    )
