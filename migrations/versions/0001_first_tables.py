"""The first tables: archives, images, indexes, embeddings, jobs, shards, inputs, answers, model versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything. The order follows the foreign keys."""
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _create_archives_and_images()
    _create_indexes_and_embeddings()
    _create_jobs_and_shards()
    _create_files()
    _create_questions_and_answers()
    _create_model_versions()


def downgrade() -> None:
    """Drop everything of ours. The extension stays: other tables of the database may use it."""
    for table in ("candidates", "answers", "questions", "files", "shards", "jobs", "workers", "model_versions"):
        op.drop_table(table)
    op.drop_table("embeddings")  # and all its partitions
    op.drop_constraint("fk_archives_active_index_id", "archives", type_="foreignkey")
    for table in ("indexes", "images", "blobs", "archives"):
        op.drop_table(table)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False)


def _key(name: str) -> sa.Column[int]:
    """One column of a primary key of several."""
    return sa.Column(name, sa.BigInteger(), autoincrement=False, nullable=False)


def _time(name: str) -> sa.Column[object]:
    """A moment that every row has, by the database's clock."""
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)


def _later(name: str) -> sa.Column[object]:
    """A moment that is not known yet when the row is written."""
    return sa.Column(name, sa.DateTime(timezone=True))


def _create_archives_and_images() -> None:
    op.create_table(
        "archives",
        _id(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("active_index_id", sa.BigInteger()),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_archives"),
        sa.UniqueConstraint("name", name="uq_archives_name"),
    )
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("sha256", name="pk_blobs"),
    )
    op.create_table(
        "images",
        _id(),
        sa.Column("archive_id", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("caption", sa.Text()),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.Column("retired", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
        sa.UniqueConstraint("sha256", "archive_id", name="uq_images_sha256_archive_id"),
        sa.ForeignKeyConstraint(
            ["archive_id"], ["archives.id"], name="fk_images_archive_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name="fk_images_sha256"),
    )
    op.create_index("ix_images_archive_id_uri", "images", ["archive_id", "uri"])
    op.create_index("ix_images_retired", "images", ["archive_id"], postgresql_where=sa.text("retired"))


def _create_indexes_and_embeddings() -> None:
    op.create_table(
        "indexes",
        _id(),
        sa.Column("archive_id", sa.BigInteger(), nullable=False),
        sa.Column("retriever", sa.Text(), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("has_hnsw", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        _time("created_at"),
        _later("activated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_indexes"),
        sa.ForeignKeyConstraint(
            ["archive_id"], ["archives.id"], name="fk_indexes_archive_id", ondelete="CASCADE"
        ),
    )
    op.create_index(
        "uq_indexes_living",
        "indexes",
        ["archive_id", "retriever"],
        unique=True,
        postgresql_where=sa.text("state <> 'retired'"),
    )
    op.create_foreign_key(
        "fk_archives_active_index_id", "archives", "indexes", ["active_index_id"], ["id"]
    )
    op.create_table(
        "embeddings",
        _key("index_id"),
        _key("image_id"),
        sa.Column("vector", HALFVEC(), nullable=False),
        sa.PrimaryKeyConstraint("index_id", "image_id", name="pk_embeddings"),
        postgresql_partition_by="LIST (index_id)",
    )
    # Never out of line (TOAST): an exact scan would be several times slower (docs/reliability.md D11).
    op.execute("ALTER TABLE embeddings ALTER COLUMN vector SET STORAGE PLAIN")


def _create_jobs_and_shards() -> None:
    op.create_table(
        "jobs",
        _id(),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("archive_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("spec", JSONB(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("spec_digest", sa.Text(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("result", JSONB()),
        _time("created_at"),
        _later("started_at"),
        _later("finished_at"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
        sa.ForeignKeyConstraint(["archive_id"], ["archives.id"], name="fk_jobs_archive_id"),
    )
    op.create_index(
        "ix_jobs_open", "jobs", ["priority", "id"], postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_table(
        "shards",
        _id(),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("run_no", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("lo", sa.BigInteger(), nullable=False),
        sa.Column("hi", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("transient_attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker", sa.Text()),
        _later("lease_until"),
        _later("queued_at"),
        _later("not_before"),
        _later("finished_at"),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_shards"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_shards_job_id", ondelete="CASCADE"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("ix_shards_job_id", "shards", ["job_id"])
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("queues", ARRAY(sa.Text()), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("versions", JSONB(), nullable=False),
        _time("started_at"),
        _time("seen_at"),
        sa.PrimaryKeyConstraint("name", name="pk_workers"),
        postgresql_with={"fillfactor": "70"},
    )


def _create_files() -> None:
    op.create_table(
        "files",
        _key("job_id"),
        _key("file_no"),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("caption", sa.Text()),
        sa.Column("status", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("image_id", sa.BigInteger()),
        sa.PrimaryKeyConstraint("job_id", "file_no", name="pk_files"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_files_job_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["image_id"], ["images.id"], name="fk_files_image_id", ondelete="SET NULL"
        ),
    )


def _create_questions_and_answers() -> None:
    op.create_table(
        "questions",
        _key("job_id"),
        _key("question_no"),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("custom_id", sa.Text()),
        sa.Column("text", sa.Text()),
        sa.PrimaryKeyConstraint("job_id", "question_no", name="pk_questions"),
        sa.UniqueConstraint("job_id", "custom_id", name="uq_questions_job_id_custom_id"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_questions_job_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "answers",
        _key("job_id"),
        _key("question_no"),
        sa.Column("run_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("shard_id", sa.BigInteger()),
        sa.Column("epoch", sa.Integer()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("text", sa.Text()),
        sa.Column("confidence", REAL()),
        sa.Column("models", JSONB()),
        sa.Column("note", sa.Text()),
        sa.Column("error_code", sa.Text()),
        sa.Column("error", sa.Text()),
        _time("created_at"),
        sa.PrimaryKeyConstraint("job_id", "question_no", "run_no", name="pk_answers"),
        sa.ForeignKeyConstraint(
            ["job_id", "question_no"],
            ["questions.job_id", "questions.question_no"],
            name="fk_answers_job_id_question_no",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "candidates",
        _key("job_id"),
        _key("question_no"),
        sa.Column("run_no", sa.Integer(), autoincrement=False, nullable=False),
        _key("image_id"),
        sa.Column("clip_rank", sa.SmallInteger(), nullable=False),
        sa.Column("clip_score", REAL(), nullable=False),
        sa.Column("relevance", REAL(), nullable=False),
        sa.Column("evidence_no", sa.SmallInteger()),
        sa.PrimaryKeyConstraint("job_id", "question_no", "run_no", "image_id", name="pk_candidates"),
        sa.ForeignKeyConstraint(
            ["job_id", "question_no", "run_no"],
            ["answers.job_id", "answers.question_no", "answers.run_no"],
            name="fk_candidates_job_id_question_no_run_no",
            ondelete="CASCADE",
        ),
    )


def _create_model_versions() -> None:
    op.create_table(
        "model_versions",
        _id(),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("threshold", sa.Float()),
        sa.Column("threshold_curve", JSONB()),
        sa.Column("adapter_sha256", sa.Text()),
        sa.Column("manifest", JSONB(), nullable=False),
        _time("created_at"),
        _later("promoted_at"),
        sa.PrimaryKeyConstraint("id", name="pk_model_versions"),
        sa.UniqueConstraint("role", "profile", "name", name="uq_model_versions_role_profile_name"),
    )
    op.create_index(
        "uq_model_versions_champion",
        "model_versions",
        ["role", "profile"],
        unique=True,
        postgresql_where=sa.text("state = 'champion'"),
    )
