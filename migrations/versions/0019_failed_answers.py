"""An index of the answers that failed, by which the pages of large jobs find them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """It has the failed answers alone, so it is small; building it reads the table once."""
    op.create_index(
        "ix_answers_failed",
        "answers",
        ["job_id", "question_no"],
        postgresql_where=sa.text("status IN ('failed', 'dead')"),
    )


def downgrade() -> None:
    """Pages of failed questions are slower again."""
    op.drop_index("ix_answers_failed", "answers")
