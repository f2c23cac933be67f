"""What the gate of a reindexing decides about a report."""

from __future__ import annotations

from typing import Any

import pytest

from ragllava.records import Candidate, Origin, StoredImage
from ragllava.stages.reindex.gate import AnswerComparison, IndexAnswer, _summary, why_refused


def report(**changed: Any) -> dict[str, Any]:
    """The report of a valid index with a graph and old questions."""
    valid = {
        "images": 1000,
        "vectors": 1000,
        "unreadable": 0,
        "unreadable_images": [],
        "recall": {"value": 0.991, "at": 20, "questions": 200, "search": "graph"},
        "answers": {"questions": 20, "worse": 2, "better": 0, "differ": 3, "differences": []},
    }
    return valid | changed


def lost(number: int) -> dict[str, Any]:
    examples = [{"image": "a.png", "reason": "it is gone"}] * min(number, 20)
    return {"unreadable": number, "unreadable_images": examples, "vectors": 1000 - number}


def answers(worse: int, better: int, questions: int = 20) -> dict[str, Any]:
    return {"answers": {"questions": questions, "worse": worse, "better": better}}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (report(), None),
        (report(**lost(50)), None),
        (report(**lost(51)), "51 of 1000 pictures cannot be read, the first one a.png: it is gone"),
        (report(vectors=999), "999 vectors for 1000 pictures"),
        (report(vectors=1001), "1001 vectors for 1000 pictures"),
        (report(recall={"value": 0.98, "at": 20}), None),
        (report(recall={"value": 0.979, "at": 20}), "0.979 of the nearest 20 images; 0.98 are required"),
        (report(**answers(worse=3, better=1)), None),
        (report(**answers(worse=3, better=0)), "less relevant pictures for 3 and more relevant pictures for 0"),
        (report(**answers(worse=0, better=9)), None),
        (report(**answers(worse=0, better=0, questions=0)), None),
    ],
)
def test_an_index_is_refused_for_the_check_that_it_fails(changed: dict[str, Any], reason: str | None) -> None:
    refusal = why_refused(changed)
    assert refusal is None if reason is None else refusal is not None and reason in refusal


def test_an_index_of_a_job_that_compares_nothing_passes_without_answers() -> None:
    without_answers = report()
    del without_answers["answers"]
    assert why_refused(without_answers) is None


@pytest.mark.parametrize(
    ("before", "after", "change", "differs"),
    [
        (IndexAnswer("red", 0.9, ("a",)), IndexAnswer("red", 0.9, ("a",)), 0, False),
        (IndexAnswer("red", 0.9, ("a",)), IndexAnswer("red", 0.85, ("b",)), 0, True),
        (IndexAnswer("red", 0.9, ("a",)), IndexAnswer("blue", 0.9, ("a",)), 0, True),
        (IndexAnswer("red", 0.9, ("a",)), IndexAnswer(None, 0.05, ()), -1, True),
        (IndexAnswer(None, 0.05, ()), IndexAnswer("red", 0.9, ("a",)), 1, True),
    ],
)
def test_a_comparison_distinguishes_worse_from_different(
    before: IndexAnswer, after: IndexAnswer, change: int, differs: bool
) -> None:
    compared = AnswerComparison("What color?", before, after)
    assert (compared.change, compared.differs) == (change, differs)


def test_what_captions_found_says_nothing_about_an_index() -> None:
    """Stored answers may rest on it; a retriever whose vectors mean nothing must not be compared with captions."""

    def candidate(number: int, relevance: float | None, origin: Origin, evidence_no: int | None = None) -> Candidate:
        image = StoredImage(number, f"{number:064x}", f"{number}.png", None)
        return Candidate(image, number, 0.5, relevance, evidence_no, origin)

    by_caption, by_picture = candidate(3, 0.99, Origin.CAPTION, 0), candidate(1, 0.4, Origin.PICTURE)
    unread = candidate(0, None, Origin.PICTURE)
    assert _summary("red", [by_caption, by_picture, unread]) == IndexAnswer("red", 0.4, ("3.png",))
    assert _summary("red", [by_caption, candidate(2, 0.7, Origin.BOTH, 1)]).relevance == 0.7
    assert _summary("red", [by_caption, unread]).relevance == _summary(None, []).relevance == 0.0
