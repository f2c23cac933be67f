"""The search in the graph against the exact scan of the same table, and beside faiss in this process."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from ragllava.lab.bench.processor import spend
from ragllava.lab.bench.rows import BenchRow, Side, Wanted, compare, timed
from ragllava.lab.bench.synthetic import draw_vectors
from ragllava.lab.bench.workload import Workload
from ragllava.stores.archives import archive, indexes, vectors
from ragllava.stores.archives.vectors import Vectors
from ragllava.stores.database import in_transaction, read_at_once

DIM = 512
K = 20
_BULK = 64  # questions of one statement
_RECALL_QUESTIONS = 200
_ROWS_PER_COMMIT = 8_192
_NOTE = "vectors drawn to look like CLIP's: two cones, clusters, most variance in few directions"

Ids = NDArray[np.int64]
Search = Callable[[Vectors], Ids]  # questions (Q, D) → ids of the nearest images (Q, K)


def search_rows(workload: Workload) -> list[BenchRow]:
    """Many questions together, then one alone. `recall_at_20` is against the exact scan."""
    system = workload.require_system()
    drawn = draw_vectors(workload.vectors, _RECALL_QUESTIONS, DIM, workload.seed)
    workload.progress(f"search: storing {workload.vectors:,} vectors")
    index_id = _store(system.engine, drawn.images)
    workload.progress("search: building the graph")
    build_s, _ = timed(lambda: vectors.build_hnsw(system.engine, index_id, above_rows=0))
    graph, exact = _searches(system.engine, index_id)
    nearest = exact(drawn.questions)
    figures = {f"recall_at_{K}": _recall(graph(drawn.questions), nearest), "build_s": build_s}
    bulk, one = drawn.questions[:_BULK], drawn.questions[:1]
    size = f"{workload.vectors:,} × {DIM}"
    rows = []
    for name, asked in ((f"search, {size}, {len(bulk)} questions", bulk), (f"search, {size}, one question", one)):
        workload.progress(name)
        found = compare(_side(graph, asked), _side(exact, asked))
        profile = spend(partial(_in_turn, graph, drawn.questions, len(asked))).figures(len(drawn.questions))
        rows.append(
            BenchRow(
                "search", name, "exact scan in the same database", "questions/s", found.ours_per_s,
                found.reference_per_s, Wanted(at_least=20.0), figures | profile, _NOTE,
            )
        )  # fmt: skip
        rows.append(_faiss_row(graph, drawn.images, asked, nearest, name))
    in_transaction(system.engine, indexes.drop_index, index_id)
    return rows


def _store(engine: Engine, images: Vectors) -> int:
    """An index of its own; image n has the id n + 1."""

    def create(name: str) -> int:
        return in_transaction(
            engine,
            lambda c: indexes.create_index(c, archive.ensure_archive(c, name).archive_id, "drawn", images.shape[1]),
        )

    index_id = create("bench-search")
    for start in range(0, len(images), _ROWS_PER_COMMIT):
        part = images[start : start + _ROWS_PER_COMMIT]
        ids = range(start + 1, start + len(part) + 1)
        in_transaction(engine, vectors.insert_embeddings, index_id, ids, part)
    return index_id


def _searches(engine: Engine, index_id: int) -> tuple[Search, Search]:
    """As the answer stage searches: in an index that it looked up before."""
    index = read_at_once(engine, vectors.get_index, index_id)

    def graph(asked: Vectors) -> Ids:
        return _ids(read_at_once(engine, vectors.search, index, asked, K))

    def exact(asked: Vectors) -> Ids:
        return _ids(read_at_once(engine, vectors.search_exact, index, asked, K))

    return graph, exact


def _ids(found: list[list[vectors.Hit]]) -> Ids:
    return np.array([[hit.image_id for hit in hits] for hits in found], dtype=np.int64)


def _recall(found: Ids, nearest: Ids) -> float:
    return float(np.mean([len(np.intersect1d(*rows)) / K for rows in zip(found, nearest, strict=True)]))


def _in_turn(search: Search, questions: Vectors, together: int) -> None:
    for start in range(0, len(questions), together):
        search(questions[start : start + together])


def _side(search: Search, asked: Vectors) -> Side:
    def run() -> list[float]:
        search(asked)
        return [0.0]  # what differs is the recall, and that stands beside the row

    return Side(len(asked), run)


def _faiss_row(graph: Search, images: Vectors, asked: Vectors, nearest: Ids, name: str) -> BenchRow:
    """Beside the exact search of faiss: in this process, in memory, and without anything that a database is for."""
    reference = "faiss-cpu, exact, in memory"
    if importlib.util.find_spec("faiss") is None:
        found = compare(_side(graph, asked), _side(graph, asked), rounds=1)
        note = "faiss-cpu is not installed: pip install 'ragllava[bench]'"
        return BenchRow("search", f"{name}, beside faiss", reference, "questions/s", found.ours_per_s, None, note=note)
    faiss = importlib.import_module("faiss")
    flat = faiss.IndexFlatIP(images.shape[1])
    flat.add(images)

    def exact(some: Vectors) -> Ids:
        rows: Ids = flat.search(some, K)[1] + 1
        return rows

    recall = _recall(exact(asked), nearest[: len(asked)])
    found = compare(_side(graph, asked), _side(exact, asked))
    return BenchRow(
        "search", f"{name}, beside faiss", reference, "questions/s", found.ours_per_s, found.reference_per_s,
        figures={f"recall_at_{K}_of_faiss": recall}, note=_NOTE,
    )  # fmt: skip
