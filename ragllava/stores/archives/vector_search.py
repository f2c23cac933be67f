"""The nearest images of an index to a vector (pgvector; docs/reliability.md D11, D12).

Exact or by a graph; of all images, or of those that a filter leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgvector import HalfVector
from sqlalchemy import Connection, text

from ragllava.stores.archives.filtering import FilterSql
from ragllava.stores.archives.vectors import IndexView, Vectors, check_vectors, partition, register_types, searching

# Up to so many images, those that a filter leaves are compared one by one, also where there is a graph. A sample tells
# at once if it leaves far more; to count them takes .4 s in 100,000 images.
FILTERED_EXACT_ROWS = 10_000
_SAMPLED_ROWS = 1_000
_LARGE_SHARE = 0.05  # of a sample; then a search in a graph meets 20 images within 400
_QUESTIONS_PER_STATEMENT = 64  # keeps an exact search of many questions below the statement timeout
_QUESTIONS_PER_EXACT_STATEMENT = 8  # the same for indexes so large that they have a graph
_MIN_EF_SEARCH = 128  # at 100, some builds of 100,000 vectors had a recall slightly below 0.98
_MAX_EF_SEARCH = 1_000  # pgvector's own limit
_EXACT_ORDER = "e.vector <#> q.vector, e.image_id"
_IMAGES = "FROM images i WHERE i.archive_id = %(archive_id)s AND NOT i.retired"
_NOT_RETIRED = "e.image_id NOT IN (SELECT id FROM images WHERE archive_id = %(archive_id)s AND retired)"


@dataclass(frozen=True, slots=True)
class Hit:
    """An image near a question; `retrieval_score` is the cosine of the two vectors."""

    image_id: int
    retrieval_score: float


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
        """,  # noqa: S608 - a name and numbers of our own, and a condition of ours with parameters
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
