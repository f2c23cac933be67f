"""All tables, declared once (SQLAlchemy Core). `migrations/` builds the same; a test compares the two."""

from __future__ import annotations

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _now(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable,
        server_default=None if nullable else func.now(),
    )


archives = Table(
    "archives",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    # One row update switches the index that questions are answered from (D12).
    Column("active_index_id", BigInteger, ForeignKey("indexes.id", use_alter=True)),
    _now("created_at"),
)

# The object store's inventory: a row is `uploading` before its PUT and `live` in the transaction of its first
# reference, so a crash leaves an unreferenced object and never a row without its picture (D13).
blobs = Table(
    "blobs",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("state", Text, nullable=False),  # uploading, live, deleting
    Column("size_bytes", BigInteger, nullable=False),
    Column("media_type", Text, nullable=False),
    _now("updated_at"),
)

images = Table(
    "images",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("sha256", Text, ForeignKey("blobs.sha256"), nullable=False),
    Column("source", Text, nullable=False),  # the name people know it by
    Column("uri", Text, nullable=False),  # where it was read from; the same uri with new bytes replaces it
    Column("caption", Text),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("retired", Boolean, nullable=False, server_default=text("false")),
    _now("created_at"),
    _now("updated_at"),
    # The hash comes first, so that the same index answers "who refers to this blob?" when blobs are removed.
    UniqueConstraint("sha256", "archive_id"),
    Index("ix_images_archive_id_uri", "archive_id", "uri"),
    # A search leaves out the retired images, which are few.
    Index("ix_images_retired", "archive_id", postgresql_where=text("retired")),
)

indexes = Table(
    "indexes",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("retriever", Text, nullable=False),  # the retriever's version: name and digest of its weights
    Column("dim", Integer, nullable=False),
    Column("state", Text, nullable=False),  # building, active, retired
    Column("has_hnsw", Boolean, nullable=False, server_default=text("false")),
    Column("spec", JSONB(none_as_null=True)),  # where its retriever's files are; NULL: it is the profile's
    Column("gate", JSONB(none_as_null=True)),  # what it was measured by before questions were answered from it
    _now("created_at"),
    _now("activated_at", nullable=True),
    _now("retired_at", nullable=True),
    # One active index for an archive, promised by the database.
    Index("uq_indexes_active", "archive_id", unique=True, postgresql_where=text("state = 'active'")),
)

# Partitioned by index, one partition for each (archive, retriever): to drop an index is to drop a table, a scan
# never meets another archive's rows, and dimensions may differ between partitions (D11, D12).
embeddings = Table(
    "embeddings",
    metadata,
    Column("index_id", BigInteger, primary_key=True, autoincrement=False),
    Column("image_id", BigInteger, primary_key=True, autoincrement=False),
    Column("vector", HALFVEC(), nullable=False),
    postgresql_partition_by="LIST (index_id)",
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("archive_id", BigInteger, ForeignKey("archives.id")),  # NULL: a chore that concerns all of them
    Column("state", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False, server_default=text("0")),  # higher goes first
    Column("spec", JSONB, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("idempotency_key", Text, unique=True),
    Column("spec_digest", Text, nullable=False),  # a reused key with another content is refused
    Column("error", Text),
    Column(
        "result", JSONB(none_as_null=True)
    ),  # keys of the result objects and the reconciled counts, written when the job ends
    _now("created_at"),
    _now("started_at", nullable=True),
    _now("finished_at", nullable=True),
    # Open jobs are few among many: dispatch and sweep look only at them.
    Index("ix_jobs_open", "priority", "id", postgresql_where=text("finished_at IS NULL")),
)

# Churns: rows are updated in place many times. Room on the page and no index on the lease columns keep those
# updates HOT, so dead rows go without VACUUM, which an index build can hold up (RELIABILITY 0.6).
shards = Table(
    "shards",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("run_no", Integer, nullable=False, server_default=text("1")),
    Column("lo", BigInteger, nullable=False),  # first input of the shard
    Column("hi", BigInteger, nullable=False),  # one past the last
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),  # claims that may have been poison
    Column("transient_attempts", Integer, nullable=False, server_default=text("0")),
    Column("epoch", Integer, nullable=False, server_default=text("0")),  # the fence: grows with every claim
    Column("worker", Text),
    _now("lease_until", nullable=True),
    _now("queued_at", nullable=True),
    _now("not_before", nullable=True),
    _now("finished_at", nullable=True),
    Column("error", Text),
    Column("queue", Text),  # NULL: the queue of its job's kind
    Column("is_last", Boolean, nullable=False, server_default=text("false")),  # waits until all others have ended
    Column("is_planned", Boolean, nullable=False, server_default=text("false")),  # its stage need not cut it smaller
    postgresql_with={"fillfactor": "70"},
)

