"""The F1 softened around η: what is close to η counts in part, what is far from it as in the F1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from ragllava.training.softened_f1 import softened_f1


def best(*distances: tuple[float, bool], eta: float = 0.0) -> list[tuple[float, bool]]:
    """Relevances at these distances from η, in logits."""
    return [(1 / (1 + math.exp(-distance - eta)), correct) for distance, correct in distances]


FAR = best((5, True), (-5, False))  # with some such questions, the median distance is 5, so what is within 2 is close


def softened(*questions: Sequence[tuple[float, bool]], threshold: float = 0.5) -> list[float]:
    return list(softened_f1([FAR, FAR, *questions], [1] * (2 + len(questions)), threshold)[2:])


def test_images_close_to_the_threshold_count_in_part() -> None:
    half_way, below, beside = softened(
        best((0, True), (-5, False)), best((-1, True), (-5, False)), best((5, True), (1, False))
    )
    assert half_way == pytest.approx(2 * 0.5 / (0.5 + 1))
    assert below == pytest.approx(2 * 0.25 / (0.25 + 1))
    assert beside == pytest.approx(2 * 1 / (1 + 0.75 + 1))


def test_what_is_far_from_the_threshold_counts_as_in_the_f1() -> None:
    questions = [FAR, best((-5, True), (-5, False)), best((5, True), (5, False)), best((9, True), (-4, False))]
    assert softened(*questions) == [1.0, 0.0, pytest.approx(2 / 3), 1.0]


def test_neither_the_scale_of_the_logits_nor_where_eta_is_matters() -> None:
    distances = [((1.0, True), (-3.0, False)), ((-0.5, True), (-2.0, False)), ((4.0, True), (0.5, False))]
    plain, sharper, moved = (
        softened_f1([best(*((scale * z, correct) for z, correct in row), eta=eta) for row in distances], [1] * 3, at)
        for scale, eta, at in ((1.0, 0.0, 0.5), (3.0, 0.0, 0.5), (1.0, math.log(4), 0.8))
    )
    assert sharper == pytest.approx(plain) and moved == pytest.approx(plain)
    assert len(set(plain)) == 3


def test_questions_without_images_and_certain_relevances() -> None:
    assert softened_f1([], [], 0.5) == ()
    assert softened_f1([[]], [1], 0.5) == (0.0,)
    assert softened_f1([[(1.0, True), (0.0, False)]], [1], 0.5) == (1.0,)
    at_threshold = softened_f1([[(1.0, True), (0.0, False)]], [1], 0.0)
    assert list(at_threshold) == pytest.approx([2 / 2.5]), "the wrong one is at η"
    assert list(softened_f1([[(0.5, True)]], [2], 0.5)) == pytest.approx([2 * 0.5 / 2.5])
