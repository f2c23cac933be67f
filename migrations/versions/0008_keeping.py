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
    _upgrade_erasing()
    _upgrade_captions()
    _upgrade_pages()
    _upgrade_reading()


def downgrade() -> None:
    """Undo the parts in the reverse order."""
    _downgrade_reading()
    _downgrade_pages()
    _downgrade_captions()
    _downgrade_erasing()


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


def _upgrade_erasing() -> None:
    kept = sa.text("image_id IS NOT NULL")
    op.create_index("ix_files_image_id", "files", ["image_id"], postgresql_where=kept)
    op.create_table(
        "erasures",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("archive_id", sa.BigInteger()),
        sa.Column("target_id", sa.BigInteger()),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("counts", JSONB(), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("pending", JSONB()),
        _now("created_at"),
        _now("updated_at"),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_erasures"),
    )
    still_open = sa.text("finished_at IS NULL")
    op.create_index("ix_erasures_open", "erasures", ["id"], postgresql_where=still_open)
    op.create_table(
        "held_removals",
        sa.Column("archive_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("gone", sa.BigInteger(), nullable=False),
        sa.Column("pictures", sa.BigInteger(), nullable=False),
        _now("noticed_at"),
        sa.PrimaryKeyConstraint("archive_id", "origin", name="pk_held_removals"),
        sa.ForeignKeyConstraint(
            ["archive_id"], ["archives.id"], name="fk_held_removals_archive_id", ondelete="CASCADE"
        ),
    )


def _downgrade_erasing() -> None:
    """The lines about what was erased are lost."""
    op.drop_table("held_removals")
    op.drop_table("erasures")
    op.drop_index("ix_files_image_id", "files")


def _now(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())


def _upgrade_captions() -> None:
    """The captions of an image by the files that give them, and what the lines of a question file have besides."""
    op.add_column("images", sa.Column("captions", JSONB()))
    op.add_column("questions", sa.Column("note", sa.Text()))
    op.add_column("questions", sa.Column("given", JSONB()))


def _downgrade_captions() -> None:
    op.drop_column("questions", "given")
    op.drop_column("questions", "note")
    op.drop_column("images", "captions")


def _upgrade_pages() -> None:
    """The pages of a document are found by the uri of the document."""
    op.execute(
        "CREATE INDEX ix_images_document ON images (archive_id, split_part(uri, '#page=', 1)) "
        "WHERE strpos(uri, '#page=') > 0"
    )


def _downgrade_pages() -> None:
    op.drop_index("ix_images_document", "images")
