"""Questions that carry a picture, the tokens of answers, and those of batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0015"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What is there has no pictures, and its tokens are not known."""
    op.add_column("questions", sa.Column("picture", sa.Text()))
    op.create_foreign_key("fk_questions_picture", "questions", "blobs", ["picture"], ["sha256"])
    op.create_index(
        "ix_questions_picture", "questions", ["picture"], postgresql_where=sa.text("picture IS NOT NULL")
    )
    op.add_column("answers", sa.Column("prompt_tokens", sa.Integer()))
    op.add_column("answers", sa.Column("completion_tokens", sa.Integer()))
    op.add_column("requests", sa.Column("code", sa.Text()))
    op.add_column("batches", sa.Column("usage", JSONB()))


def downgrade() -> None:
    """Questions lose their pictures, whose objects `gc` finds; counts of tokens are lost."""
    op.drop_column("batches", "usage")
    op.drop_column("requests", "code")
    op.drop_column("answers", "completion_tokens")
    op.drop_column("answers", "prompt_tokens")
    op.drop_index("ix_questions_picture", "questions")
    op.drop_constraint("fk_questions_picture", "questions", type_="foreignkey")
    op.drop_column("questions", "picture")
