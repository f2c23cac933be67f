"""Embeddings of an archive's images (pgvector; docs/reliability.md D11, D12).

An index is one embedding of an archive by one retriever: a row of `indexes` and a partition of `embeddings`, which is
a separate table. So a search never reads another archive's vectors, and dropping an index is dropping a table.
indexes.py creates, activates and drops indexes; graphs.py builds the graph of a large one; vector_search.py searches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg import Connection as DriverConnection
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import ProgrammingError

from ragllava.errors import IndexGone, IndexUnusable, ScoreRejected
from ragllava.records import StoredImage
from ragllava.stores.database import record, records
from ragllava.stores.schema import indexes

Vectors = NDArray[np.float32]

# Up to this size an exact search of 512 dimensions takes about 30 ms a question; a graph would save little, cost a
# build, and return fewer rows than requested when many of them are filtered out (docs/reliability.md D11).
EXACT_SEARCH_ROWS = 50_000
# pgvector cannot index longer half-precision vectors, and a row must fit on one page of the table.
MAX_DIMENSIONS = 4_000


_ROWS_PER_INSERT = 4_096
_UNDEFINED_TABLE = "42P01"
_SELECT_INDEXES = select(indexes.c.id.label("index_id"), indexes)


@dataclass(frozen=True, slots=True)
class IndexView:
    """An index. `retriever` names the model and its weights; `state` is one of building, active, retired; `has_hnsw`
    tells whether searches use a graph or compare every vector. `spec` tells where the retriever's files are
    (models.profiles.RetrieverSource); None: it is the profile's own."""

    index_id: int
    archive_id: int
    retriever: str
    dim: int
    state: str
    has_hnsw: bool
    spec: dict[str, Any] | None = None


def active_index(connection: Connection, archive_id: int) -> IndexView | None:
    """The index that the archive's questions are answered from; None before the first ingest."""
    query = _SELECT_INDEXES.where(indexes.c.archive_id == archive_id, indexes.c.state == "active")
    row = connection.execute(query).one_or_none()
    return record(IndexView, row) if row else None


def list_indexes(connection: Connection, archive_id: int) -> list[IndexView]:
    """All indexes of an archive that are not dropped, oldest first."""
    query = _SELECT_INDEXES.where(indexes.c.archive_id == archive_id).order_by(indexes.c.id)
    return records(IndexView, connection.execute(query))


def insert_embeddings(connection: Connection, index_id: int, image_ids: Sequence[int], vectors: Vectors) -> int:
    """Store the vectors (N, D) of N images, L2-normalised float32; returns how many were new.

    An image that has its vector already keeps it, so a batch may be repeated, also concurrently.
    Raises IndexUnusable for a wrong D, ScoreRejected for a vector that is not finite or not of length 1.
    """
    index = get_index(connection, index_id)
    check_vectors(index, vectors)
    if len(image_ids) != len(vectors):
        raise ValueError(f"{len(image_ids)} images, but {len(vectors)} vectors")
    inserted = 0
    for start in range(0, len(image_ids), _ROWS_PER_INSERT):
        chunk = slice(start, start + _ROWS_PER_INSERT)
        inserted += _insert_rows(connection, index_id, image_ids[chunk], vectors[chunk])
    return inserted


def _insert_rows(connection: Connection, index_id: int, image_ids: Sequence[int], vectors: Vectors) -> int:
    # Binary arrays load as fast as COPY BINARY into a temporary table, without writes to the system catalogue.
    # Sorted, so that two workers with the same images wait for each other instead of running into a deadlock.
    order = np.argsort(np.asarray(image_ids), kind="stable")
    register_types(connection)
    result = connection.exec_driver_sql(
        f"""
        INSERT INTO {partition(index_id)} (index_id, image_id, vector)
        SELECT %(index_id)s, image_id, vector
        FROM unnest(%(image_ids)b::bigint[], %(vectors)b::halfvec[]) AS new (image_id, vector)
        ON CONFLICT DO NOTHING
        """,  # noqa: S608 - the name of a partition holds nothing but a number
        {
            "index_id": index_id,
            "image_ids": [int(image_ids[row]) for row in order],
            "vectors": [HalfVector(vectors[row]) for row in order],
        },
    )
    return result.rowcount


def remove_embeddings(connection: Connection, archive_id: int, image_ids: Sequence[int]) -> None:
    """Remove the vectors of images from every index of their archive."""
    for index in list_indexes(connection, archive_id):
        statement = f"DELETE FROM {partition(index.index_id)} WHERE index_id = :index_id AND image_id = ANY(:ids)"  # noqa: S608 - see above
        connection.execute(text(statement), {"index_id": index.index_id, "ids": list(image_ids)})


