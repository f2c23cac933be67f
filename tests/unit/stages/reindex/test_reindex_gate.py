"""What the gate of a reindexing says about a report."""

from __future__ import annotations

from typing import Any

import pytest

from ragllava.stages.reindex.gate import Compared, Found, why_refused


def report(**changed: Any) -> dict[str, Any]:
    """Of a sound index, with a graph and old questions."""
    sound = {
        "images": 1000,
        "vectors": 1000,
        "unreadable": 0,
        "unreadable_images": [],
        "recall": {"value": 0.991, "at": 20, "questions": 200, "search": "graph"},
        "answers": {"questions": 20, "worse": 2, "better": 0, "differ": 3, "differences": []},
    }
    return sound | changed


def lost(number: int) -> dict[str, Any]:
    named = [{"image": "a.png", "reason": "it is gone"}] * min(number, 20)
    return {"unreadable": number, "unreadable_images": named, "vectors": 1000 - number}


def answers(worse: int, better: int, questions: int = 20) -> dict[str, Any]:
    return {"answers": {"questions": questions, "worse": worse, "better": better}}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (report(), None),
        (report(**lost(50)), None),
        (report(**lost(51)), "51 of 1000 pictures cannot be read, the first one a.png: it is gone"),
        (report(vectors=999), "999 vectors for 1000 pictures"),
        (report(vectors=1001), "1001 vectors for 1000 pictures"),
        (report(recall={"value": 0.98, "at": 20}), None),
        (report(recall={"value": 0.979, "at": 20}), "0.979 of the nearest 20 images, 0.98 are needed"),
        (report(**answers(worse=3, better=1)), None),
        (report(**answers(worse=3, better=0)), "less relevant pictures for 3, and more relevant ones for 0"),
        (report(**answers(worse=0, better=9)), None),
        (report(**answers(worse=0, better=0, questions=0)), None),
    ],
)
def test_an_index_is_refused_for_what_it_lacks(found: dict[str, Any], says: str | None) -> None:
    said = why_refused(found)
    assert said is None if says is None else said is not None and says in said


def test_an_index_of_a_job_that_compares_nothing_is_not_judged_by_answers() -> None:
    found = report()
    del found["answers"]
    assert why_refused(found) is None


@pytest.mark.parametrize(
    ("before", "after", "change", "differs"),
    [
        (Found("red", 0.9, ("a",)), Found("red", 0.9, ("a",)), 0, False),
        (Found("red", 0.9, ("a",)), Found("red", 0.85, ("b",)), 0, True),
        (Found("red", 0.9, ("a",)), Found("blue", 0.9, ("a",)), 0, True),
        (Found("red", 0.9, ("a",)), Found(None, 0.05, ()), -1, True),
        (Found(None, 0.05, ()), Found("red", 0.9, ("a",)), 1, True),
    ],
)
def test_a_comparison_tells_worse_from_merely_different(
    before: Found, after: Found, change: int, differs: bool
) -> None:
    compared = Compared("What color?", before, after)
    assert (compared.change, compared.differs) == (change, differs)
