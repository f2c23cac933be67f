"""Which changes since an earlier answer count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ragllava.json_records import to_json
from ragllava.records import Candidate, Change, ModelStamp, StoredImage
from ragllava.stages.answer.changes import changes_since
from ragllava.stores.jobs.answers import candidates_digest
from ragllava.stores.jobs.refreshes import EarlierAnswer

NOW = ModelStamp("1:clip@a", "ranker-1", "writer-1", "rerank-1+answer-1", 0.25)


def candidate(image_id: int, caption: str | None, rank: int = 0) -> Candidate:
    image = StoredImage(image_id, f"{image_id:064x}", f"{image_id}.png", caption)
    return Candidate(image, retrieval_rank=rank, retrieval_score=0.5, relevance=0.0)


RETRIEVED = (candidate(1, "The tower", 0), candidate(2, None, 1))
EARLIER = EarlierAnswer(0, True, to_json(NOW), candidates_digest(RETRIEVED), frozenset({1, 2}))


def test_the_same_models_and_candidates_are_no_change_in_any_order() -> None:
    reranked = (replace(RETRIEVED[1], relevance=0.9, evidence_no=0), replace(RETRIEVED[0], relevance=0.1))
    assert changes_since(EARLIER, NOW, RETRIEVED) == ()
    assert changes_since(replace(EARLIER, digest=candidates_digest(reranked)), NOW, RETRIEVED[::-1]) == ()


def test_another_index_alone_is_no_change() -> None:
    assert changes_since(EARLIER, replace(NOW, index="2:clip@b"), RETRIEVED) == ()


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (replace(NOW, reranker="ranker-2"), (Change.RERANKER,)),
        (replace(NOW, generator="writer-2"), (Change.GENERATOR,)),
        (replace(NOW, prompt="rerank-2+answer-1"), (Change.PROMPT,)),
        (replace(NOW, threshold=0.26), (Change.THRESHOLD,)),
        (replace(NOW, reranker="ranker-2", threshold=0.3), (Change.RERANKER, Change.THRESHOLD)),
    ],
)
def test_another_model_is_a_change(now: ModelStamp, expected: tuple[Change, ...]) -> None:
    assert changes_since(EARLIER, now, RETRIEVED) == expected


def test_a_generator_changes_nothing_where_nobody_generated() -> None:
    assert changes_since(replace(EARLIER, has_evidence=False), replace(NOW, generator="writer-2"), RETRIEVED) == ()


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ((candidate(1, "The tower"), candidate(3, None)), (Change.PICTURES,)),
        ((candidate(1, "The tower"),), (Change.PICTURES,)),
        ((*RETRIEVED, candidate(3, None)), (Change.PICTURES,)),
        ((), (Change.PICTURES,)),
        ((candidate(1, "The Tower"), candidate(2, None)), (Change.CAPTIONS,)),
        ((candidate(1, "The tower"), candidate(2, "")), (Change.CAPTIONS,)),
        ((candidate(1, None), candidate(2, "The tower")), (Change.CAPTIONS,)),
    ],
)
def test_other_candidates_are_a_change(candidates: tuple[Candidate, ...], expected: tuple[Change, ...]) -> None:
    assert changes_since(EARLIER, NOW, candidates) == expected


def test_an_empty_archive_that_stays_empty_is_no_change() -> None:
    earlier = EarlierAnswer(0, False, to_json(NOW), candidates_digest(()), frozenset())
    assert changes_since(earlier, NOW, ()) == ()
    assert changes_since(earlier, NOW, RETRIEVED) == (Change.PICTURES,)


@pytest.mark.parametrize("earlier", [None, replace(EARLIER, models=None), replace(EARLIER, digest=None)])
def test_what_is_not_known_is_a_change(earlier: EarlierAnswer | None) -> None:
    assert changes_since(earlier, NOW, RETRIEVED) == (Change.UNKNOWN,)