workers = Table(
    "workers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("queues", ARRAY(Text), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("state", Text, nullable=False),  # live, draining
    Column("versions", JSONB, nullable=False),
    _now("started_at"),
    _now("seen_at"),
    postgresql_with={"fillfactor": "70"},
)

# Inputs of an ingest job.
files = Table(
    "files",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("file_no", BigInteger, primary_key=True, autoincrement=False),
    Column("source", Text, nullable=False),
    Column("uri", Text, nullable=False),
    Column("caption", Text),
    Column("status", Text),  # NULL until the file has an outcome
    Column("reason", Text),
    Column("image_id", BigInteger, ForeignKey("images.id", ondelete="SET NULL")),
)

# Inputs of an answer job. A line that is no valid question has no custom_id of its own and gets its `failed`
# answer in the transaction of the submit, so that totals always add up.
questions = Table(
    "questions",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("question_no", BigInteger, primary_key=True, autoincrement=False),
    Column("place", BigInteger, nullable=False),  # in the order of work, which the bounds of shards count
    Column("line", BigInteger, nullable=False),
    Column("custom_id", Text),
    Column("text", Text),
    Column("previous", JSONB(none_as_null=True)),  # of a refresh: what the job before said (stores/refreshes.py)
    UniqueConstraint("job_id", "custom_id"),
    Index("ix_questions_job_id_place", "job_id", "place"),
)

answers = Table(
    "answers",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("question_no", BigInteger, primary_key=True, autoincrement=False),
    Column("run_no", Integer, primary_key=True, autoincrement=False),
    Column("shard_id", BigInteger),
    Column("epoch", Integer),
    Column("status", Text, nullable=False),
    Column("text", Text),
    Column("confidence", REAL),
    Column("models", JSONB(none_as_null=True)),
    Column("note", Text),
    Column("error_code", Text),
    Column("error", Text),
    _now("created_at"),
    Column("candidates_digest", Text),  # of the pictures and captions that were judged, to find out what has changed
    Column("changes", ARRAY(Text)),  # of a refresh: why it was asked again; empty: nothing changed, it was taken over
    ForeignKeyConstraint(["job_id", "question_no"], ["questions.job_id", "questions.question_no"], ondelete="CASCADE"),
)

candidates = Table(
    "candidates",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("question_no", BigInteger, primary_key=True, autoincrement=False),
    Column("run_no", Integer, primary_key=True, autoincrement=False),
    Column("image_id", BigInteger, primary_key=True, autoincrement=False),
    Column("clip_rank", SmallInteger, nullable=False),
    Column("clip_score", REAL, nullable=False),
    Column("relevance", REAL, nullable=False),
    Column("evidence_no", SmallInteger),  # NULL: not kept
    ForeignKeyConstraint(
        ["job_id", "question_no", "run_no"],
        ["answers.job_id", "answers.question_no", "answers.run_no"],
        ondelete="CASCADE",
    ),
)

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
    Column("manifest", JSONB, nullable=False),  # every file of the model with its sha256 (D15)
    Column("base", Text),  # the base version that the adapter lies on; NULL: the base model as it is
    Column("training", JSONB(none_as_null=True)),  # of an adapter: its job, snapshot, settings, gate and figures
    _now("created_at"),
    _now("promoted_at", nullable=True),
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
    _now("promoted_at"),
    Index("ix_promotions_role_profile", "role", "profile", "id"),
)

