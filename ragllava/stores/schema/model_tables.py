"""Model versions, and what they learn from."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from ragllava.stores.schema.base import metadata, moment

model_versions = Table(
    "model_versions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("role", Text, nullable=False),
    Column("name", Text, nullable=False),  # base model and digest, or the adapter's own name
    Column("profile", Text, nullable=False),
    Column("state", Text, nullable=False),  # candidate, challenger, champion, retired
    Column("prompt", Text, nullable=False),
    Column("threshold", Float),  # η; rerankers only
    Column("threshold_curve", JSONB(none_as_null=True)),  # what η was fitted on, with its precision and recall
    Column("adapter_sha256", Text),  # NULL: the base model as it is
    Column("manifest", JSONB, nullable=False),  # every file of the model with its sha256 (docs/reliability.md D15)
    Column("base", Text),  # the base version that the adapter lies on; NULL: the base model as it is
    Column("training", JSONB(none_as_null=True)),  # of an adapter: its job, snapshot, settings, gate and figures
    moment("created_at"),
    moment("promoted_at", nullable=True),
    UniqueConstraint("role", "profile", "name"),
    # One champion for a role and profile, promised by the database.
    Index(
        "uq_model_versions_champion",
        "role",
        "profile",
        unique=True,
        postgresql_where=text("state = 'champion'"),
    ),
)

# Who played a role when: a rollback goes one row back. `replaced_id` is NULL for the first champion.
promotions = Table(
    "promotions",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("role", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("version_id", BigInteger, ForeignKey("model_versions.id"), nullable=False),
    Column("replaced_id", BigInteger, ForeignKey("model_versions.id")),
    Column("reason", Text, nullable=False),
    moment("promoted_at"),
    Index("ix_promotions_role_profile", "role", "profile", "id"),
)

# What people, or a gold standard, said about an answer. Nothing is overwritten: the newest label of a question counts.
labels = Table(
    "labels",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("job_id", BigInteger, nullable=False),
    Column("question_no", BigInteger, nullable=False),
    Column("verdict", Text, nullable=False),  # right, wrong
    Column("answer", Text),  # the right one; NULL: not said
    Column("relevant", ARRAY(BigInteger), nullable=False),  # ids of images
    Column("irrelevant", ARRAY(BigInteger), nullable=False),
    Column("source", Text, nullable=False),  # person, gold
    moment("created_at"),
    ForeignKeyConstraint(["job_id", "question_no"], ["questions.job_id", "questions.question_no"], ondelete="CASCADE"),
    Index("ix_labels_question", "job_id", "question_no", "id"),
    Index("ix_labels_archive_id_created_at", "archive_id", "created_at"),
)

# Logged questions whose candidates or answer look wrong, or were said to be wrong, with all the reasons.
noisy_cases = Table(
    "noisy_cases",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("question_no", BigInteger, primary_key=True, autoincrement=False),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("reasons", ARRAY(Text), nullable=False),
    Column("details", JSONB, nullable=False),  # a sentence or figures for each reason
    Column("state", Text, nullable=False),  # open, labelled, dismissed
    moment("created_at"),
    moment("updated_at"),
    ForeignKeyConstraint(["job_id", "question_no"], ["questions.job_id", "questions.question_no"], ondelete="CASCADE"),
    Index("ix_noisy_cases_archive_id_state", "archive_id", "state"),
)
