"""The postcards of the noise ablation: the training examples of each arm, and the questions for all of them
(docs/method.md 6 and 7).

Every wrong picture is one of CLIP's candidates for the question that is not labelled.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ragllava.evaluation.wrong_evidence import ShownEvidence, with_added_wrong, with_wrong_evidence
from ragllava.lab.ablation.table import ADDED
from ragllava.lab.candidates import nearest_pictures
from ragllava.models.retriever import Retriever
from ragllava.postcards.archive import KnownQuestion, PostcardArchive, draw_archive
from ragllava.training.data.examples import AnswerExample, Evidence, inject_wrong_image

TOP_K = 20  # candidates of a question (docs/method.md 1)
WRONG_SHARES = (0.0, 0.2, 0.5)


@dataclass(frozen=True, slots=True)
class PicturedArchive:
    """An archive with its pictures in memory, by file name; `candidates` are CLIP's best TOP_K for each custom_id."""

    questions: tuple[KnownQuestion, ...]
    pictures: Mapping[str, Image.Image]
    captions: Mapping[str, str]
    candidates: Mapping[str, Sequence[str]]


def picture_archive(archive: PostcardArchive, retriever: Retriever) -> PicturedArchive:
    """Draw all pictures and find the candidates of each question, by brute force."""
    pictures = {card.file_name: card.picture() for card in archive.postcards}
    names = list(pictures)
    nearest = nearest_pictures(retriever, list(pictures.values()), archive.questions, TOP_K)
    return PicturedArchive(
        questions=archive.questions,
        pictures=pictures,
        captions={card.file_name: card.caption for card in archive.postcards},
        candidates={
            question.custom_id: [names[index] for index in row]
            for question, row in zip(archive.questions, nearest, strict=True)
        },
    )


def practice_archive(seed: int, images: int, examples: int) -> PostcardArchive:
    """An archive with names for training, and the questions for `examples` (a multiple of 8) examples of every arm."""
    # Three quarters as many questions about one picture, and as many about two: see `training_examples`.
    return draw_archive(seed, images, examples * 3 // 2, 0.5, "train")


def training_examples(archive: PicturedArchive, *, wrong_pictures: bool, seed: int) -> list[AnswerExample]:
    """The examples of an arm: a quarter of the prompts shows one picture, half show two, a quarter three.

    Without wrong pictures, two pictures belong to a question about two, and the third repeats one of these. With wrong
    pictures, the third picture is a wrong one; in three quarters of the prompts with two pictures, a wrong one is
    beside that of a question about one (docs/method.md 6, data level, applied to questions about two pictures as well).
    Everything else is equal.
    """
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    asked = {count: [q for q in archive.questions if len(q.relevant) == count] for count in (1, 2)}
    eighth = len(asked[2]) // 6
    alone = [_example(archive, question, rng) for question in asked[1][: 2 * eighth]]
    if not wrong_pictures:
        three = [_with_repeated(archive, question, rng) for question in asked[2][: 2 * eighth]]
        return alone + three + [_example(archive, question, rng) for question in asked[2][2 * eighth :]]
    distracted = asked[2][: 2 * eighth] + asked[1][2 * eighth : 5 * eighth]
    return (
        alone
        + [_example(archive, question, rng) for question in asked[2][2 * eighth : 3 * eighth]]
        + [_with_wrong(archive, question, rng) for question in distracted]
    )


def shown_evidence(archive: PicturedArchive, seed: int) -> dict[str, list[ShownEvidence]]:
    """The pictures shown for each question, by condition: shares of the labelled ones swapped, and a wrong one added.

    The same seed gives the same wrong pictures for every generator.
    """

    def rng() -> random.Random:
        return random.Random(seed)  # noqa: S311 - repeatable on purpose

    swapped = {
        f"{share:.0%} wrong": with_wrong_evidence(archive.questions, share, rng(), archive.candidates)
        for share in WRONG_SHARES
    }
    return {**swapped, ADDED: with_added_wrong(archive.questions, rng(), archive.candidates)}


def _example(archive: PicturedArchive, question: KnownQuestion, rng: random.Random) -> AnswerExample:
    images = tuple(rng.sample(question.relevant, len(question.relevant)))
    return AnswerExample(question.text, tuple(archive.captions[name] for name in images), images, question.answer)


def _with_wrong(archive: PicturedArchive, question: KnownQuestion, rng: random.Random) -> AnswerExample:
    name = rng.choice([name for name in archive.candidates[question.custom_id] if name not in question.relevant])
    return inject_wrong_image(_example(archive, question, rng), Evidence(name, archive.captions[name]), rng)


def _with_repeated(archive: PicturedArchive, question: KnownQuestion, rng: random.Random) -> AnswerExample:
    """As many pictures as with a wrong one, but none of them wrong."""
    example = _example(archive, question, rng)
    return replace(inject_wrong_image(example, rng.choice(example.evidence), rng), injected=False)
