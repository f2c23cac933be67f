"""The pictures that callers ask with, each once for its caller, so that their bytes are counted without their history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None
expands = True


def upgrade() -> None:
    """Pictures of the questions that are there belong to the owners of their jobs."""
    op.create_table(
        "asked_pictures",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("sha256", "owner", name="pk_asked_pictures"),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name="fk_asked_pictures_sha256", ondelete="CASCADE"),
        postgresql_with={"fillfactor": "70"},
    )
    op.execute("""
        INSERT INTO asked_pictures (sha256, owner, size_bytes)
        SELECT DISTINCT b.sha256, coalesce(j.owner, ''), b.size_bytes
        FROM questions q JOIN jobs j ON j.id = q.job_id JOIN blobs b ON b.sha256 = q.picture
        WHERE q.picture IS NOT NULL
    """)
    op.create_index("ix_asked_pictures_owner", "asked_pictures", ["owner"], postgresql_include=["size_bytes"])
    is_lent = sa.text("until IS NOT NULL")
    op.create_index("ix_asked_pictures_until", "asked_pictures", ["until"], postgresql_where=is_lent)
    op.create_index(
        "ix_uploads_stored",
        "uploads",
        ["owner"],
        postgresql_include=["size_bytes"],
        postgresql_where=sa.text("job_id IS NULL"),
    )
    op.execute("ALTER TABLE asked_pictures ENABLE ROW LEVEL SECURITY")


def downgrade() -> None:
    """The pictures are counted by the questions again."""
    op.drop_index("ix_uploads_stored", "uploads")
    op.drop_table("asked_pictures")
