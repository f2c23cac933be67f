"""`ragllava compare-retrieval` on a small archive: what it compares, and that its ways differ only as they should."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from ragllava.lab.retrieval_table.archives import CaptionQuality, DrawnResources
from ragllava.lab.retrieval_table.run import TableOptions, TableRow, compare_retrieval
from ragllava.postcards.archive import draw_archive
from ragllava.postcards.questions import QuestionStyle
from tests.support.workshop import Workshop

if TYPE_CHECKING:
    from ragllava.models.bundle import ModelBundle

OPTIONS = TableOptions(
    seeds=(3,),
    sizes=(120,),
    styles=(QuestionStyle.CUES, QuestionStyle.NAME),
    captions=(CaptionQuality.GOOD, CaptionQuality.EMPTY),
    questions=10,
)


@pytest.fixture
def rows(workshop: Workshop, models: ModelBundle) -> Iterator[list[TableRow]]:
    with closing(DrawnResources(workshop.settings)) as resources:
        resources.models = models
        progress: list[str] = []
        yield list(
            compare_retrieval(
                workshop.engine, workshop.settings, resources, OPTIONS, lambda step, done, total: progress.append(step)
            )
        )
        assert "rerank" in progress


def test_the_ways_of_retrieval_are_compared_question_by_question(rows: list[TableRow]) -> None:
    assert [(row.captions, row.style, row.about_two, len(row.outcomes)) for row in rows] == [
        (captions, style, about_two, 2 if about_two else 8)
        for captions in OPTIONS.captions
        for style in OPTIONS.styles
        for about_two in (False, True)
    ]
    for row in rows:
        figures = row.as_json()
        assert row.found("hybrid") >= row.found("picture"), "nothing is taken from the nearest pictures"
        assert not row.is_worse
        assert 20 <= figures["candidates"] <= 40
        assert 1 <= figures["pairs_by_need"] <= figures["candidates"]
        if row.captions is CaptionQuality.EMPTY:
            assert row.found("hybrid") == row.found("picture") and row.found("caption") == 0
            assert row.right("hybrid") == row.right("picture") and figures["candidates"] == 20
        else:
            assert row.found("caption") == row.found("hybrid") == 1
            assert figures["pairs_by_need"] < 8


def test_the_qualities_of_captions() -> None:
    postcards = draw_archive(4, 50, 0).postcards
    own = [postcard.caption for postcard in postcards]
    half = CaptionQuality.HALF.captions(postcards, 1)
    assert sum(caption is None for caption in half) == 25
    assert all(caption in (None, right) for caption, right in zip(half, own, strict=True))
    assert CaptionQuality.GOOD.captions(postcards, 1) == own
    assert CaptionQuality.NEIGHBOUR.captions(postcards, 1) == [*own[1:], own[0]]
    assert len(set(CaptionQuality.SAME.captions(postcards, 1))) == 1
    assert set(CaptionQuality.EMPTY.captions(postcards, 1)) == {None}
