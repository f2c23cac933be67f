"""Filters on a real database: which images they leave, and searches among these, against the slow and obvious way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, event, text

from ragllava.errors import IndexGone, UsageError
from ragllava.filters import Filter, check_filter, parse_where
from ragllava.stores.archives import archive, filtering, graphs, indexes, vector_search, vectors
from ragllava.stores.archives.filtering import compile_filter
from ragllava.stores.archives.vector_search import Hit
from ragllava.stores.archives.vectors import Vectors
from ragllava.stores.database import read_at_once
from tests.support.described_images import Described, fulfils, random_images, store_described

DIM = 16

FILTERS: list[Any] = [
    {"city": "Port Ansel"},
    {"city": "port ansel"},
    {"city": "KÖLN"},
    {"city": "москва"},
    {"city": ["Köln", "Port Ansel", "nowhere"]},
    {"city": "true"},
    {"city": True},
    {"city": 1968},
    {"city": None},
    {"year": None},
    {"never": None},
    {"never": "x"},
    {"year": 1968},
    {"year": "1968"},
    {"year": 1969.5},
    {"year": ["1968", True, "n.d."]},
    {"year": {"from": 1950, "to": 1968}},
    {"year": {"above": 1950, "below": "1969"}},
    {"year": {"from": -5.5}},
    {"year": {"to": 10**29}},
    {"taken": "1968-05"},
    {"taken": 1968},
    {"taken": {"from": "1968-05-12", "to": "1968-05-12"}},
    {"taken": {"above": "1968-05"}},
    {"taken": {"below": "1968-05-12T10:30"}},
    {"taken": {"from": 1967, "to": "1968-05"}},
    {"tags": "boat"},
    {"tags": 1968},
    {"tags": {"all": ["boat", "1968"]}},
    {"tags": {"in": ["boat", True], "contains": "OLN"}},
    {"tags": {"from": 1960, "to": 1970}},
    {"caption": "a bärn"},
    {"caption": {"contains": "barn"}},
    {"caption": {"contains": ["barn", "köln"]}},
    {"caption": None},
    {"caption": "1968"},
    {"source": "1968/holshire/7.PNG"},
    {"source": {"contains": "8/h"}},
    {"folder": "1968"},
    {"folder": ["1968/HOLSHIRE", "deep"]},
    {"folder": None},
    {"city": "Köln", "year": {"from": 1960}, "folder": "1968"},
    {"city": "x' OR true --", "y%e\"a'r": {"contains": "%s %(x)s \\ ' \""}},
    {"city": {"contains": "\\"}},
]


def left(connection: Connection, *filters: Filter | None) -> set[int]:
    """The images that filters leave."""
    compiled = compile_filter(*filters)
    assert compiled is not None
    statement = f"SELECT i.id FROM images i WHERE {compiled.condition}"
    return set(connection.exec_driver_sql(statement, dict(compiled.parameters)).scalars())


def test_filters_leave_what_brute_force_leaves(connection: Connection) -> None:
    rows = random_images(1_500, seed=1)
    ids = store_described(connection, rows)
    sizes = []
    for given in FILTERS:
        checked = check_filter(given)
        assert checked is not None
        expected = {image_id for image_id, row in zip(ids, rows, strict=True) if fulfils(row, checked)}
        for setting in ("on", "off"):  # with and without the index
            connection.execute(text(f"SET LOCAL enable_bitmapscan = {setting}"))
            assert left(connection, checked) == expected, given
        sizes.append(len(expected))
    assert sum(1 for size in sizes if 0 < size < len(rows)) > 30, "most filters tell images apart"


def test_all_filters_hold_together(connection: Connection) -> None:
    rows = random_images(300, seed=2)
    ids = store_described(connection, rows)
    first, second = check_filter({"city": "Köln"}), check_filter({"year": {"from": 1960}, "city": ["koln", "x"]})
    expected = {i for i, row in zip(ids, rows, strict=True) if fulfils(row, first or {}) and fulfils(row, second or {})}
    assert 0 < len(expected) < 300
    assert left(connection, first, None, second) == expected
    assert compile_filter() is compile_filter(None, None) is None


def test_a_filter_for_a_text_uses_the_index(connection: Connection) -> None:
    store_described(connection, random_images(200, seed=3))
    compiled = compile_filter(check_filter({"city": ["Köln", "Wenby"]}))
    assert compiled is not None
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    statement = f"EXPLAIN SELECT i.id FROM images i WHERE {compiled.condition}"
    plan = "\n".join(connection.exec_driver_sql(statement, dict(compiled.parameters)).scalars())
    assert "ix_images_folded_metadata" in plan


def test_no_text_of_a_filter_is_part_of_the_statement() -> None:
    hostile = 'x\' OR "true" --%s'
    checked = check_filter({f"k{hostile}": hostile, "caption": {"contains": hostile}, "folder": hostile})
    compiled = compile_filter(checked, {"other": {"in": [hostile]}})
    assert compiled is not None
    assert "true" not in compiled.condition and "k" + "x" not in compiled.condition
    assert compiled.condition.replace("%(filter_", "").count("%") == 0


def test_keys_that_no_image_has(connection: Connection) -> None:
    store_described(connection, [("a", None, {"city": "A", "year": 1}), ("b", None, {"city": "B"})])
    store_described(connection, [("a", None, {"elsewhere": 1})], "other")
    archive_id = archive.get_archive(connection, "cards").archive_id
    connection.execute(text("UPDATE images SET retired = true WHERE metadata ? 'year'"))
    assert filtering.archive_keys(connection, archive_id) == ["city"]
    assert filtering.unknown_keys(connection, archive_id, ["city", "year", "elsewhere"]) == ["year", "elsewhere"]
    filtering.check_keys(connection, archive_id, "cards", {"city": "x", "caption": "y", "folder": "z"}, None)
    with pytest.raises(
        UsageError, match=r'no image of the archive cards has the metadata "citty" .* did you mean city\?'
    ):
        filtering.check_keys(connection, archive_id, "cards", None, {"citty": "x"})
    with pytest.raises(UsageError, match="there are city"):
        filtering.check_keys(connection, archive_id, "cards", {"zzz": None})
    with pytest.raises(UsageError, match="its images have no metadata"):
        filtering.check_keys(connection, archive.ensure_archive(connection, "empty").archive_id, "empty", {"zzz": 1})


def draw(count: int, seed: int) -> Vectors:
    drawn = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def brute_force(queries: Vectors, stored: Vectors, ids: Sequence[int], allowed: set[int], k: int) -> list[list[int]]:
    """The slow and obvious search: every cosine in half precision, sorted by score and then by image id."""
    scores = queries.astype(np.float16).astype(np.float64) @ stored.astype(np.float16).astype(np.float64).T
    return [
        [image_id for _, image_id in sorted((-s, i) for s, i in zip(row, ids, strict=True) if i in allowed)[:k]]
        for row in scores
    ]


def ids_of(hits: Sequence[Sequence[Hit]]) -> list[list[int]]:
    return [[hit.image_id for hit in row] for row in hits]


COUNT = 10_000
LEAVES = {
    "no images": ({"never": "x"}, 0),
    "1 image": ({"number": 4_711}, 1),
    "10 images": ({"number": {"from": 100, "below": 110}}, 10),
    "10 images, a text": ({"name": "name 77"}, 10),
    "1,000 images": ({"tenth": "Yes"}, 1_000),
    "1,000 images, a list": ({"tags": "tenth"}, 1_000),
    "9,000 images": ({"tenth": "no"}, 9_000),
    "all images": ({"number": {"from": 0}}, COUNT),
    "all images, by folder": ({"folder": "pictures"}, COUNT),
}


def described(number: int) -> Described:
    is_tenth = number % 10 == 3
    known = {
        "number": str(number),
        "name": f"Name {number % 1_000}",
        "tenth": "yes" if is_tenth else "No",
        "tags": ["picture", "tenth"] if is_tenth else ["picture"],
    }
    return f"pictures/{number}.png", None, known


@pytest.mark.parametrize("has_graph", [False, True], ids=["exact", "graph"])
def test_a_filtered_search_equals_brute_force(engine: Engine, monkeypatch: pytest.MonkeyPatch, has_graph: bool) -> None:
    stored, queries = draw(COUNT, seed=1), draw(6, seed=2)
    with engine.begin() as connection:
        ids = store_described(connection, [described(number) for number in range(COUNT)])
        archive_id = archive.get_archive(connection, "cards").archive_id
        index_id = indexes.create_index(connection, archive_id, "clip@1", DIM)
        vectors.insert_embeddings(connection, index_id, ids, stored)
        retired = set(ids[::7])  # with their vectors, as in the moment before these are removed
        connection.execute(text("UPDATE images SET retired = true WHERE id = ANY(:ids)"), {"ids": list(retired)})
        # An image of another archive that fulfils all filters must not appear.
        store_described(connection, [described(4_711)], "other")
    if has_graph:
        assert graphs.build_hnsw(engine, index_id, above_rows=1_000)
        # So that filters that leave 1,000 images and more are searched in the graph.
        monkeypatch.setattr(vector_search, "FILTERED_EXACT_ROWS", 500)
    for name, (given, number) in LEAVES.items():
        compiled = compile_filter(check_filter(given))
        with engine.begin() as connection:
            allowed = left(connection, check_filter(given)) & set(ids)
            assert len(allowed) == number, name
            index = vectors.get_index(connection, index_id)
            if number >= 1_000:
                connection.execute(text("SET LOCAL enable_seqscan = off"))
            before = scans_of(connection, f"embeddings_{index_id}_hnsw") if has_graph else 0
            hits = ids_of(vector_search.search(connection, index, queries, 20, compiled))
            in_graph = scans_of(connection, f"embeddings_{index_id}_hnsw") > before if has_graph else False
            exact = ids_of(vector_search.search_exact(connection, index, queries, 20, compiled))
        expected = brute_force(queries, stored, ids, allowed - retired, k=20)
        assert exact == expected, name
        assert in_graph == (has_graph and number > 500), name
        if not in_graph:
            assert hits == expected, name
            continue
        assert [len(row) for row in hits] == [20] * 6, name
        assert not retired & {image_id for row in hits for image_id in row}
        assert {image_id for row in hits for image_id in row} <= allowed
        found = sum(len(set(a) & set(b)) for a, b in zip(hits, expected, strict=True))
        assert found >= 0.98 * 120, name
        # The settings of a filtered search do not change the next one.
        with engine.begin() as connection:
            vector_search.search(connection, index, queries, 20, compiled)
            vector_search.search(connection, index, queries, 20)
            assert connection.scalar(text("SHOW hnsw.iterative_scan")) == "off"


def test_a_graph_that_ends_early_gives_no_fewer_images_than_there_are(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 images at the far end of the archive, of which a walk of 100 vectors meets none."""
    query = draw(1, seed=1)
    near = query + np.float32(0.3) * draw(2_000, seed=2)
    near[1_970:] = -near[1_970:]
    stored = np.asarray(near / np.linalg.norm(near, axis=1, keepdims=True), np.float32)
    with engine.begin() as connection:
        ids = store_described(connection, [(f"{n}.png", None, {"far": n >= 1_970}) for n in range(2_000)])
        index_id = new_index(connection, ids, stored)
    assert graphs.build_hnsw(engine, index_id, above_rows=100)
    monkeypatch.setattr(vector_search, "FILTERED_EXACT_ROWS", 10)
    compiled = compile_filter(parse_where("far=true"))
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL hnsw.max_scan_tuples = 100"))
        index = vectors.get_index(connection, index_id)
        walked = vector_search._search_graph(connection, index, query, 20, compiled)
        assert len(walked[0]) < 20
        hits = vector_search.search(connection, index, query, 20, compiled)
    assert ids_of(hits) == brute_force(query, stored, ids, set(ids[1_970:]), k=20)


