"""Jobs, their shards, the workers; what goes into each kind of job, and what comes out."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL

from ragllava.stores.schema.base import metadata, moment

jobs = Table(
    "jobs",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("archive_id", BigInteger, ForeignKey("archives.id")),  # NULL: a maintenance task that concerns all of them
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
    moment("created_at"),
    moment("started_at", nullable=True),
    moment("finished_at", nullable=True),
    # Open jobs are few among many: dispatch and sweep look only at them.
    Index("ix_jobs_open", "priority", "id", postgresql_where=text("finished_at IS NULL")),
)

# Churns: rows are updated in place many times. Room on the page and no index on the lease columns keep those
# updates HOT, so dead rows go without VACUUM, which an index build can hold up (docs/reliability.md D12).
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
    moment("lease_until", nullable=True),
    moment("queued_at", nullable=True),
    moment("not_before", nullable=True),
    moment("finished_at", nullable=True),
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
    moment("started_at"),
    moment("seen_at"),
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
    Column("previous", JSONB(none_as_null=True)),  # of a refresh: what the job before said (stores/jobs/refreshes.py)
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
    moment("created_at"),
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
    Column("retrieval_rank", SmallInteger, nullable=False),
    Column("retrieval_score", REAL, nullable=False),
    Column("relevance", REAL, nullable=False),
    Column("evidence_no", SmallInteger),  # NULL: not kept
    ForeignKeyConstraint(
        ["job_id", "question_no", "run_no"],
        ["answers.job_id", "answers.question_no", "answers.run_no"],
        ondelete="CASCADE",
    ),
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
    moment("updated_at"),
)

# Inputs of a maintenance job: one row, one input.
maintenance_tasks = Table(
    "maintenance_tasks",
    metadata,
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("action", Text, nullable=False),
    Column("status", Text),  # NULL until the maintenance task has an outcome
    Column("reason", Text),
    Column("report", JSONB(none_as_null=True)),
    moment("updated_at"),
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
