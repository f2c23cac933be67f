"""What archives keep and forget: erasing, renaming, retention."""

from __future__ import annotations

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Each part has a function of its own."""


def downgrade() -> None:
    """Undo the parts in the reverse order."""
