"""What archives keep and forget: erasing, renaming, retention."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Each part has a function of its own."""
    _upgrade_pages()


def downgrade() -> None:
    """Undo the parts in the reverse order."""
    _downgrade_pages()


def _upgrade_pages() -> None:
    """The pages of a document are found by the uri of the document."""
    op.execute(
        "CREATE INDEX ix_images_document ON images (archive_id, split_part(uri, '#page=', 1)) "
        "WHERE strpos(uri, '#page=') > 0"
    )


def _downgrade_pages() -> None:
    op.drop_index("ix_images_document", "images")
