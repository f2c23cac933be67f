"""The postcards of the noise ablation: what the arms are trained on, and what all of them are asked
(docs/method.md 6 and 7).

Every wrong picture is drawn from what CLIP finds for the question and nobody labelled.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ragllava.evaluation.wrong_evidence import ShownEvidence, with_added_wrong, with_wrong_evidence
from ragllava.lab.ablation.table import ADDED
from ragllava.models.retriever import Retriever
from ragllava.postcards.archive import KnownQuestion, PostcardArchive, draw_archive
from ragllava.training.data.examples import AnswerExample, Evidence, inject_wrong_image

TOP_K = 20  # candidates of a question (docs/method.md 1)
WRONG_SHARES = (0.0, 0.2, 0.5)
_PICTURES_PER_BATCH = 64


@dataclass(frozen=True, slots=True)
class PicturedArchive:
    """An archive with its pictures in memory, by file name; `candidates` are CLIP's best TOP_K for each custom_id."""

    questions: tuple[KnownQuestion, ...]
    pictures: Mapping[str, Image.Image]
    captions: Mapping[str, str]
    candidates: Mapping[str, Sequence[str]]

    def open_picture(self, name: str) -> Image.Image:
        """The picture itself."""
        return self.pictures[name]


def picture_archive(archive: PostcardArchive, retriever: Retriever) -> PicturedArchive:
    """Draw all pictures and find the candidates of each question, by brute force."""
    pictures = {card.file_name: Image.fromarray(card.draw().pixels) for card in archive.postcards}
    names = list(pictures)
    images = retriever.embed_images(list(pictures.values()), batch_size=_PICTURES_PER_BATCH)
    texts = retriever.embed_texts([question.text for question in archive.questions])
    best = np.argsort(-(texts @ images.T), axis=1, kind="stable")[:, :TOP_K]
    return PicturedArchive(
        questions=archive.questions,
        pictures=pictures,
        captions={card.file_name: card.caption for card in archive.postcards},
        candidates={
            question.custom_id: [names[place] for place in row]
            for question, row in zip(archive.questions, best, strict=True)
        },
    )


def practice_archive(seed: int, images: int, examples: int) -> PostcardArchive:
    """An archive of names to train on, with the questions for `examples` examples (a multiple of 8) of every arm."""
    # Three quarters as many about one picture, and as many about two: see `training_examples`.
    return draw_archive(seed, images, examples * 3 // 2, 0.5, "train")


def held_out_archive(seed: int, images: int, questions: int) -> PostcardArchive:
    """An archive of names that no training saw; one question in five is about two pictures."""
    return draw_archive(seed, images, questions, split="test")


def training_examples(archive: PicturedArchive, *, wrong_pictures: bool, seed: int) -> list[AnswerExample]:
    """The examples of an arm: a quarter of the prompts shows one picture, half show two, a quarter three.

    Without wrong pictures two belong to a question about two, and the third is one of these shown once more. With
    them the third is a wrong one, and so is one of the two in three quarters of the prompts of two, beside that of a
    question about one (docs/method.md 6, data level, for questions about two pictures as well). All else is the same.
    """
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    asked = {count: [q for q in archive.questions if len(q.relevant) == count] for count in (1, 2)}
    eighth = len(asked[2]) // 6
    alone = [_example(archive, question, rng) for question in asked[1][: 2 * eighth]]
    if not wrong_pictures:
        three = [_shown_again(_example(archive, question, rng), rng) for question in asked[2][: 2 * eighth]]
        return alone + three + [_example(archive, question, rng) for question in asked[2][2 * eighth :]]
    distracted = asked[2][: 2 * eighth] + asked[1][2 * eighth : 5 * eighth]
    return (
        alone
        + [_example(archive, question, rng) for question in asked[2][2 * eighth : 3 * eighth]]
        + [_with_wrong(archive, question, rng) for question in distracted]
    )


def shown_evidence(archive: PicturedArchive, seed: int) -> dict[str, list[ShownEvidence]]:
    """By condition, what is shown for each question: shares of the labelled pictures swapped, and a wrong one added.

    For the same seed the same pictures are wrong, whoever is asked.
    """
    found = {
        f"{share:.0%} wrong": with_wrong_evidence(
            archive.questions,
            share,
            random.Random(seed),  # noqa: S311 - repeatable on purpose
            archive.candidates,
        )
        for share in WRONG_SHARES
    }
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    return {**found, ADDED: with_added_wrong(archive.questions, rng, archive.candidates)}


def _example(archive: PicturedArchive, question: KnownQuestion, rng: random.Random) -> AnswerExample:
    images = tuple(rng.sample(question.relevant, len(question.relevant)))
    return AnswerExample(question.text, tuple(archive.captions[name] for name in images), images, question.answer)


def _with_wrong(archive: PicturedArchive, question: KnownQuestion, rng: random.Random) -> AnswerExample:
    name = rng.choice([found for found in archive.candidates[question.custom_id] if found not in question.relevant])
    return inject_wrong_image(_example(archive, question, rng), Evidence(name, archive.captions[name]), rng)


def _shown_again(example: AnswerExample, rng: random.Random) -> AnswerExample:
    """As many pictures as with a wrong one among them, but none of them wrong."""
    evidence = [*example.evidence, rng.choice(example.evidence)]
    rng.shuffle(evidence)
    return replace(
        example,
        images=tuple(item.image for item in evidence),
        captions=tuple(item.caption for item in evidence),
    )
