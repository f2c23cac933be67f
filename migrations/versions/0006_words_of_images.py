"""What the archive knows beside the pictures: words of captions, metadata, filters; where candidates came from.

Jobs that exist keep what they were submitted with: pictures alone, all candidates reranked.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_FORMER_OPTIONS = '{"retrieval": "picture", "depth": "fixed"}'


def upgrade() -> None:
    """The words themselves are written after the migrations (migrations/__init__.py), also for later versions."""
    op.add_column("archives", sa.Column("words_version", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("images", sa.Column("metadata", postgresql.JSONB()))
    op.add_column("images", sa.Column("embedded", postgresql.JSONB()))
    op.execute(
        "CREATE INDEX ix_images_folded_metadata ON images USING gin ("
        "CAST(regexp_replace(lower(normalize(CAST(metadata AS text), NFD) COLLATE \"pg_c_utf8\"), "
        "'[\\u0300-\\u036f]', '', 'g') AS jsonb) jsonb_path_ops)"
    )
    op.add_column("files", sa.Column("metadata", postgresql.JSONB()))
    op.add_column("questions", sa.Column("filter", postgresql.JSONB()))
    op.create_table(
        "image_words",
        sa.Column("image_id", sa.BigInteger(), sa.ForeignKey("images.id", ondelete="CASCADE"), autoincrement=False),
        sa.Column("archive_id", sa.BigInteger(), nullable=False),
        sa.Column("words", postgresql.TSVECTOR(), nullable=False),
        sa.Column("length", postgresql.REAL(), nullable=False),
        sa.PrimaryKeyConstraint("image_id", name="pk_image_words"),
    )
    op.create_index(
        "ix_image_words_words",
        "image_words",
        ["words"],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )
    op.create_table(
        "word_counts",
        sa.Column("archive_id", sa.BigInteger(), sa.ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
        sa.Column("word", sa.Text(collation="C"), nullable=False),
        sa.Column("images", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_word_counts_archive_id_word", "word_counts", ["archive_id", "word"])
    op.create_table(
        "vocabulary",
        sa.Column("word", sa.Text(collation="C")),
        sa.Column("variants", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("word", name="pk_vocabulary"),
    )
    op.create_index(
        "ix_vocabulary_variants",
        "vocabulary",
        ["variants"],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )
    op.alter_column("candidates", "relevance", nullable=True)
    op.add_column("candidates", sa.Column("origin", sa.Text(), nullable=False, server_default=sa.text("'picture'")))
    op.add_column("candidates", sa.Column("caption_rank", sa.SmallInteger()))
    op.add_column("candidates", sa.Column("caption_score", postgresql.REAL()))
    kept = sa.text("evidence_no IS NOT NULL")
    op.create_index("ix_candidates_image_id", "candidates", ["image_id"], postgresql_where=kept)
    op.execute(
        sa.text(
            "UPDATE jobs SET spec = jsonb_set(spec, '{options}', spec -> 'options' || CAST(:former AS jsonb)) "
            "WHERE kind = 'answer' AND jsonb_typeof(spec -> 'options') = 'object'"
        ).bindparams(former=_FORMER_OPTIONS)
    )


def downgrade() -> None:
    """Candidates that were not reranked are removed; metadata and filters are lost."""
    op.execute(
        "UPDATE jobs SET spec = jsonb_set(spec, '{options}', (spec -> 'options') - '{retrieval,depth,filter}'::text[]) "
        "WHERE kind = 'answer' AND jsonb_typeof(spec -> 'options') = 'object'"
    )
    op.drop_index("ix_candidates_image_id", "candidates")
    op.execute("DELETE FROM candidates WHERE relevance IS NULL")
    for column in ("caption_score", "caption_rank", "origin"):
        op.drop_column("candidates", column)
    op.alter_column("candidates", "relevance", nullable=False)
    for table in ("vocabulary", "word_counts", "image_words"):
        op.drop_table(table)
    op.drop_column("questions", "filter")
    op.drop_column("files", "metadata")
    op.drop_column("images", "embedded")
    op.drop_column("images", "metadata")
    op.drop_column("archives", "words_version")