def test_a_broad_filter_is_recognised_by_a_sample(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.begin() as connection:
        ids = store_described(
            connection, [(f"{n}.png", None, {"half": n % 2 == 0, "one": n == 7}) for n in range(3_000)]
        )
        index_id = new_index(connection, ids, draw(3_000, seed=1))
    assert graphs.build_hnsw(engine, index_id, above_rows=100)
    monkeypatch.setattr(vector_search, "FILTERED_EXACT_ROWS", 100)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *reported: statements.append(reported[2]))
    with engine.begin() as connection:
        index = vectors.get_index(connection, index_id)
        for where, counted in (("half=true", False), ("one=true", True)):
            statements.clear()
            vector_search.search(connection, index, draw(1, seed=2), 20, compile_filter(parse_where(where)))
            assert any("LIMIT 101" in statement for statement in statements) == counted


def test_a_filtered_search_of_a_dropped_index(engine: Engine) -> None:
    with engine.begin() as connection:
        ids = store_described(connection, [("a.png", None, {"a": "b"})])
        index = vectors.get_index(connection, new_index(connection, ids, draw(1, seed=1)))
    with engine.begin() as connection:
        indexes.drop_index(connection, index.index_id)
    with pytest.raises(IndexGone):
        read_at_once(engine, vector_search.search, index, draw(1, seed=1), 1, compile_filter({"a": "b"}))


def new_index(connection: Connection, ids: Sequence[int], stored: Vectors) -> int:
    archive_id = archive.get_archive(connection, "cards").archive_id
    index_id = indexes.create_index(connection, archive_id, "clip@1", DIM)
    vectors.insert_embeddings(connection, index_id, ids, stored)
    return index_id


def scans_of(connection: Connection, relation: str) -> int:
    """Index scans of this transaction: shows which plan was used."""
    statement = text("SELECT pg_stat_get_xact_numscans(CAST(:name AS regclass))")
    return int(connection.execute(statement, {"name": relation}).scalar_one())
