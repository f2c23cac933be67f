"""What is said beside pictures: of single pages of documents, and, besides captions, in sidecars in buckets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Files of earlier jobs have none; sidecars are read again when they change."""
    op.add_column("files", sa.Column("pages", JSONB()))
    op.add_column("bound_objects", sa.Column("metadata", JSONB()))


def downgrade() -> None:
    """Images keep the captions and the metadata that they have."""
    op.drop_column("bound_objects", "metadata")
    op.drop_column("files", "pages")
