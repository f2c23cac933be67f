"""The table like the paper's, on three questions worked by hand."""

from __future__ import annotations

import json

import pytest

from ragllava.evaluation.paper_table import CandidateFigures, PaperRow, paper_table, ranked_row, threshold_row

RELEVANT = [("a",), ("b", "c"), ("d",)]  # four labelled images
BY_RETRIEVAL = [["x", "a", "y"], ["b", "x", "y"], ["x", "y", "z"]]
RELEVANCES = [{"x": 0.3, "a": 0.9, "y": 0.6}, {"b": 0.8, "x": 0.2, "y": 0.7}, {"x": 0.1, "y": 0.4, "z": 0.2}]


def test_ranked_row() -> None:
    row = ranked_row("retrieval", BY_RETRIEVAL, RELEVANT, top_n=2)
    assert row.recall_at == {1: 1 / 4, 2: 2 / 4, 5: 2 / 4, 10: 2 / 4, 20: 2 / 4}
    assert row.kept is not None
    assert (row.kept.hits, row.kept.kept, row.kept.labelled) == (2, 6, 4)


def test_every_depth_counts_what_stands_within_it() -> None:
    """Labelled images at the places 1, 2, 4, 8, 15 and 21 of rankings of 21, and one that was not found."""
    places = [[1, 2], [4], [8, 15], [21], []]
    ranked = [[f"hit {n}" if n in row else f"miss {n}" for n in range(1, 22)] for row in places]
    relevant = [tuple(f"hit {n}" for n in row) or ("lost",) for row in places]
    row = ranked_row("reranked", ranked, relevant, top_n=2)
    assert row.recall_at == pytest.approx({1: 1 / 7, 2: 2 / 7, 5: 3 / 7, 10: 4 / 7, 20: 5 / 7})
    assert row.kept is not None
    assert row.kept.precision == pytest.approx(2 / 10)  # two of each ranking are kept
    assert row.kept.recall == pytest.approx(2 / 7)
    assert row.kept.f1 == pytest.approx(4 / 17)


@pytest.mark.parametrize(
    ("threshold", "hits", "kept"),
    [
        (0.0, 2, 6),  # a, y; b, y; y, z
        (0.5, 2, 4),  # a, y; b, y; none
        (0.7, 2, 3),  # a; b, y: what is exactly at the threshold stays
        (0.85, 1, 1),
        (1.0, 0, 0),
    ],
)
def test_threshold_row(threshold: float, hits: int, kept: int) -> None:
    row = threshold_row("η", threshold, RELEVANCES, RELEVANT, top_n=2)
    assert row.kept is not None
    assert (row.kept.hits, row.kept.kept, row.kept.labelled) == (hits, kept, 4)
    assert (row.threshold, row.recall_at) == (threshold, {})


def test_table() -> None:
    rows = [
        ranked_row("retrieval", BY_RETRIEVAL, RELEVANT, top_n=2),
        threshold_row("natural threshold", 0.5, RELEVANCES, RELEVANT, top_n=2, answer_score=2 / 3),
        PaperRow("labelled images", answer_score=1.0),
    ]
    assert paper_table(rows) == (
        "|                   |     η |  R@1 |  R@2 |  R@5 | R@10 | R@20 | precision | recall |   F1 | answers |\n"
        "| ----------------- | ----: | ---: | ---: | ---: | ---: | ---: | --------: | -----: | ---: | ------: |\n"
        "| retrieval         |     – | 25.0 | 50.0 | 50.0 | 50.0 | 50.0 |      33.3 |   50.0 | 40.0 |       – |\n"
        "| natural threshold | 0.500 |    – |    – |    – |    – |    – |      50.0 |   50.0 | 50.0 |    66.7 |\n"
        "| labelled images   |     – |    – |    – |    – |    – |    – |         – |      – |    – |   100.0 |\n"
    )


def test_json_of_a_row() -> None:
    row = threshold_row("natural", 0.5, RELEVANCES, RELEVANT, top_n=2, answer_score=2 / 3)
    assert json.loads(json.dumps(row.as_json())) == {
        "label": "natural",
        "threshold": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "answer_score": 0.6667,
    }
    assert PaperRow("labelled", answer_score=0.5).as_json()["precision"] is None
    assert ranked_row("retrieval", BY_RETRIEVAL, RELEVANT, 2).as_json()["recall_at_1"] == 0.25


def test_an_empty_table_has_a_head() -> None:
    assert paper_table([]).count("\n") == 2


def test_json_of_a_row_with_its_candidates() -> None:
    row = PaperRow("hybrid", candidates=CandidateFigures(2 / 3, candidates=21.25, reranked=None)).as_json()
    assert (row["recall_of_all"], row["candidates"], row["reranked"]) == (0.6667, 21.25, None)
