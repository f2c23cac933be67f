"""Embeddings of an archive's images and the search for the nearest ones (pgvector; docs/reliability.md D11, D12).

An index is one embedding of an archive by one retriever: a row of `indexes` and a partition of `embeddings`, which is
a separate table. So a search never reads another archive's vectors, and dropping an index is dropping a table.
indexes.py creates, activates and drops indexes; graphs.py builds the graph of a large one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from ragllava.stores.archives.filtering import FilterSql
from ragllava.stores.database import record, records
from ragllava.stores.schema import indexes

Vectors = NDArray[np.float32]

# Up to this size an exact search of 512 dimensions takes about 30 ms a question; a graph would save little, cost a
# build, and return fewer rows than requested when many of them are filtered out (docs/reliability.md D11).
EXACT_SEARCH_ROWS = 50_000
# pgvector cannot index longer half-precision vectors, and a row must fit on one page of the table.
MAX_DIMENSIONS = 4_000

# Up to so many images, those that a filter leaves are compared one by one, also where there is a graph. A sample tells
# at once if it leaves far more; to count them takes .4 s in 100,000 images.
FILTERED_EXACT_ROWS = 10_000
_SAMPLED_ROWS = 1_000
_LARGE_SHARE = 0.05  # of a sample; then a search in a graph meets 20 images within 400

_ROWS_PER_INSERT = 4_096
_QUESTIONS_PER_STATEMENT = 64  # keeps an exact search of many questions below the statement timeout
_QUESTIONS_PER_EXACT_STATEMENT = 8  # the same for indexes so large that they have a graph
_MIN_EF_SEARCH = 128  # at 100, some builds of 100,000 vectors had a recall slightly below 0.98
_MAX_EF_SEARCH = 1_000  # pgvector's own limit
_UNDEFINED_TABLE = "42P01"
_EXACT_ORDER = "e.vector <#> q.vector, e.image_id"
_IMAGES = "FROM images i WHERE i.archive_id = %(archive_id)s AND NOT i.retired"
_NOT_RETIRED = "e.image_id NOT IN (SELECT id FROM images WHERE archive_id = %(archive_id)s AND retired)"
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


@dataclass(frozen=True, slots=True)
class Hit:
    """An image near a question; `retrieval_score` is the cosine of the two vectors."""

    image_id: int
    retrieval_score: float


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


def search(
    connection: Connection, index: IndexView, queries: Vectors, k: int, filter: FilterSql | None = None
) -> list[list[Hit]]:
    """The `k` nearest images of each query, best first, ties by image id; all of them if there are fewer.

    With a `filter`, only of the images that it leaves. Where it leaves up to FILTERED_EXACT_ROWS, the search is exact.

    queries (Q, D), L2-normalised float32; vectors are compared in half precision, so scores are right to about
    1e-3. Exact without a graph; with a graph, about 98 in 100 of the true neighbours are returned. Retired images never
    appear. Up to 64 queries are one statement, needing no transaction around it. An `index` that was read before its
    graph was built is searched without it. Raises IndexGone when it was dropped, IndexUnusable when it has another D.
    """
    check_vectors(index, queries)
    hits: list[list[Hit]] = []
    with searching(index):
        for start in range(0, len(queries), _QUESTIONS_PER_STATEMENT):
            hits += _search_batch(connection, index, queries[start : start + _QUESTIONS_PER_STATEMENT], k, filter)
    return hits


def search_exact(
    connection: Connection, index: IndexView, queries: Vectors, k: int, filter: FilterSql | None = None
) -> list[list[Hit]]:
    """As `search`, but compares every vector even where there is a graph: slow, the reference to measure a graph by."""
    check_vectors(index, queries)
    hits: list[list[Hit]] = []
    for start in range(0, len(queries), _QUESTIONS_PER_EXACT_STATEMENT):
        hits += _scan(connection, index, queries[start : start + _QUESTIONS_PER_EXACT_STATEMENT], k, filter)
    return hits


def measure_recall(connection: Connection, index: IndexView, queries: Vectors, k: int) -> float:
    """The share of the true `k` nearest images of the queries (Q, D) that `search` returns, 0 to 1; 1 if no queries."""
    exact, approximate = (
        {(number, hit.image_id) for number, hits in enumerate(method(connection, index, queries, k)) for hit in hits}
        for method in (search_exact, search)
    )
    return len(exact & approximate) / len(exact) if exact else 1.0


def nearest_to(connection: Connection, index: IndexView, image_id: int, k: int) -> list[int]:
    """The `k` images that are nearest to one of the index, best first, without itself; none if it has no vector.

    With a graph, about those. Reads the table of all indexes, which the role of the HTTP API may read.
    """
    vector = connection.exec_driver_sql(
        "SELECT CAST(vector AS text) FROM embeddings WHERE index_id = %(index_id)s AND image_id = %(image_id)s",
        {"index_id": index.index_id, "image_id": image_id},
    ).scalar()
    if vector is None:
        return []
    rows = connection.exec_driver_sql(
        f"""
        SELECT e.image_id FROM embeddings e WHERE e.index_id = {index.index_id:d}
        ORDER BY e.vector::halfvec({index.dim:d}) <#> %(vector)s::halfvec({index.dim:d}) LIMIT {k + 1:d}
        """,  # noqa: S608 - numbers of our own
        {"vector": vector},
    )
    return [nearest for nearest in rows.scalars() if nearest != image_id][:k]


def _search_batch(
    connection: Connection, index: IndexView, queries: Vectors, k: int, filter: FilterSql | None
) -> list[list[Hit]]:
    if not index.has_hnsw:
        return _scan(connection, index, queries, k, filter)
    few = few_images(connection, index, filter) if filter else None
    if few is not None:
        return _scan_images(connection, index, queries, k, few)
    hits = _search_graph(connection, index, queries, k, filter)
    # A search in a graph can end early, above all with many retired images. Then every vector is compared.
    short = [number for number, row in enumerate(hits) if len(row) < k]
    if short:
        for number, row in zip(short, _scan(connection, index, queries[short], k, filter), strict=True):
            hits[number] = row
    return hits


def few_images(connection: Connection, index: IndexView, filter: FilterSql) -> list[int] | None:
    """The images that the filter leaves; None if there are many, far more than FILTERED_EXACT_ROWS."""
    table = partition(index.index_id)
    parameters = {**filter.parameters, "archive_id": index.archive_id}
    rows = connection.scalar(
        text("SELECT reltuples FROM pg_class WHERE oid = CAST(:name AS regclass)"), {"name": table}
    )
    share = min(100.0, 100 * _SAMPLED_ROWS / max(rows or 0, 1))
    sampled, left = connection.exec_driver_sql(
        f"""
        SELECT count(*), count(*) FILTER (WHERE {_left_by(filter)}) FROM {table} e TABLESAMPLE SYSTEM ({share:f})
        """,  # noqa: S608 - see above
        parameters,
    ).one()
    if left > _LARGE_SHARE * sampled and rows * left > 2 * FILTERED_EXACT_ROWS * sampled:
        return None
    statement = f"SELECT i.id {_IMAGES} AND {filter.condition} LIMIT {FILTERED_EXACT_ROWS + 1:d}"
    image_ids = list(connection.exec_driver_sql(statement, parameters).scalars())
    return image_ids if len(image_ids) <= FILTERED_EXACT_ROWS else None


def _left_by(filter: FilterSql) -> str:
    """Whether the filter leaves the image of the embedding `e`.

    A subquery that yields a value is evaluated row by row. A join would be planned from all images, without the graph.
    """
    return f"(SELECT NOT i.retired AND {filter.condition} FROM images i WHERE i.id = e.image_id)"  # noqa: S608 - see above


def _scan(
    connection: Connection, index: IndexView, queries: Vectors, k: int, filter: FilterSql | None
) -> list[list[Hit]]:
    """Compares all vectors, or all of the images that the filter leaves."""
    if filter is not None:
        left = f"SELECT i.id {_IMAGES} AND {filter.condition}"
        return _nearest(connection, index, queries, k, _of_images(index, left, filter.parameters))
    # The graph is built on another expression (the cast in `_search_graph`), so this order never uses it.
    rows = _Rows(f"{partition(index.index_id)} e WHERE {_NOT_RETIRED}", _EXACT_ORDER)
    return _nearest(connection, index, queries, k, rows)


def _scan_images(
    connection: Connection, index: IndexView, queries: Vectors, k: int, image_ids: Sequence[int]
) -> list[list[Hit]]:
    """Compares the vectors of these images."""
    left = "SELECT id FROM unnest(%(image_ids)b::bigint[]) AS id"
    return _nearest(connection, index, queries, k, _of_images(index, left, {"image_ids": list(image_ids)}))


def _of_images(index: IndexView, left: str, parameters: Mapping[str, Any]) -> _Rows:
    """The vectors of the images that the statement `left` yields, looked up once for all queries."""
    joined = f"FROM ({left}) AS i (id) JOIN {partition(index.index_id)} e ON e.image_id = i.id"
    prefix = f"WITH vectors_left AS MATERIALIZED (SELECT e.image_id, e.vector {joined})"
    return _Rows("vectors_left e", _EXACT_ORDER, prefix=prefix, parameters=parameters)


def _search_graph(
    connection: Connection, index: IndexView, queries: Vectors, k: int, filter: FilterSql | None
) -> list[list[Hit]]:
    # The search starts when its vector is evaluated, and then the settings are in effect, until the end of the
    # transaction: `SET LOCAL` would cost a round trip, and need a transaction.
    ef_search = min(max(_MIN_EF_SEARCH, 2 * k), _MAX_EF_SEARCH)
    settings = {"hnsw.ef_search": ef_search, "hnsw.iterative_scan": "strict_order" if filter else "off"}
    in_effect = " AND ".join(f"set_config('{name}', '{value}', true) IS NOT NULL" for name, value in settings.items())
    rows = _Rows(
        source=f"{partition(index.index_id)} e WHERE {_left_by(filter) if filter else _NOT_RETIRED}",
        order=f"e.vector::halfvec({index.dim}) <#> q.vector::halfvec({index.dim})",
        query=f"CASE WHEN {in_effect} THEN q.vector END",
        parameters=filter.parameters if filter else {},
    )
    return _nearest(connection, index, queries, k, rows)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows (image_id, vector) in SQL under the alias `e`, and how the nearest of them to `query` are ordered."""

    source: str
    order: str
    query: str = "q.vector"
    prefix: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def _nearest(connection: Connection, index: IndexView, queries: Vectors, k: int, rows: _Rows) -> list[list[Hit]]:
    """One statement for all queries. `<#>` is the negative inner product, so the smallest is the best."""
    register_types(connection)
    # k is part of the text: the generic plan that Postgres makes of a repeated statement would not use the graph.
    result = connection.exec_driver_sql(
        f"""
        {rows.prefix}
        SELECT q.number, hit.image_id, -hit.distance AS retrieval_score
        FROM (
            SELECT {rows.query} AS vector, number
            FROM unnest(%(queries)b::halfvec[]) WITH ORDINALITY AS q (vector, number)
        ) q
        CROSS JOIN LATERAL (
            SELECT e.image_id, e.vector <#> q.vector AS distance
            FROM {rows.source}
            ORDER BY {rows.order}
            LIMIT {k:d}
        ) hit
        ORDER BY q.number, hit.distance, hit.image_id
        """,  # noqa: S608 - see above; a filter is a condition of ours with parameters
        {
            **rows.parameters,
            "queries": [HalfVector(query) for query in queries],
            "archive_id": index.archive_id,
        },
    )
    hits: list[list[Hit]] = [[] for _ in queries]
    for row in result:
        hits[row.number - 1].append(Hit(row.image_id, row.retrieval_score))
    return hits


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
