"""What archives keep and forget: erasing, renaming, retention."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Each part has a function of its own."""
    _upgrade_captions()


def downgrade() -> None:
    """Undo the parts in the reverse order."""
    _downgrade_captions()


def _upgrade_captions() -> None:
    """The captions of an image by the files that give them, and what the lines of a question file have besides."""
    op.add_column("images", sa.Column("captions", JSONB()))
    op.add_column("questions", sa.Column("note", sa.Text()))
    op.add_column("questions", sa.Column("given", JSONB()))


def _downgrade_captions() -> None:
    op.drop_column("questions", "given")
    op.drop_column("questions", "note")
    op.drop_column("images", "captions")
