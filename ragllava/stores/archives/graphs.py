"""The graphs (HNSW) in which large indexes are searched."""

from __future__ import annotations

import logging

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from ragllava.stores.archives.vectors import EXACT_SEARCH_ROWS, IndexView, count_embeddings, get_index, partition
from ragllava.stores.database import outside_transaction
from ragllava.stores.schema import indexes

log = logging.getLogger(__name__)

_HNSW_M = 16
# With 64, the default, one question in a hundred on 100,000 clustered vectors finds none of its neighbours: the nearest
# 64 of a new vector may all be in its own cluster, and then no link leads there. With 128 it was still one or two in
# 200 (recall@20 0.978, 0.984 and 0.984 in three builds; with 200 it was 0.994 each time). Building takes three times
# longer.
_HNSW_EF_CONSTRUCTION = 200
_LOCK_SPACE = 0x52616749  # of advisory locks: one build of a graph at a time
_OUT_OF_SHARED_MEMORY = "53100"


def build_hnsw(engine: Engine, index_id: int, *, above_rows: int = EXACT_SEARCH_ROWS) -> bool:
    """Build the graph of an index that has more than `above_rows` vectors; returns whether it has one now.

    Searches and inserts continue meanwhile (CREATE INDEX CONCURRENTLY, on a separate connection without timeouts).
    While one process builds, the others return at once. An interrupted build is removed and restarted.
    """
    with outside_transaction(engine) as connection:
        lock = {"space": _LOCK_SPACE, "index_id": index_id}
        if not connection.scalar(text("SELECT pg_try_advisory_lock(:space, :index_id)"), lock):
            return False
        index = get_index(connection, index_id)
        rows = count_embeddings(connection, index_id)
        if index.has_hnsw or rows <= above_rows:
            return index.has_hnsw
        _create_graph(connection, index, rows)
        connection.execute(text(f"ANALYZE {partition(index_id)}"))
        connection.execute(indexes.update().where(indexes.c.id == index_id).values(has_hnsw=True))
    log.info("graph built", extra={"action": "hnsw_built", "index": index_id, "rows": rows})
    return True


def _create_graph(connection: Connection, index: IndexView, rows: int) -> None:
    connection.execute(text(f"SET maintenance_work_mem = '{_build_memory_mib(rows, index.dim)}MB'"))
    try:
        _create_graph_once(connection, index)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != _OUT_OF_SHARED_MEMORY:
            raise
        # Parallel builds need all their memory in /dev/shm, which may have only 64 MB in a container.
        log.info("building the graph with one process", extra={"action": "hnsw_serial", "index": index.index_id})
        connection.execute(text("SET max_parallel_maintenance_workers = 0"))
        _create_graph_once(connection, index)


def _create_graph_once(connection: Connection, index: IndexView) -> None:
    name = f"{partition(index.index_id)}_hnsw"
    # An interrupted build leaves an invalid index: never searched, but maintained by every insert.
    connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))
    connection.execute(
        text(f"""
            CREATE INDEX CONCURRENTLY {name} ON {partition(index.index_id)}
            USING hnsw ((vector::halfvec({index.dim})) halfvec_ip_ops)
            WITH (m = {_HNSW_M}, ef_construction = {_HNSW_EF_CONSTRUCTION})
        """)
    )


def _build_memory_mib(rows: int, dim: int) -> int:
    """Memory for the whole graph plus 30 % (a build that spills to disk is four times slower), at most 2 GiB."""
    graph_bytes = rows * (2 * dim + 400)
    return min(max(64, int(graph_bytes * 1.3 / 2**20) + 1), 2_048)
