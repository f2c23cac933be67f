"""Evidence to answer from in the study of noise (docs/method.md 7): the labelled images, some of them wrong on purpose.

Wrong images are drawn from each question's own candidates, which were retrieved and have no label: what a reranker
that errs would let through. The same seed swaps at 10 % a part of what it swaps at 50 %, so that curves over the share
are not blurred by the draw.
"""

from __future__ import annotations

import random
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from ragllava.errors import UsageError
from ragllava.records import KnownAnswer


@dataclass(frozen=True, slots=True)
class ShownEvidence:
    """The images that the generator sees for one question, in the order shown; `wrong` are those not labelled."""

    custom_id: str
    images: tuple[str, ...]
    wrong: tuple[str, ...] = ()


def oracle_evidence(questions: Sequence[KnownAnswer]) -> list[ShownEvidence]:
    """The labelled images of each question and nothing else."""
    return [ShownEvidence(question.custom_id, tuple(question.relevant)) for question in questions]


def with_wrong_evidence(
    questions: Sequence[KnownAnswer], share: float, rng: random.Random, candidates: Mapping[str, Sequence[str]]
) -> list[ShownEvidence]:
    """The labelled images with a share of them, counted over all questions, swapped for wrong ones in place.

    Exactly round(share · labelled images) are swapped. `candidates` holds the images retrieved for each custom_id, in
    any order; labelled ones among them are passed over. UsageError: a share outside 0 to 1, or a question to be swapped
    without enough wrong candidates.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"the share of wrong evidence must be from 0 to 1, not {share:g}")
    shown = [list(question.relevant) for question in questions]
    wrong: list[list[str]] = [[] for _ in questions]
    positions = [(row, column) for row, images in enumerate(shown) for column in range(len(images))]
    rng.shuffle(positions)
    for row, column in positions[: round(share * len(positions))]:
        image_id = _draw_wrong(questions[row], wrong[row], rng, candidates)
        shown[row][column] = image_id
        wrong[row].append(image_id)
    return [
        ShownEvidence(question.custom_id, tuple(images), tuple(swapped))
        for question, images, swapped in zip(questions, shown, wrong, strict=True)
    ]


def with_permuted_evidence(questions: Sequence[KnownAnswer], share: float, rng: random.Random) -> list[ShownEvidence]:
    """The labelled images with a share of them exchanged for one another, as the reference implementation does it.

    A share of the distinct labelled images of the set is permuted at random, the same in every question. So a wrong
    image is mostly about something else than the question, unlike the candidates of `with_wrong_evidence`; and an image
    may stay where it was. UsageError: a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"the share of wrong evidence must be from 0 to 1, not {share:g}")
    labelled = list(dict.fromkeys(image_id for question in questions for image_id in question.relevant))
    rng.shuffle(labelled)
    chosen = labelled[: int(share * len(labelled))]
    shown_for = dict(zip(chosen, rng.sample(chosen, len(chosen)), strict=True))
    rows = []
    for question in questions:
        images = tuple(shown_for.get(image_id, image_id) for image_id in question.relevant)
        rows.append(ShownEvidence(question.custom_id, images, tuple(i for i in images if i not in question.relevant)))
    return rows


def with_added_wrong(
    questions: Sequence[KnownAnswer], rng: random.Random, candidates: Mapping[str, Sequence[str]]
) -> list[ShownEvidence]:
    """The labelled images of each question and one wrong one at a random place; `candidates` as above."""
    shown = []
    for question in questions:
        wrong = _draw_wrong(question, (), rng, candidates)
        images = list(question.relevant)
        images.insert(rng.randint(0, len(images)), wrong)
        shown.append(ShownEvidence(question.custom_id, tuple(images), (wrong,)))
    return shown


def _draw_wrong(
    question: KnownAnswer, taken: Container[str], rng: random.Random, candidates: Mapping[str, Sequence[str]]
) -> str:
    retrieved = candidates.get(question.custom_id, ())
    wrong = [image_id for image_id in retrieved if image_id not in question.relevant and image_id not in taken]
    if not wrong:
        raise UsageError(
            f"question {question.custom_id} has no wrong candidate left among the {len(retrieved)} given; retrieve more"
        )
    return rng.choice(wrong)
