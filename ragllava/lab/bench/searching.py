"""The search in the graph compared with the exact scan of the same table, and with faiss in this process."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine

from ragllava.lab.bench.processes import spend
from ragllava.lab.bench.rows import BenchRow, Wanted, compare, timed
from ragllava.lab.bench.synthetic import draw_vectors
from ragllava.lab.bench.workload import Workload
from ragllava.stores.archives import archive, graphs, indexes, vector_search, vectors
from ragllava.stores.archives.vector_search import Hit
from ragllava.stores.archives.vectors import IndexView, Vectors
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
    """Many questions together, then a single one. `recall_at_20` is relative to the exact scan."""
    engine = workload.require_client().engine
    images, questions = draw_vectors(workload.vectors, _RECALL_QUESTIONS, DIM, workload.seed)
    workload.progress(f"search: storing {workload.vectors:,} vectors")
    index_id = _store(engine, images)
    workload.progress("search: building the graph")
    build_s, _ = timed(partial(graphs.build_hnsw, engine, index_id, above_rows=0))
    index = read_at_once(engine, vectors.get_index, index_id)  # once, as in the answer stage
    graph = partial(_search, engine, vector_search.search, index)
    exact = partial(_search, engine, vector_search.search_exact, index)
    nearest = exact(questions)
    figures = {f"recall_at_{K}": _recall(graph(questions), nearest), "build_s": build_s}
    rows = []
    for number, label in ((_BULK, f"{_BULK} questions"), (1, "one question")):
        asked = questions[:number]
        name = f"search, {workload.vectors:,} × {DIM}, {label}"
        workload.progress(name)
        speeds = compare(partial(_run, graph, asked), partial(_run, exact, asked))
        profile = spend(partial(_run_all, graph, questions, number)).figures(len(questions))
        rows.append(
            BenchRow(
                "search", name, "exact scan in the same database", "questions/s", speeds.ours_per_s,
                speeds.reference_per_s, Wanted(at_least=20.0), figures | profile, _NOTE,
            )
        )  # fmt: skip
        rows.append(_faiss_row(graph, images, asked, nearest, rows[-1]))
    in_transaction(engine, indexes.drop_index, index_id)
    return rows


def _store(engine: Engine, images: Vectors) -> int:
    """A new index that contains image n with the id n + 1; returns its id."""
    archive_id = in_transaction(engine, archive.ensure_archive, "bench-search").archive_id
    index_id = in_transaction(engine, indexes.create_index, archive_id, "drawn", images.shape[1])
    for start in range(0, len(images), _ROWS_PER_COMMIT):
        part = images[start : start + _ROWS_PER_COMMIT]
        in_transaction(engine, vectors.insert_embeddings, index_id, range(start + 1, start + len(part) + 1), part)
    return index_id


def _search(
    engine: Engine,
    search: Callable[[Connection, IndexView, Vectors, int], list[list[Hit]]],
    index: IndexView,
    questions: Vectors,
) -> Ids:
    hits = read_at_once(engine, search, index, questions, K)
    return np.array([[hit.image_id for hit in row] for row in hits], dtype=np.int64)


def _recall(ids: Ids, nearest: Ids) -> float:
    return float(np.mean([len(np.intersect1d(*rows)) / K for rows in zip(ids, nearest, strict=True)]))


def _run(search: Search, questions: Vectors) -> Sequence[float]:
    search(questions)
    return [0.0] * len(questions)  # the results differ in their recall only, which is a figure of the row


def _run_all(search: Search, questions: Vectors, together: int) -> None:
    for start in range(0, len(questions), together):
        search(questions[start : start + together])


def _faiss_row(graph: Search, images: Vectors, asked: Vectors, nearest: Ids, row: BenchRow) -> BenchRow:
    """Compare with the exact search of faiss: in this process, in memory, and without the functions of a database."""
    name, reference = f"{row.name}, beside faiss", "faiss-cpu, exact, in memory"
    try:
        faiss = importlib.import_module("faiss")
    except ModuleNotFoundError:
        note = "faiss-cpu is not installed: pip install 'ragllava[bench]'"
        return BenchRow("search", name, reference, "questions/s", row.ours, None, note=note)
    flat = faiss.IndexFlatIP(images.shape[1])
    flat.add(images)

    def exact(questions: Vectors) -> Ids:
        ids: Ids = flat.search(questions, K)[1] + 1
        return ids

    recall = _recall(exact(asked), nearest[: len(asked)])
    speeds = compare(partial(_run, graph, asked), partial(_run, exact, asked))
    return BenchRow(
        "search", name, reference, "questions/s", speeds.ours_per_s, speeds.reference_per_s,
        figures={f"recall_at_{K}_of_faiss": recall}, note=_NOTE,
    )  # fmt: skip
