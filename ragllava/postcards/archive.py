"""A known world: an archive of postcards of landmarks that never were, and questions with their right answers.

The whole archive follows from its seed. Hard distractors keep it honest: landmarks of the same kind with a confusable
caption, and namesakes of another kind in the same city. No two landmarks share kind, name and city, so every
question has exactly one right set of pictures.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from ragllava.errors import UsageError
from ragllava.json_records import write_json_lines
from ragllava.postcards.drawing import Drawing, draw_postcard
from ragllava.postcards.names import (
    KINDS_OF,
    SHIFTED_KINDS,
    Attributes,
    Entity,
    Landmark,
    Split,
    World,
    confusable_entity,
    namesake_entity,
    sample_attributes,
    sample_entity,
)
from ragllava.postcards.questions import TWO_IMAGE_TYPES, QuestionAnswer, ask_about_one, ask_about_two
from ragllava.postcards.shifted import draw_shifted_postcard
from ragllava.records import KnownAnswer

_CONFUSABLE_SHARE = 0.35  # of the asked landmarks that get a distractor of the same kind
_NAMESAKE_SHARE = 0.25  # of those that get one of the same name and city


@dataclass(frozen=True, slots=True)
class Postcard:
    """A picture with its caption. Only the seed of the picture is kept; `draw` makes it anew each time."""

    file_name: str
    landmark: Landmark
    picture_seed: int

    @property
    def caption(self) -> str:
        """What is printed under the picture."""
        return self.landmark.caption

    @property
    def attributes(self) -> Attributes:
        """What the picture shows."""
        return self.landmark.attributes

    @property
    def entity(self) -> Entity:
        """What the caption names."""
        return self.landmark.entity

    def draw(self) -> Drawing:
        """Draws the picture; the same at every call. About 2 ms."""
        draw = draw_shifted_postcard if self.attributes.kind in SHIFTED_KINDS else draw_postcard
        return draw(self.attributes, random.Random(self.picture_seed))  # noqa: S311 - repeatable on purpose


@dataclass(frozen=True, slots=True)
class KnownQuestion(KnownAnswer):
    """A question whose answer and pictures are known; `relevant` holds file names of the archive."""

    text: str


@dataclass(frozen=True, slots=True)
class PostcardArchive:
    """An archive as facts; pictures are drawn when asked for."""

    postcards: tuple[Postcard, ...]
    questions: tuple[KnownQuestion, ...]


@dataclass(frozen=True, slots=True)
class WrittenArchive:
    """Where the parts of an archive lie on disk."""

    pictures: Path
    captions: Path
    questions: Path
    answers: Path


def draw_archive(
    seed: int,
    images: int = 1000,
    questions: int = 200,
    two_image_share: float = 0.2,
    split: Split = "test",
    world: World = "home",
    side: Callable[[str], bool] | None = None,
) -> PostcardArchive:
    """Draws an archive and its questions; the same for the same arguments, in any process and on any machine.

    Only the pixels may differ a little between versions of Pillow and NumPy. The shifted world asks the same questions
    about kinds of landmarks, and pictures in drawing styles, that the shipped models never saw.
    Questions are asked about the original landmarks, not about their distractors; questions about one picture go
    through all originals before they come back to the first. The types come mixed. `side` tells of a
    file name on which of two sides it stands: then no question is about pictures of both, as far as there are two that
    fit on one. UsageError: a number out of range, or too few images for questions about two.
    """
    _check(images, questions, two_image_share, split, world)
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    landmarks, originals = _draw_landmarks(rng, images, split, world)
    digits = max(4, len(str(images)))
    postcards = tuple(
        Postcard(f"postcard-{number:0{digits}d}.png", landmark, rng.getrandbits(32))
        for number, landmark in enumerate(landmarks, start=1)
    )
    asked_postcards = [postcards[index] for index in originals]
    return PostcardArchive(postcards, _draw_questions(rng, asked_postcards, questions, two_image_share, side))


def write_archive(
    folder: Path, archive: PostcardArchive, progress: Callable[[int, int], None] | None = None
) -> WrittenArchive:
    """Writes the archive into a folder, which is made if need be.

    pictures/*.png; captions.csv (file, caption); questions.jsonl (custom_id, question) to submit; answers.jsonl
    (custom_id, answer, type, relevant) to compare with, written last. `progress` hears (written, total) after each
    picture. Writing the same archive again is harmless; UsageError when the pictures' folder holds other files.
    """
    written = WrittenArchive(
        pictures=folder / "pictures",
        captions=folder / "captions.csv",
        questions=folder / "questions.jsonl",
        answers=folder / "answers.jsonl",
    )
    written.pictures.mkdir(parents=True, exist_ok=True)
    _refuse_other_files(written.pictures, archive)
    for number, postcard in enumerate(archive.postcards, start=1):
        Image.fromarray(postcard.draw().pixels).save(written.pictures / postcard.file_name)
        if progress is not None:
            progress(number, len(archive.postcards))
    with written.captions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "caption"))
        writer.writerows((postcard.file_name, postcard.caption) for postcard in archive.postcards)
    questions = ({"custom_id": known.custom_id, "question": known.text} for known in archive.questions)
    write_json_lines(questions, written.questions)
    write_json_lines(map(_answer_line, archive.questions), written.answers)
    return written


def _check(images: int, questions: int, two_image_share: float, split: str, world: str) -> None:
    if images < 1:
        raise UsageError(f"an archive needs at least one image, not {images}")
    if questions < 0:
        raise UsageError(f"the number of questions cannot be {questions}")
    if not 0 <= two_image_share <= 1:
        raise UsageError(f"the share of questions about two images must be from 0 to 1, not {two_image_share:g}")
    if split not in get_args(Split):
        raise UsageError(f"no split {split!r}; say train or test")
    if world not in get_args(World):
        raise UsageError(f"no world {world!r}; say home or shifted")


def _draw_landmarks(rng: random.Random, images: int, split: Split, world: World) -> tuple[list[Landmark], list[int]]:
    """Landmarks of different identity, and the indices of the originals among them.

    An original may be followed by its distractors; one whose identity is taken is left out.
    """
    landmarks: list[Landmark] = []
    originals: list[int] = []
    taken: set[tuple[str, str, str]] = set()
    while len(landmarks) < images:
        family = _draw_family(rng, split, world)
        if family[0].identity not in taken:
            originals.append(len(landmarks))
            for landmark in family[: images - len(landmarks)]:
                if landmark.identity not in taken:
                    taken.add(landmark.identity)
                    landmarks.append(landmark)
    return landmarks, originals


def _draw_family(rng: random.Random, split: Split, world: World) -> list[Landmark]:
    """A landmark with its distractors, if any: one of the same kind, one of the same name and city."""
    original = Landmark(sample_attributes(rng, world=world), sample_entity(rng, split))
    family = [original]
    kind, entity = original.attributes.kind, original.entity
    if rng.random() < _CONFUSABLE_SHARE:
        family.append(Landmark(sample_attributes(rng, kind), confusable_entity(entity, rng, split)))
    if rng.random() < _NAMESAKE_SHARE:
        other_kind = rng.choice([other for other in KINDS_OF[world] if other != kind])
        family.append(Landmark(sample_attributes(rng, other_kind), namesake_entity(entity, rng)))
    return family


def _draw_questions(
    rng: random.Random,
    originals: Sequence[Postcard],
    questions: int,
    two_image_share: float,
    side: Callable[[str], bool] | None,
) -> tuple[KnownQuestion, ...]:
    about_two = round(questions * two_image_share)
    if about_two and len(originals) < 2:
        raise UsageError("questions about two images need two landmarks to ask about; draw more images")
    order = rng.sample(originals, len(originals))
    drawn = [
        (ask_about_one(postcard.landmark, rng), [postcard]) for postcard in islice(cycle(order), questions - about_two)
    ]
    for number in range(about_two):
        question_type = TWO_IMAGE_TYPES[number % len(TWO_IMAGE_TYPES)]
        first, second = _draw_pair(originals, question_type, rng, side)
        # "Which has more, A or A?" has no answer, even if the two stand in different cities.
        question_type = "samecolor" if first.landmark.title == second.landmark.title else question_type
        drawn.append((ask_about_two(first.landmark, second.landmark, rng, question_type), [first, second]))
    rng.shuffle(drawn)
    return tuple(_number(drawn))


def _draw_pair(
    originals: Sequence[Postcard], question_type: str, rng: random.Random, side: Callable[[str], bool] | None
) -> tuple[Postcard, Postcard]:
    """Two postcards that the question can be asked of, if there are any; half of those for "samecolor" are alike.

    So no question about two can be answered by the commoner answer.
    """
    first, second = rng.sample(originals, 2)
    looks = first.attributes
    others = originals
    if side is not None:
        others = [c for c in originals if side(c.file_name) == side(first.file_name)]
        second = rng.choice([c for c in others if c is not first] or [second])
    if question_type == "more":
        fitting = [c for c in others if c.attributes.counted == looks.counted and c.attributes.count != looks.count]
    else:
        is_alike = rng.random() < 0.5
        fitting = [c for c in others if c is not first and (c.attributes.color == looks.color) == is_alike]
    return first, rng.choice(fitting) if fitting else second


def _number(drawn: Sequence[tuple[QuestionAnswer, Sequence[Postcard]]]) -> Iterator[KnownQuestion]:
    digits = max(4, len(str(len(drawn))))
    for number, (question, postcards) in enumerate(drawn, start=1):
        yield KnownQuestion(
            custom_id=f"q-{number:0{digits}d}",
            answer=question.answer,
            type=question.type,
            relevant=tuple(postcard.file_name for postcard in postcards),
            text=question.text,
        )


def _refuse_other_files(folder: Path, archive: PostcardArchive) -> None:
    """A picture of another archive would be ingested with ours and spoil every figure."""
    ours = {postcard.file_name for postcard in archive.postcards}
    for path in sorted(folder.iterdir()):
        if path.name not in ours:
            raise UsageError(f"{folder} holds {path.name}, which is not of this archive; name an empty folder")


def _answer_line(known: KnownQuestion) -> dict[str, Any]:
    return {
        "custom_id": known.custom_id,
        "answer": known.answer,
        "type": known.type,
        "relevant": list(known.relevant),
    }
