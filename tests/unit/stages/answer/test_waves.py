"""In which order candidates are reranked, and when those that were suffice."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ragllava.models.reranker import Relevance
from ragllava.records import AnswerOptions, Candidate, Depth, Origin, Question, StoredImage
from ragllava.stages.answer import pipeline
from ragllava.stages.answer.waves import cut, is_done, waves_of

ETA, TOP_N = 0.5, 2


def picture(rank: int, relevance: float | None = None, caption: str | None = "a caption") -> Candidate:
    image = StoredImage(rank + 1, f"{rank:064x}", f"{rank}.png", caption)
    return Candidate(image, rank, 0.9 - 0.01 * rank, relevance)


def named(rank: int, *shares: float, relevance: float | None = None) -> Candidate:
    return replace(picture(rank, relevance), origin=Origin.CAPTION, caption_rank=0, caption_score=1.0, shares=shares)


def ranks(waves: list[list[Candidate]]) -> list[list[int]]:
    return [[candidate.retrieval_rank for candidate in wave] for wave in waves]


def test_all_candidates_are_one_wave_at_a_fixed_depth() -> None:
    assert ranks(waves_of([picture(0), named(1, 1.0)], Depth.FIXED)) == [[0, 1]]
    assert waves_of([], Depth.FIXED) == waves_of([], Depth.NEED) == []


def test_captions_that_name_the_thing_come_before_the_nearest_pictures() -> None:
    candidates = [*(picture(rank) for rank in range(20)), named(20, 1.0), named(21, 0.95), named(22, 0.7)]
    waves = ranks(waves_of(candidates, Depth.NEED))
    assert waves == [[20, 21], [22, 0, 1, 2, 3], [*range(4, 10)], [*range(10, 20)]]


def test_both_things_of_a_question_are_in_the_first_wave() -> None:
    waves = ranks(waves_of([picture(0), named(1, 1.0, 0.0), named(2, 0.7, 1.0), named(3, 0.7, 0.0)], Depth.NEED))
    assert waves[0] == [1, 2]


def test_pictures_alone_come_in_the_order_of_their_distance() -> None:
    waves = ranks(waves_of([picture(rank) for rank in reversed(range(12))], Depth.NEED))
    assert waves == [[0, 1, 2, 3], [*range(4, 10)], [10, 11]]


def test_evidence_that_its_caption_names_suffices() -> None:
    left = [picture(0), named(1, 0.7)]
    assert is_done([named(2, 1.0, relevance=0.8)], left, ETA)
    assert not is_done([named(2, 1.0, relevance=0.4)], left, ETA)


def test_a_caption_that_names_the_thing_as_well_must_be_looked_at() -> None:
    assert not is_done([named(2, 0.7, relevance=0.8)], [named(1, 0.7)], ETA)
    assert is_done([named(2, 0.7, relevance=0.8)], [named(1, 0.6)], ETA)


def test_an_image_without_a_caption_could_be_the_better_one() -> None:
    reranked, bare = [named(2, 1.0, relevance=0.8)], picture(0, caption=None)
    assert not is_done(reranked, [picture(1), bare], ETA)
    assert is_done([*reranked, replace(bare, relevance=0.1)], [picture(1)], ETA)


def test_each_thing_needs_evidence_of_its_own() -> None:
    first, second, left = named(1, 1.0, 0.0, relevance=0.9), named(2, 0.0, 1.0, relevance=0.2), [picture(0)]
    assert not is_done([first, second], left, ETA)
    assert is_done([first, replace(second, relevance=0.6)], left, ETA)


def test_where_nothing_is_named_no_relevance_suffices() -> None:
    assert not is_done([picture(0, 1.0), picture(1, 1.0)], [picture(9)], ETA)


def test_nothing_is_left_after_the_last_wave() -> None:
    assert is_done([picture(0, 0.1)], [], ETA)


def test_a_limit_says_whether_it_took_a_part_of_a_wave() -> None:
    waves = [[picture(0), picture(1)], [picture(2), picture(3)]]
    cuts = {most: (ranks(kept), is_part) for most in range(1, 5) for kept, _, is_part in [cut(waves, most)]}
    assert cuts == {
        1: ([[0]], True),
        2: ([[0, 1]], False),
        3: ([[0, 1], [2]], True),
        4: ([[0, 1], [2, 3]], False),
    }


@pytest.mark.parametrize(
    ("depth", "are_named", "most", "cut_to"),
    [
        (Depth.FIXED, 0, 2, 2),
        (Depth.FIXED, 0, 6, None),
        (Depth.NEED, 6, 2, 2),  # all six are in the first wave
        (Depth.NEED, 2, 2, None),  # the first wave is whole, and has evidence
        (Depth.NEED, 0, 4, 4),  # nothing is named
    ],
)
def test_evidence_from_a_part_of_a_wave_counts_as_cut(
    monkeypatch: pytest.MonkeyPatch, depth: Depth, are_named: int, most: int, cut_to: int | None
) -> None:
    relevances = dict(enumerate((0.985, 0.985, 0.99, 0.999, 0.999, 0.4), start=1))

    def score(_questions: object, wave: list[tuple[int, Candidate]], scores: dict[Any, Any], *_rest: object) -> None:
        for row, candidate in wave:
            scores[row, candidate.image.image_id] = Relevance(relevances[candidate.image.image_id])

    monkeypatch.setattr(pipeline, "_score", score)
    candidates = [named(rank, 1.0) if rank < are_named else picture(rank) for rank in range(6)]
    tools: Any = SimpleNamespace(threshold=ETA, options=AnswerOptions(top_n=TOP_N, depth=depth))
    [result] = pipeline.rerank([Question(0, 1, "0", "where?")], [candidates], tools, most=most)
    assert result.cut_to == cut_to
    assert sum(candidate.relevance is not None for candidate in result.candidates) == most
