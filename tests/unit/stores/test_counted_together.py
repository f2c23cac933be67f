"""Which jobs one statement counts together."""

from __future__ import annotations

import pytest

from ragllava.stores.jobs import outcomes


@pytest.mark.parametrize(
    ("totals", "groups"),
    [
        ([], []),
        ([0], [[0]]),
        ([0, 3, 2, 1], [[0, 1, 2], [3]]),
        ([6, 0, 5, 0], [[0], [1, 2, 3]]),
        ([2, 9, 2], [[0], [1], [2]]),
    ],
    ids=["none", "one without inputs", "as many as fit", "a large one is alone", "a large one between others"],
)
def test_groups(monkeypatch: pytest.MonkeyPatch, totals: list[int], groups: list[list[int]]) -> None:
    monkeypatch.setattr(outcomes, "COUNTED_AT_ONCE", 5)
    assert outcomes.counted_together(dict(enumerate(totals))) == groups
