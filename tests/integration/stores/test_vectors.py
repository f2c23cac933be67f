"""Indexes, embeddings and searches against brute force in numpy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from psycopg.errors import DiskFull
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import OperationalError

from ragllava.errors import IndexGone, IndexUnusable, ScoreRejected, UsageError
from ragllava.stores.archives import archive, graphs, indexes, vector_search, vectors
from ragllava.stores.archives.vector_search import Hit
from ragllava.stores.archives.vectors import IndexView, Vectors
from ragllava.stores.database import outside_transaction, read_at_once

DIM = 64
HALF_ROUNDING = 2e-3  # of a cosine, when both vectors are rounded to half precision


def draw(count: int, seed: int, dim: int = DIM) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


def unit(rows: Vectors) -> Vectors:
    """The rows scaled to length 1."""
    lengths: Vectors = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def brute_force(queries: Vectors, stored: Vectors, image_ids: Sequence[int], k: int) -> list[list[Hit]]:
    """The slow and obvious search: every cosine in half precision, sorted by score and then by image id."""
    rounded, asked = stored.astype(np.float16).astype(np.float64), queries.astype(np.float16).astype(np.float64)
    distances = -(asked @ rounded.T)
    return [
        [Hit(image_id, -distance) for distance, image_id in sorted(zip(row, image_ids, strict=True))[:k]]
        for row in distances
    ]


def new_index(connection: Connection, name: str = "cards", retriever: str = "clip@1", dim: int = DIM) -> int:
    return indexes.create_index(connection, archive.ensure_archive(connection, name).archive_id, retriever, dim)


def filled_index(engine: Engine, count: int) -> int:
    """An index of `count` random vectors, by image ids from 0."""
    with engine.begin() as connection:
        index_id = new_index(connection)
        vectors.insert_embeddings(connection, index_id, range(count), draw(count, seed=1))
    return index_id


def scans_of(connection: Connection, relation: str) -> int:
    """Index scans of this transaction: shows which plan was used."""
    statement = text("SELECT pg_stat_get_xact_numscans(CAST(:name AS regclass))")
    return int(connection.execute(statement, {"name": relation}).scalar_one())


def force_graph(connection: Connection) -> None:
    # On a few hundred rows the planner rightly prefers to look at all of them.
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    connection.execute(text("SET LOCAL enable_sort = off"))


def test_search_equals_brute_force(engine: Engine) -> None:
    stored, queries = draw(500, seed=1), draw(70, seed=2)  # more questions than one statement takes
    image_ids = [int(number) for number in np.random.default_rng(3).permutation(10_000)[:500]]
    with engine.begin() as connection:
        index_id = new_index(connection)
        assert vectors.insert_embeddings(connection, index_id, image_ids, stored) == 500
        results = vector_search.search(connection, vectors.get_index(connection, index_id), queries, k=20)
    expected = brute_force(queries, stored, image_ids, k=20)
    assert len(results) == 70
    for hits, expected_hits in zip(results, expected, strict=True):
        assert [hit.image_id for hit in hits] == [hit.image_id for hit in expected_hits]
        assert [hit.retrieval_score for hit in hits] == pytest.approx(
            [hit.retrieval_score for hit in expected_hits], abs=1e-5
        )


def test_scores_are_the_cosine(engine: Engine) -> None:
    stored = np.eye(DIM, dtype=np.float32)[:3]
    query = np.zeros((1, DIM), dtype=np.float32)
    query[0, :3] = (0.8, -0.6, 0.0)
    with engine.begin() as connection:
        index_id = new_index(connection)
        vectors.insert_embeddings(connection, index_id, [7, 8, 9], stored)
        (hits,) = vector_search.search(connection, vectors.get_index(connection, index_id), query, k=3)
    assert [hit.image_id for hit in hits] == [7, 9, 8]
    assert [hit.retrieval_score for hit in hits] == pytest.approx([0.8, 0.0, -0.6], abs=HALF_ROUNDING)


def test_ties_go_by_image_id(engine: Engine) -> None:
    same = draw(1, seed=1)
    with engine.begin() as connection:
        index_id = new_index(connection)
        for image_id in (50, 20, 40, 10, 30):  # one after the other: so they lie in the table in this order
            vectors.insert_embeddings(connection, index_id, [image_id], same)
        (hits,) = vector_search.search(connection, vectors.get_index(connection, index_id), same, k=3)
    assert [hit.image_id for hit in hits] == [10, 20, 30]


def test_more_neighbours_than_images_and_an_empty_index(engine: Engine) -> None:
    queries = draw(2, seed=2)
    with engine.begin() as connection:
        index_id = new_index(connection)
        assert vector_search.search(connection, vectors.get_index(connection, index_id), queries, k=20) == [[], []]
        assert vector_search.search(connection, vectors.get_index(connection, index_id), queries[:0], k=20) == []
        vectors.insert_embeddings(connection, index_id, [1, 2, 3], draw(3, seed=1))
        results = vector_search.search(connection, vectors.get_index(connection, index_id), queries, k=20)
    assert [sorted(hit.image_id for hit in hits) for hits in results] == [[1, 2, 3], [1, 2, 3]]


def test_archives_do_not_see_each_other(engine: Engine) -> None:
    with engine.begin() as connection:
        first, second = new_index(connection, "one"), new_index(connection, "other", dim=8)
        vectors.insert_embeddings(connection, first, [1, 2], draw(2, seed=1))
        vectors.insert_embeddings(connection, second, [3], draw(1, seed=2, dim=8))
        (hits,) = vector_search.search(connection, vectors.get_index(connection, first), draw(1, seed=3), k=20)
    assert {hit.image_id for hit in hits} == {1, 2}


def test_inserting_twice_keeps_the_first_vector(engine: Engine) -> None:
    first, second = draw(3, seed=1), draw(3, seed=2)
    with engine.begin() as connection:
        index_id = new_index(connection)
        assert vectors.insert_embeddings(connection, index_id, [1, 2], first[:2]) == 2
        assert vectors.insert_embeddings(connection, index_id, [3, 2, 1, 3], second[[2, 1, 0, 1]]) == 1
        assert vectors.count_embeddings(connection, index_id) == 3
        assert vectors.missing_embeddings(connection, index_id, [9, 3, 1, 4]) == [9, 4]
        (hits,) = vector_search.search(connection, vectors.get_index(connection, index_id), first[:1], k=1)
    assert hits[0].image_id == 1
    assert hits[0].retrieval_score == pytest.approx(1.0, abs=HALF_ROUNDING)


def test_workers_may_insert_the_same_images_at_once(engine: Engine, wait_for_waiter: Callable[[], None]) -> None:
    stored = draw(3, seed=1)
    with engine.begin() as connection:
        index_id = new_index(connection)

    def insert_backwards() -> int:
        with engine.begin() as connection:
            return vectors.insert_embeddings(connection, index_id, [3, 2, 1], stored[[2, 1, 0]])

    with ThreadPoolExecutor(1) as threads:
        with engine.begin() as connection:
            vectors.insert_embeddings(connection, index_id, [1], stored[:1])
            running = threads.submit(insert_backwards)
            wait_for_waiter()  # for image 1; if it held image 2 by now, the next line would be a deadlock
            assert vectors.insert_embeddings(connection, index_id, [2], stored[1:2]) == 1
        assert running.result(timeout=60) == 1
    with engine.begin() as connection:
        assert vectors.missing_embeddings(connection, index_id, [1, 2, 3]) == []


def test_vectors_that_do_not_fit_are_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        index_id = new_index(connection)
        with pytest.raises(IndexUnusable, match="64 dimensions"):
            vectors.insert_embeddings(connection, index_id, [1], draw(1, seed=1, dim=32))
        with pytest.raises(IndexUnusable, match="64 dimensions"):
            vector_search.search(connection, vectors.get_index(connection, index_id), draw(1, seed=1, dim=32), k=1)
        with pytest.raises(ScoreRejected, match="1 of 2 vectors"):
            broken = draw(2, seed=1)
            broken[1, 5] = np.nan
            vectors.insert_embeddings(connection, index_id, [1, 2], broken)
        with pytest.raises(ScoreRejected, match="length 3"):
            vector_search.search(connection, vectors.get_index(connection, index_id), 3 * draw(1, seed=1), k=1)
        with pytest.raises(IndexUnusable, match="4001 dimensions"):
            new_index(connection, "wide", dim=4_001)
        assert vectors.count_embeddings(connection, index_id) == 0


def test_the_largest_dimension_works(engine: Engine) -> None:
    stored = draw(3, seed=1, dim=vectors.MAX_DIMENSIONS)
    with engine.begin() as connection:
        index_id = new_index(connection, dim=vectors.MAX_DIMENSIONS)
        vectors.insert_embeddings(connection, index_id, [1, 2, 3], stored)
        (hits,) = vector_search.search(connection, vectors.get_index(connection, index_id), stored[1:2], k=1)
    assert hits[0].image_id == 2


def test_one_living_index_for_an_archive_and_retriever(engine: Engine) -> None:
    together = threading.Barrier(4)

    def create(_: int) -> int:
        with engine.begin() as connection:
            together.wait()
            return new_index(connection)

    with ThreadPoolExecutor(4) as threads:
        (index_id,) = set(threads.map(create, range(4)))
    with engine.begin() as connection:
        assert new_index(connection, retriever="clip@2", dim=8) != index_id
        with pytest.raises(IndexUnusable, match="holds vectors of 64 dimensions"):
            new_index(connection, dim=8)


def test_activating_switches_and_dropping_forgets(engine: Engine) -> None:
    with engine.begin() as connection:
        cards = archive.ensure_archive(connection, "cards")
        assert vectors.active_index(connection, cards.archive_id) is None
        old, new = new_index(connection), new_index(connection, retriever="clip@2", dim=8)
        indexes.activate(connection, old)
        indexes.activate(connection, new)
        indexes.activate(connection, new)
        active = vectors.active_index(connection, cards.archive_id)
        assert active is not None
        assert (active.index_id, active.retriever, active.dim, active.state) == (new, "clip@2", 8, "active")
        assert archive.get_archive(connection, "cards").active_index_id == new
        assert [view.state for view in vectors.list_indexes(connection, cards.archive_id)] == ["retired", "active"]

        with pytest.raises(UsageError, match="the active one"):
            indexes.drop_index(connection, new)
        indexes.drop_index(connection, old)
        indexes.drop_index(connection, old)
        assert [view.index_id for view in vectors.list_indexes(connection, cards.archive_id)] == [new]
        assert connection.scalar(text("SELECT to_regclass(:name)"), {"name": f"embeddings_{old}"}) is None
        for use in (
            lambda: vectors.get_index(connection, old),
            lambda: vectors.insert_embeddings(connection, old, [1], draw(1, seed=1)),
            lambda: indexes.activate(connection, old),
        ):
            with pytest.raises(IndexUnusable, match="there is no index"):
                use()


def test_an_index_that_was_dropped_since_it_was_looked_up_is_gone(engine: Engine) -> None:
    with engine.begin() as connection:
        index = vectors.get_index(connection, new_index(connection))
    with engine.begin() as connection:
        indexes.drop_index(connection, index.index_id)
    with pytest.raises(IndexGone, match="there is no index"):
        read_at_once(engine, vector_search.search, index, draw(1, seed=1), k=1)


def test_creating_an_index_does_not_wait_for_searches(engine: Engine) -> None:
    with engine.begin() as reader:
        index_id = new_index(reader, "one")
    with engine.begin() as reader:
        # Its locks are held to the end of the transaction.
        vector_search.search(reader, vectors.get_index(reader, index_id), draw(1, seed=1), k=1)
        with engine.begin() as writer:
            writer.execute(text("SET LOCAL lock_timeout = '1s'"))
            new_index(writer, "another")


def test_retired_images_never_appear(engine: Engine) -> None:
    stored = draw(6, seed=1)
    with engine.begin() as connection:
        index_id = new_index(connection)
        image_ids = _insert_images(connection, 6)
        vectors.insert_embeddings(connection, index_id, image_ids, stored)
        connection.execute(text("UPDATE images SET retired = true WHERE id = :id"), {"id": image_ids[2]})
        (hits,) = vector_search.search(connection, vectors.get_index(connection, index_id), stored[2:3], k=6)
    assert sorted(hit.image_id for hit in hits) == sorted(set(image_ids) - {image_ids[2]})


def test_the_graph_finds_the_neighbours(engine: Engine) -> None:
    stored, queries = draw(800, seed=1), draw(20, seed=2)
    index_id = filled_index(engine, 800)
    assert not graphs.build_hnsw(engine, index_id)  # too few rows to be worth it
    assert graphs.build_hnsw(engine, index_id, above_rows=100)
    assert graphs.build_hnsw(engine, index_id, above_rows=100)  # there already
    with engine.begin() as connection:
        force_graph(connection)
        before = scans_of(connection, f"embeddings_{index_id}_hnsw")
        results = vector_search.search(connection, vectors.get_index(connection, index_id), queries, k=20)
        assert scans_of(connection, f"embeddings_{index_id}_hnsw") == before + 20
        assert connection.scalar(text("SHOW hnsw.ef_search")) == "128"
    expected = brute_force(queries, stored, range(800), k=20)
    hits = [
        len({a.image_id for a in got} & {b.image_id for b in want}) for got, want in zip(results, expected, strict=True)
    ]
    recall = sum(hits) / (20 * len(queries))
    assert recall >= 0.98
    with engine.begin() as connection:
        force_graph(connection)
        index = vectors.get_index(connection, index_id)
        assert vector_search.measure_recall(connection, index, queries, k=20) == pytest.approx(recall)
        assert vector_search.measure_recall(connection, index, queries[:0], k=20) == 1.0
        before = scans_of(connection, f"embeddings_{index_id}_hnsw")
        exact = vector_search.search_exact(connection, index, queries, k=20)
        assert scans_of(connection, f"embeddings_{index_id}_hnsw") == before
    assert [[hit.image_id for hit in row] for row in exact] == [[hit.image_id for hit in row] for row in expected]
    for got in results:
        assert [hit.retrieval_score for hit in got] == sorted((hit.retrieval_score for hit in got), reverse=True)


def test_a_walk_is_one_statement_that_widens_itself(engine: Engine) -> None:
    queries = draw(2, seed=2)
    index_id = filled_index(engine, 800)
    assert graphs.build_hnsw(engine, index_id, above_rows=100)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        index = vectors.get_index(connection, index_id)
        # A walk of this width finds one row; one that began too early would need a second statement for the others.
        for setting in ("enable_seqscan = off", "enable_sort = off", "hnsw.ef_search = 1"):
            connection.execute(text(f"SET {setting}"))
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *reported: statements.append(reported[2]))
        for _ in range(12):  # a repeated statement is prepared, first by psycopg, then by the server for any value
            assert [len(hits) for hits in vector_search.search(connection, index, queries, k=20)] == [20, 20]
        assert len(statements) == 12
        assert connection.scalar(text("SHOW hnsw.ef_search")) == "1"


def test_the_graph_never_gives_fewer_rows_than_there_are(engine: Engine) -> None:
    # The nearest 150 of 200 are retired: a walk that looks at 100 finds none of the others.
    query = draw(1, seed=1)
    near = query + np.float32(0.05) * draw(200, seed=2)
    near[150:] = -near[150:]
    stored = unit(near)
    with engine.begin() as connection:
        index_id = new_index(connection)
        image_ids = _insert_images(connection, 200)
        vectors.insert_embeddings(connection, index_id, image_ids, stored)
        connection.execute(text("UPDATE images SET retired = true WHERE id = ANY(:ids)"), {"ids": image_ids[:150]})
    assert graphs.build_hnsw(engine, index_id, above_rows=100)
    with engine.begin() as connection:
        force_graph(connection)
        (hits,) = vector_search.search(connection, vectors.get_index(connection, index_id), query, k=20)
        assert scans_of(connection, f"embeddings_{index_id}_hnsw") > 0
    assert [hit.image_id for hit in hits] == [
        hit.image_id for hit in brute_force(query, stored[150:], image_ids[150:], k=20)[0]
    ]


def test_an_interrupted_build_is_restarted(engine: Engine) -> None:
    index_id = filled_index(engine, 200)
    with engine.begin() as connection:
        name = f"embeddings_{index_id}_hnsw"
        # As a crash leaves it: an index of this name, of no use to anybody.
        connection.execute(text(f"CREATE INDEX {name} ON embeddings_{index_id} (image_id)"))
    assert graphs.build_hnsw(engine, index_id, above_rows=100)
    with engine.begin() as connection:
        definition = str(connection.scalar(text(f"SELECT pg_get_indexdef('{name}'::regclass)")))
    assert "hnsw" in definition and "m='16'" in definition and "halfvec_ip_ops" in definition


def test_a_machine_with_little_shared_memory_builds_with_one_process(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = graphs._create_graph_once
    allowed: list[str] = []

    def build_only_alone(connection: Connection, index: IndexView) -> None:
        allowed.append(str(connection.scalar(text("SHOW max_parallel_maintenance_workers"))))
        if allowed[-1] != "0":
            raise OperationalError("CREATE INDEX", None, DiskFull("could not resize shared memory segment"))
        build(connection, index)

    monkeypatch.setattr(graphs, "_create_graph_once", build_only_alone)
    index_id = filled_index(engine, 200)
    assert graphs.build_hnsw(engine, index_id, above_rows=100)
    assert allowed == ["2", "0"]


def test_only_one_process_builds_a_graph(engine: Engine) -> None:
    index_id = filled_index(engine, 200)
    with outside_transaction(engine) as builder:
        lock = {"space": graphs._LOCK_SPACE, "index_id": index_id}
        builder.execute(text("SELECT pg_advisory_lock(:space, :index_id)"), lock)
        assert not graphs.build_hnsw(engine, index_id, above_rows=100)
    assert graphs.build_hnsw(engine, index_id, above_rows=100)


def test_building_leaves_no_settings_behind(engine: Engine) -> None:
    index_id = filled_index(engine, 200)
    graphs.build_hnsw(engine, index_id, above_rows=100)
    with engine.begin() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "30s"
        assert connection.scalar(text("SHOW lock_timeout")) == "5s"


def _insert_images(connection: Connection, count: int) -> list[int]:
    statement = text("""
        WITH new AS (
            INSERT INTO blobs (sha256, state, size_bytes, media_type)
            SELECT 'hash-' || number, 'live', 1, 'image/png' FROM generate_series(1, :count) AS number
            RETURNING sha256
        )
        INSERT INTO images (archive_id, sha256, source, uri, width, height, media_type)
        SELECT (SELECT id FROM archives), sha256, sha256, 'file:///' || sha256, 1, 1, 'image/png' FROM new
        RETURNING id
    """)
    return list(connection.scalars(statement, {"count": count}))
