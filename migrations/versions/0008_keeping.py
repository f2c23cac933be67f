"""What archives keep and forget: erasing, renaming, retention."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Each part has a function of its own."""
    _upgrade_reading()


def downgrade() -> None:
    """Undo the parts in the reverse order."""
    _downgrade_reading()


def _upgrade_reading() -> None:
    """Jobs have a name and an owner; images are found by their names."""
    op.create_index("ix_images_source", "images", ["source"], postgresql_using="hash")
    op.add_column("jobs", sa.Column("name", sa.Text()))
    op.add_column("jobs", sa.Column("owner", sa.Text()))


def _downgrade_reading() -> None:
    """Names and owners are lost."""
    op.drop_index("ix_images_source", "images")
    op.drop_column("jobs", "owner")
    op.drop_column("jobs", "name")
