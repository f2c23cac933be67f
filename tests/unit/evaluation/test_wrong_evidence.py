"""Evidence with wrong images in it: how many, which, where, and the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ragllava.errors import UsageError
from ragllava.evaluation.wrong_evidence import (
    ShownEvidence,
    oracle_evidence,
    with_added_wrong,
    with_permuted_evidence,
    with_wrong_evidence,
)
from ragllava.records import KnownAnswer

QUESTIONS = [
    KnownAnswer(f"q{number}", "yes", "isthere", tuple(f"right{number}{letter}" for letter in "ab"[: 1 + number % 2]))
    for number in range(40)  # 60 labelled images
]
CANDIDATES = {
    question.custom_id: [*question.relevant, *(f"wrong{rank}-{question.custom_id}" for rank in range(5))]
    for question in QUESTIONS
}


def _swap(share: float, seed: int = 1) -> list[ShownEvidence]:
    return with_wrong_evidence(QUESTIONS, share, random.Random(seed), CANDIDATES)


def test_oracle() -> None:
    assert [evidence.images for evidence in oracle_evidence(QUESTIONS)] == [q.relevant for q in QUESTIONS]
    assert not any(evidence.wrong for evidence in oracle_evidence(QUESTIONS))


@pytest.mark.parametrize(("share", "swapped"), [(0, 0), (0.1, 6), (0.2, 12), (0.5, 30), (1, 60)])
def test_share_is_of_all_labelled_images(share: float, swapped: int) -> None:
    shown = _swap(share)
    assert sum(len(evidence.wrong) for evidence in shown) == swapped
    for question, evidence in zip(QUESTIONS, shown, strict=True):
        assert evidence.custom_id == question.custom_id
        assert len(evidence.images) == len(question.relevant)
        assert len(set(evidence.images)) == len(evidence.images)
        for place, image_id in enumerate(evidence.images):
            if image_id in evidence.wrong:
                assert image_id in CANDIDATES[question.custom_id]
                assert image_id not in question.relevant
            else:
                assert image_id == question.relevant[place]


def test_the_seed_decides() -> None:
    assert _swap(0.2) == _swap(0.2)
    assert _swap(0.2) != _swap(0.2, seed=2)


def test_more_noise_holds_the_smaller_one() -> None:
    for fewer, more in zip(_swap(0.2), _swap(0.5), strict=True):
        assert set(fewer.wrong) <= set(more.wrong)


def test_arguments_stay_as_they_are() -> None:
    candidates = {custom_id: list(found) for custom_id, found in CANDIDATES.items()}
    with_wrong_evidence(QUESTIONS, 1, random.Random(1), candidates)
    with_added_wrong(QUESTIONS, random.Random(1), candidates)
    assert candidates == CANDIDATES


def test_added_wrong_stands_at_any_place() -> None:
    shown = with_added_wrong(QUESTIONS * 10, random.Random(1), CANDIDATES)
    places: Counter[tuple[int, int]] = Counter()
    for question, evidence in zip(QUESTIONS * 10, shown, strict=True):
        (wrong,) = evidence.wrong
        assert wrong in CANDIDATES[question.custom_id]
        assert wrong not in question.relevant
        assert tuple(image_id for image_id in evidence.images if image_id != wrong) == question.relevant
        places[len(question.relevant), evidence.images.index(wrong)] += 1
    assert set(places) == {(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}
    assert min(places.values()) >= 40  # 200 questions over 2 and over 3 places


def test_what_cannot_be_swapped() -> None:
    with pytest.raises(UsageError, match=r"from 0 to 1, not 1\.5"):
        _swap(1.5)
    found = {question.custom_id: list(question.relevant) for question in QUESTIONS}
    with pytest.raises(UsageError, match="question q0 has no wrong candidate left among the 1 given; retrieve more"):
        with_added_wrong(QUESTIONS, random.Random(1), found)
    only_one = {question.custom_id: ["w"] for question in QUESTIONS}
    with pytest.raises(UsageError, match=r"question q\d*[13579] has no wrong candidate left among the 1 given"):
        with_wrong_evidence(QUESTIONS, 1, random.Random(1), only_one)  # two images would become the same one


@pytest.mark.parametrize(("share", "at_most"), [(0, 0), (0.2, 12), (0.5, 30), (1, 60)])
def test_permuted_evidence_is_of_the_labelled_images(share: float, at_most: int) -> None:
    """A permutation moves about all of the chosen images: of n, one stays on average."""
    shown = with_permuted_evidence(QUESTIONS, share, random.Random(1))
    assert at_most - 5 <= sum(len(evidence.wrong) for evidence in shown) <= at_most
    every = Counter(image for question in QUESTIONS for image in question.relevant)
    assert Counter(image for evidence in shown for image in evidence.images) == every
    for question, evidence in zip(QUESTIONS, shown, strict=True):
        assert len(evidence.images) == len(question.relevant)
        assert set(evidence.wrong) == set(evidence.images) - set(question.relevant)


def test_an_image_of_two_questions_is_exchanged_for_the_same_in_both() -> None:
    asked = [*QUESTIONS, KnownAnswer("again", "yes", "isthere", QUESTIONS[0].relevant)]
    shown = with_permuted_evidence(asked, 1, random.Random(3))
    assert shown[-1].images == shown[0].images != QUESTIONS[0].relevant
    assert shown == with_permuted_evidence(asked, 1, random.Random(3))
    with pytest.raises(UsageError, match="from 0 to 1, not 2"):
        with_permuted_evidence(asked, 2, random.Random(3))