def missing_embeddings(connection: Connection, index_id: int, image_ids: Sequence[int]) -> list[int]:
    """Those of the images that have no vector in this index, in the order given."""
    get_index(connection, index_id)
    # Of the whole table, which the role of the HTTP API may read, unlike its partitions.
    query = text("SELECT image_id FROM embeddings WHERE index_id = :index_id AND image_id = ANY(:ids)")
    present = set(connection.scalars(query, {"index_id": index_id, "ids": list(image_ids)}))
    return [image_id for image_id in image_ids if image_id not in present]


def unembedded_images(connection: Connection, index_id: int) -> list[StoredImage]:
    """The images of the archive that have no vector in this index, retired ones left out, by id."""
    index = get_index(connection, index_id)
    query = text("""
        SELECT id AS image_id, sha256, source, caption FROM images
        WHERE archive_id = :archive_id AND NOT retired
          AND (SELECT 1 FROM embeddings e
               WHERE e.index_id = :index_id AND e.image_id = images.id LIMIT 1) IS NULL
        ORDER BY id
    """)
    values = {"archive_id": index.archive_id, "index_id": index_id}
    return records(StoredImage, connection.execute(query, values))


def count_embeddings(connection: Connection, index_id: int) -> int:
    """How many vectors an index holds."""
    get_index(connection, index_id)
    statement = text("SELECT count(*) FROM embeddings WHERE index_id = :index_id")
    return int(connection.execute(statement, {"index_id": index_id}).scalar_one())


def sample(connection: Connection, index: IndexView, most: int) -> Vectors:
    """The vectors (N, D) of at most `most` images, from all of the index: about as many steps of equal length in their
    ids. Reads that many rows."""
    register_types(connection)
    # Of the whole table, which the role of the HTTP API may read, unlike its partitions.
    rows = connection.exec_driver_sql(
        """
        WITH bounds AS (
            SELECT min(image_id) AS first, max(image_id) AS last FROM embeddings WHERE index_id = %(index_id)s
        ), chosen AS (
            SELECT DISTINCT (
                SELECT image_id FROM embeddings WHERE index_id = %(index_id)s AND image_id >= step
                ORDER BY image_id LIMIT 1
            ) AS image_id
            FROM bounds, generate_series(first, last, greatest(1, (last - first + 1) / %(most)s)) AS step
            LIMIT %(most)s
        )
        SELECT vector FROM embeddings WHERE index_id = %(index_id)s AND image_id IN (SELECT image_id FROM chosen)
        """,
        {"index_id": index.index_id, "most": most},
    )
    vectors = [row.vector.to_numpy() for row in rows]
    return np.stack(vectors).astype(np.float32) if vectors else np.zeros((0, index.dim), np.float32)


def partition(index_id: int) -> str:
    """The table that holds the vectors of an index."""
    return f"embeddings_{index_id:d}"


def get_index(connection: Connection, index_id: int) -> IndexView:
    """One index. Raises IndexGone when it was dropped."""
    row = connection.execute(_SELECT_INDEXES.where(indexes.c.id == index_id)).one_or_none()
    if row is None:
        raise index_gone(index_id)
    return record(IndexView, row)


def index_gone(index_id: int) -> IndexGone:
    """The error for an index that does not exist."""
    return IndexGone(f"there is no index {index_id} (any more): a newer one took its place; try again")


@contextmanager
def searching(index: IndexView) -> Iterator[None]:
    """Around a search in an index: raises IndexGone when its table was dropped."""
    try:
        yield
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _UNDEFINED_TABLE:
            raise
        raise index_gone(index.index_id) from error


def check_vectors(index: IndexView, vectors: Vectors) -> None:
    """Raise IndexUnusable for another number of dimensions, ScoreRejected for vectors that are not of length 1."""
    if vectors.ndim != 2 or vectors.shape[1] != index.dim:
        raise IndexUnusable(
            f"index {index.index_id} ({index.retriever}) holds vectors of {index.dim} dimensions, "
            f"not an array of shape {vectors.shape}"
        )
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 0.01))  # also true for NaN
    if wrong.size:
        raise ScoreRejected(
            f"{wrong.size} of {len(vectors)} vectors for index {index.index_id} are not of length 1, "
            f"the first one of length {lengths[wrong[0]]}"
        )


def register_types(connection: Connection) -> None:
    """Register the types of pgvector with psycopg, once for each connection."""
    driver = cast("DriverConnection[Any]", connection.connection.driver_connection)
    if driver.adapters.types.get("halfvec") is None:
        register_vector(driver)
