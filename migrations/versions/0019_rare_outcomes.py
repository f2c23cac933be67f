"""Indexes of the answers that failed and of the files that were rejected, by which pages find them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None
expands = True


def upgrade() -> None:
    """They have few rows each, but that of addresses; building them reads both tables."""
    op.create_index(
        "ix_answers_failed",
        "answers",
        ["job_id", "question_no"],
        postgresql_where=sa.text("status IN ('failed', 'dead', 'expired')"),
    )
    op.create_index(
        "ix_files_outcomes",
        "files",
        ["job_id"],
        postgresql_where=sa.text("status IN ('rejected', 'dead') OR reason IS NOT NULL"),
    )
    op.create_index(
        "ix_files_uri", "files", ["uri"], postgresql_using="hash", postgresql_where=sa.text("uri <> 'erased:'")
    )


def downgrade() -> None:
    """Pages of failed questions and rejected files are slower again."""
    op.drop_index("ix_files_uri", "files")
    op.drop_index("ix_files_outcomes", "files")
    op.drop_index("ix_answers_failed", "answers")
