"""Archives, their images and vectors, and what lies in the object store."""

from __future__ import annotations

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from ragllava.stores.schema.base import metadata, moment

archives = Table(
    "archives",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    # One row update switches the index that questions are answered from (docs/reliability.md D12).
    Column("active_index_id", BigInteger, ForeignKey("indexes.id", use_alter=True)),
    moment("created_at"),
)

# The object store's inventory: a row is `uploading` before its PUT and `live` in the transaction of its first
# reference, so a crash leaves an unreferenced object and never a row without its picture (docs/reliability.md D13).
blobs = Table(
    "blobs",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("state", Text, nullable=False),  # uploading, live, deleting
    Column("size_bytes", BigInteger, nullable=False),
    Column("media_type", Text, nullable=False),
    moment("updated_at"),
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
    moment("created_at"),
    moment("updated_at"),
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
    moment("created_at"),
    moment("activated_at", nullable=True),
    moment("retired_at", nullable=True),
    # One active index for an archive, promised by the database.
    Index("uq_indexes_active", "archive_id", unique=True, postgresql_where=text("state = 'active'")),
)

# Partitioned by index, one partition for each (archive, retriever): to drop an index is to drop a table, a scan
# never meets another archive's rows, and dimensions may differ between partitions (docs/reliability.md D11, D12).
embeddings = Table(
    "embeddings",
    metadata,
    Column("index_id", BigInteger, primary_key=True, autoincrement=False),
    Column("image_id", BigInteger, primary_key=True, autoincrement=False),
    Column("vector", HALFVEC(), nullable=False),
    postgresql_partition_by="LIST (index_id)",
)
