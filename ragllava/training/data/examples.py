"""The records that training is made of, and noise on data level (docs/method.md 6). Loads no torch."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Evidence:
    """A picture and the caption under it. `image` is what the caller's picture opener knows: a sha256 or a path."""

    image: str
    caption: str | None


@dataclass(frozen=True, slots=True)
class RankExample:
    """One (question, picture, caption) and whether the picture is relevant (docs/method.md 5).

    `source` says where the pair comes from: `labelled`, or where a negative was drawn (`clip-top-20`).
    """

    question: str
    caption: str | None
    image: str
    relevant: bool
    source: str


@dataclass(frozen=True, slots=True)
class AnswerExample:
    """One question with its pictures in the order shown, their captions, and the answer to learn (docs/method.md 6).

    `captions` and `images` have the same order. `injected`: a wrong picture is among them.
    """

    question: str
    captions: tuple[str | None, ...]
    images: tuple[str, ...]
    answer: str
    injected: bool = False

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """Pictures with their captions."""
        return tuple(Evidence(*pair) for pair in zip(self.images, self.captions, strict=True))


Example = RankExample | AnswerExample


def inject_wrong_image(example: AnswerExample, wrong: Evidence, rng: random.Random) -> AnswerExample:
    """The example with one wrong picture more, all pictures in a new order, the answer as it was."""
    evidence = [*example.evidence, wrong]
    rng.shuffle(evidence)
    return replace(
        example,
        images=tuple(item.image for item in evidence),
        captions=tuple(item.caption for item in evidence),
        injected=True,
    )
