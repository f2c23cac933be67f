"""What begins by itself: by events of buckets, or by the clock."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from ragllava.stores.schema.base import metadata, moment

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
    moment("created_at"),
    moment("scanned_at", nullable=True),
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
    moment("seen_at"),
    Index("ix_bound_objects_job_id", "job_id", postgresql_where=text("job_id IS NOT NULL")),
    Index("ix_bound_objects_image_id", "image_id"),
)

# Objects that something is said to have happened to. A change event only asks to look; the same one twice is one row.
change_events = Table(
    "change_events",
    metadata,
    Column("bucket", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    moment("received_at"),
    moment("not_before"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    # Grows with every further event: a change event is done only if none came while its object was looked at.
    Column("repeats", BigInteger, nullable=False, server_default=text("0")),
)

# Counters for people: received, repeated, unbound, refused, …
change_event_totals = Table(
    "change_event_totals",
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    moment("updated_at"),
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
    moment("next_due"),
    moment("created_at"),
)

# A due time fires once: whoever inserts its row first, fires (docs/reliability.md D9).
schedule_runs = Table(
    "schedule_runs",
    metadata,
    Column(
        "schedule_id", BigInteger, ForeignKey("schedules.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    ),
    Column("due_at", DateTime(timezone=True), primary_key=True, server_default=func.now()),
    moment("fired_at"),
    Column("job_id", BigInteger, ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("note", Text),
)
