"""What keeps the machinery going: open inputs, turns, workers, isolated faults."""

from __future__ import annotations

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Each part of the machinery has a function of its own."""


def downgrade() -> None:
    """Undo the parts in the reverse order."""
