"""Thumbnails of pictures, by which near-duplicates are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A thumbnail is made when a training first needs it."""
    op.add_column("blobs", sa.Column("thumbnail", sa.LargeBinary()))


def downgrade() -> None:
    """Thumbnails can be made again."""
    op.drop_column("blobs", "thumbnail")