# Inputs of a train job: one row, one input.
trainings = Table(
    "trainings",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("role", Text, nullable=False),
    Column("phase", Text, nullable=False, server_default=text("'waiting'")),  # for people: what it is doing now
    Column("steps_done", Integer, nullable=False, server_default=text("0")),
    Column("steps_total", Integer, nullable=False, server_default=text("0")),
    Column("status", Text),  # NULL until the training has an outcome
    Column("reason", Text),
    Column("version_id", BigInteger, ForeignKey("model_versions.id")),
    _now("updated_at"),
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
    _now("created_at"),
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
    _now("created_at"),
    _now("updated_at"),
    ForeignKeyConstraint(["job_id", "question_no"], ["questions.job_id", "questions.question_no"], ondelete="CASCADE"),
    Index("ix_noisy_cases_archive_id_state", "archive_id", "state"),
)

# Which part of a bucket feeds an archive: with pictures, or with question files.
bindings = Table(
    "bindings",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE"), nullable=False),
    Column("role", Text, nullable=False),  # pictures, inbox
    Column("bucket", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("options", JSONB, nullable=False),  # of an inbox: outbox and how its questions are answered
    _now("created_at"),
    _now("scanned_at", nullable=True),
    UniqueConstraint("bucket", "prefix"),
)

# What was last seen of each object under a binding, and what was done about it.
bound_objects = Table(
    "bound_objects",
    metadata,
    Column(
        "binding_id", BigInteger, ForeignKey("bindings.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    ),
    Column("key", Text(collation="C"), primary_key=True),  # in the order of bytes, as buckets list them
    Column("kind", Text, nullable=False),  # picture, caption, captions, questions, other
    Column("etag", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("caption", Text),  # what a caption object says; of a picture, what its own metadata say
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="SET NULL")),  # of a picture: only until its outcome
    Column("file_no", BigInteger),  # which file of that job a picture is
    Column("image_id", BigInteger, ForeignKey("images.id", ondelete="SET NULL")),  # what a picture became
    Column("reason", Text),  # why nothing was made of it
    _now("seen_at"),
    Index("ix_bound_objects_job_id", "job_id", postgresql_where=text("job_id IS NOT NULL")),
    Index("ix_bound_objects_image_id", "image_id"),
)

# Objects that something is said to have happened to. A hint only asks to look; the same one twice is one row.
hints = Table(
    "hints",
    metadata,
    Column("bucket", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    _now("received_at"),
    _now("not_before"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    # Grows with every further event: a hint is done only if none came while its object was looked at.
    Column("repeats", BigInteger, nullable=False, server_default=text("0")),
)

# Counters for people: received, repeated, unbound, refused, …
hint_totals = Table(
    "hint_totals",
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    _now("updated_at"),
)

schedules = Table(
    "schedules",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("action", Text, nullable=False),
    Column("archive_id", BigInteger, ForeignKey("archives.id", ondelete="CASCADE")),  # NULL: all archives
    Column("options", JSONB, nullable=False),
    Column("cron", Text, nullable=False),
    Column("timezone", Text, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    _now("next_due"),
    _now("created_at"),
)

# A due time fires once: whoever inserts its row first, fires (D9).
schedule_runs = Table(
    "schedule_runs",
    metadata,
    Column(
        "schedule_id", BigInteger, ForeignKey("schedules.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    ),
    Column("due_at", DateTime(timezone=True), primary_key=True, server_default=func.now()),
    _now("fired_at"),
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("note", Text),
)

# Inputs of a chore job: one row, one input.
chores = Table(
    "chores",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("action", Text, nullable=False),
    Column("status", Text),  # NULL until the chore has an outcome
    Column("reason", Text),
    Column("report", JSONB(none_as_null=True)),
    _now("updated_at"),
)

# Inputs of a reindex job: the images to embed and, last and without an image, the gate.
reindexed = Table(
    "reindexed",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("item_no", BigInteger, primary_key=True, autoincrement=False),
    Column("image_id", BigInteger, ForeignKey("images.id", ondelete="SET NULL"), index=True),
    Column("status", Text),  # NULL until the item has an outcome
    Column("reason", Text),
)
