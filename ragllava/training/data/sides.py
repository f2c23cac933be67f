"""On which side of a training each labelled question is: trained on, fits the threshold, or held out. Loads no torch.

Near-duplicates of a picture count as that picture, in whatever archive they are, and questions of the same words as
one question. A question is held out if any of its pictures is. So are the other questions about the pictures of
held-out questions: they would be trained on beside a picture that decides. A question about pictures of two sides is
left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from ragllava.imaging.likeness import Likeness
from ragllava.training.data.datasets import DatasetOptions, LabelledQuestion, is_judging, side_key

FEWEST_IMAGES = 24  # labelled relevant in the archives of a training, so that some are on every side
_LEAST_LEFT = 0.5  # of what would be trained on if the partners of held-out pictures were, too


class Side(StrEnum):
    """What a labelled question is used for."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    HELD_OUT = "held_out"
    UNUSED = "unused"


@dataclass(frozen=True, slots=True)
class Sides:
    """The side of each question, by `side_key`. `by_image` tells whether it follows from pictures.

    `apart` are pictures of calibration and held-out questions, with their near-duplicates, which nothing is trained on.
    `group_of` gives each relevant picture the name of its near-duplicates.
    """

    by_text: Mapping[str, Side]
    by_image: bool
    apart: Collection[str]
    group_of: Mapping[str, str]

    def of(self, text: str) -> Side:
        """The side of a question."""
        return self.by_text[side_key(text)]

    def without_apart(self, question: LabelledQuestion, options: DatasetOptions) -> LabelledQuestion:
        """The question without the pictures that nothing is trained on as wrong ones.

        Unlabelled ones that look relevant stay: they are not trained on, but asked about.
        """
        return replace(
            question,
            irrelevant=tuple(item for item in question.irrelevant if item.image not in self.apart),
            retrieved=tuple(
                item
                for item in question.retrieved
                if item.image not in self.apart or (item.relevance or 0.0) >= options.certain
            ),
        )


def images_of(questions: Iterable[LabelledQuestion], top_k: int | None = None) -> set[str]:
    """All pictures that the sides of these questions depend on, or that could be trained on: of the first `top_k`
    candidates, or of all."""
    named = {item.image for question in questions for item in (*question.relevant, *question.irrelevant)}
    return named | {item.image for question in questions for item in question.retrieved[:top_k]}


def assign_sides(
    questions: Collection[LabelledQuestion], likeness: Likeness, *, held_out: float, calibration: float
) -> Sides:
    """The sides of all questions of a training, of all its archives; `held_out` and `calibration` are shares."""
    group_of = likeness.groups(item.image for question in questions for item in question.relevant)
    by_image = len(set(group_of.values())) >= FEWEST_IMAGES
    pictures: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        pictures[side_key(question.text)].update(group_of[item.image] for item in question.relevant)
    if not by_image:
        sides = {text: _first_side(text, (), held_out, calibration) for text in pictures}
        return Sides(sides, by_image=False, apart=frozenset(), group_of=group_of)
    sides = {text: _first_side(text, groups, held_out, calibration) for text, groups in pictures.items()}
    with_partners = _set_partners_apart(sides, pictures, held_out)
    left, before = (sum(side is Side.TRAIN for side in found.values()) for found in (with_partners, sides))
    # Where most questions are about several pictures, these are partners of each other.
    if left >= _LEAST_LEFT * before:
        sides = with_partners
    judging = _pictures_on({Side.CALIBRATION, Side.HELD_OUT}, sides, pictures)
    apart = judging - _pictures_on({Side.TRAIN}, sides, pictures)
    names = [image for image, group in group_of.items() if group in apart]
    near = likeness.near(images_of(questions), names)
    return Sides(sides, by_image=True, apart=near, group_of=group_of)


def _first_side(text: str, images: Collection[str], held_out: float, calibration: float) -> Side:
    if is_judging(text, images, held_out):
        return Side.HELD_OUT
    return Side.CALIBRATION if is_judging(text, images, held_out + calibration) else Side.TRAIN


def _set_partners_apart(
    sides: Mapping[str, Side], pictures: Mapping[str, set[str]], held_out: float
) -> dict[str, Side]:
    """The sides, where no question is trained on that is about a picture of a calibration or held-out question.

    If it is about such pictures alone, it joins their side.
    """
    deciding = _pictures_on({Side.HELD_OUT}, sides, pictures)
    judging = deciding | _pictures_on({Side.CALIBRATION}, sides, pictures)

    def side(text: str) -> Side:
        if sides[text] is not Side.TRAIN or not pictures[text] & judging:
            return sides[text]
        if not pictures[text] <= judging:
            return Side.UNUSED
        return Side.HELD_OUT if held_out and pictures[text] & deciding else Side.CALIBRATION

    return {text: side(text) for text in sides}


def _pictures_on(chosen: Collection[Side], sides: Mapping[str, Side], pictures: Mapping[str, set[str]]) -> set[str]:
    return {picture for text, side in sides.items() if side in chosen for picture in pictures[text]}
